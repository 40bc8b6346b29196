"""What a piece of work took: time, memory, and energy where a counter measures it.

Energy is the GPU's own total (NVML: millijoules since its driver was loaded, from Volta on), which
needs no root, no network and no sampling. Where there is no such counter, as on a CPU, it is left
out: what remains there without root are guesses from a processor's name and its load.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

COUNTER = "NVML counter of the GPU"
MILLIJOULES = 3.6e9  # in a kilowatt hour


@dataclass
class Usage:
    """What a block under `measured` took; filled in when it ends.

    seconds: wall time, until the device was done.
    peak_memory_bytes: the most that torch held on the GPU; on a CPU the largest resident size
        that the process ever had until then.
    energy_kwh: of the whole GPU, whoever used it; None where nothing measures it.
    energy_source: what measured it.
    """

    seconds: float = 0.0
    peak_memory_bytes: int = 0
    energy_kwh: float | None = None
    energy_source: str | None = None

    def co2_grams(self, grid_intensity: float) -> float | None:
        """At a grid intensity in g CO2 a kWh; None without a measured energy."""
        return None if self.energy_kwh is None else self.energy_kwh * grid_intensity


@contextmanager
def measured(on: torch.device) -> Iterator[Usage]:
    """Measure a block that computes on one device.

    Blocks may follow one another but not nest on a GPU: each starts its peak memory anew.
    """
    usage = Usage()
    on_gpu = on.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(on)
        torch.cuda.reset_peak_memory_stats(on)
    before = _millijoules(on)
    began = time.perf_counter()
    yield usage
    if on_gpu:
        torch.cuda.synchronize(on)
    usage.seconds = time.perf_counter() - began
    after = _millijoules(on)
    if before is not None and after is not None:
        usage.energy_kwh = (after - before) / MILLIJOULES
        usage.energy_source = COUNTER
    if on_gpu:
        usage.peak_memory_bytes = torch.cuda.max_memory_allocated(on)
    else:
        usage.peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
