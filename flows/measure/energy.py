"""What a piece of work took: time, memory, and energy where a counter measures it.

Energy is the GPU's own total (NVML: millijoules since its driver was loaded, from Volta on), which
needs no root, no network and no sampling. Where there is no such counter, as on a CPU, it is left
out: what remains there without root are guesses from a processor's name and its load.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from boss_core.training import distributed

COUNTER = "NVML counter of the GPU"
MILLIJOULES = 3.6e9  # in a kilowatt hour


@dataclass
class Usage:
    """What a block under `measured` took; filled in when it ends.

    seconds: wall time, until the device was done.
    peak_memory_bytes: the most that torch held on the GPU; on a CPU the largest resident size of
        the process meanwhile.
    energy_kwh: of the whole GPU, whoever used it; of all where processes compute together, one GPU
        each. None where nothing measures it.
    energy_source: what measured it.
    images: how many were made or trained on; None where that says nothing.
    began: when the block began, UNIX seconds.
    """

    seconds: float = 0.0
    peak_memory_bytes: int = 0
    energy_kwh: float | None = None
    energy_source: str | None = None
    images: int | None = None
    began: float = 0.0


@contextmanager
def measured(on: torch.device, images: int | None = None) -> Iterator[Usage]:
    """Measure a block that computes on one device, or on that of each process: then all of them
    have to come to its end.

    Blocks may follow one another but not nest: each starts its peak memory anew.
    """
    usage = Usage(images=images, began=time.time())
    on_gpu = on.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(on)
        torch.cuda.reset_peak_memory_stats(on)
    else:
        # Where the kernel lets it; else the peak is that since the process began.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    before = _millijoules(on)
    began = time.perf_counter()
    yield usage
    if on_gpu:
        torch.cuda.synchronize(on)
    usage.seconds = time.perf_counter() - began
    after = _millijoules(on)
    if on_gpu:
        own = math.nan if before is None or after is None else (after - before) / MILLIJOULES
        kwh = distributed.total(own, on)
        if not math.isnan(kwh):
            usage.energy_kwh, usage.energy_source = kwh, COUNTER
        usage.peak_memory_bytes = torch.cuda.max_memory_allocated(on)
    else:
        usage.peak_memory_bytes = _peak_resident()


def _peak_resident() -> int:
    """Bytes. Not getrusage's: that goes on from the process which started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _millijoules(on: torch.device) -> int | None:
    """The GPU's counter; None for a CPU, and for a GPU or a part of one that has none."""
    if on.type != "cuda":
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            # By its UUID: NVML knows nothing of CUDA_VISIBLE_DEVICES.
            uuid = torch.cuda.get_device_properties(on).uuid
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None
