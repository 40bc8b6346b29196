"""How much memory a search may take, and so how many samples at a time."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from boss_core.cost import rollout_bytes

LARGEST_BATCH = 512
# A U-Net holds some thousand times the bytes of a sample while it works on it: 15 MB for one of
# 3x32x32 in the published network for CIFAR-10, of 60 million parameters.
ACTIVATIONS = 2000
# More at a time brings a CPU nothing, whatever memory it has.
CPU_BYTES = 2 << 30

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """The memory that can be had on a device now; on a CPU within the limit of a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_line(MEMINFO, "MemAvailable:", 1024)]
    limit, used = (_number(CGROUP / f"memory.{name}") for name in ("max", "current"))
    if limit is not None and used is not None:
        # Files that were read lately count as used, and make room when asked to.
        found.append(limit - used + (_line(CGROUP / "memory.stat", "inactive_file", 1) or 0))
    return max(0, min((size for size in found if size is not None), default=4 << 30))


def search_batch(
    shape: Sequence[int], grid: int, device: torch.device, *, reference: str = "euler"
) -> int:
    """Samples at a time for a search: a power of two, at most `LARGEST_BATCH`, whose activations
    (`ACTIVATIONS` times the samples) take half of a GPU's free memory, or `CPU_BYTES` and a
    quarter of what is free on a CPU, and whose velocities on the fine grid a quarter."""
    free, elements = free_bytes(device), math.prod(shape)
    share = free // 2 if device.type == "cuda" else min(free // 4, CPU_BYTES)
    by_activations = share // (ACTIVATIONS * 4 * elements)
    by_velocities = free // 4 // rollout_bytes(grid, elements, 1, reference=reference)
    most = max(1, min(LARGEST_BATCH, by_activations, by_velocities))
    return 1 << (most.bit_length() - 1)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _line(path: Path, name: str, unit: int) -> int | None:
    """Of a file of lines like ``MemAvailable:  123 kB``, in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((unit * int(line.split()[1]) for line in lines if line.split()[:1] == [name]), None)
