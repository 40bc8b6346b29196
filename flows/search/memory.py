"""How much memory a search may take, and so how many samples at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from boss_core.costs.matrix import rollout_bytes

LARGEST_BATCH = 512
# A U-Net holds some thousand times the bytes of a sample while it works on it: 15 MB for one of
# 3x32x32 in the published network for CIFAR-10, of 60 million parameters.
ACTIVATIONS = 2000
# More at a time brings a CPU nothing, whatever memory it has.
CPU_BYTES = 2 << 30

MEMINFO, OWN_GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup")
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class _Version:
    """Of control groups: the folder of the memory's, and the names of what is read there."""

    folder: str
    limit: str
    used: str
    idle_files: str


_UNIFIED = _Version("", "memory.max", "memory.current", "inactive_file")
_LEGACY = _Version(
    "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)


def free_bytes(device: torch.device) -> int:
    """The memory that can be had on a device now; on a CPU within the limit of a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_line(MEMINFO, "MemAvailable:", 1024)]
    for group, version in _groups():
        limit, used = _number(group / version.limit), _number(group / version.used)
        if limit is not None and used is not None:
            # Files that were read lately count as used, and make room when asked to.
            found.append(limit - used + (_line(group / "memory.stat", version.idle_files, 1) or 0))
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


def _groups() -> Iterator[tuple[Path, _Version]]:
    """The control groups whose limits hold for this process: its own, as of a job of a batch
    system, and those above it. A container sees its own limit at the top."""
    for line in _lines(OWN_GROUPS) or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        version = _UNIFIED if not controllers else _LEGACY
        if controllers and "memory" not in controllers.split(","):
            continue
        own = Path(path.lstrip("/"))
        for folder in (own, *own.parents):
            yield CGROUP / version.folder / folder, version


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _line(path: Path, name: str, unit: int) -> int | None:
    """Of a file of lines like ``MemAvailable:  123 kB``, in bytes."""
    found = (line.split() for line in _lines(path))
    return next((unit * int(words[1]) for words in found if words[:1] == [name]), None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
