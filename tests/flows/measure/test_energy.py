"""Time, memory and energy of a block."""

import gc
import mmap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest
import torch

from flows.measure.energy import COUNTER, measured
from flows.measure.usage import amounts

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def test_time_is_that_of_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = threading.active_count()
    start = time.perf_counter()
    with measured(CPU) as usage:
        time.sleep(0.3)
    outside = time.perf_counter() - start
    assert 0.3 <= usage.seconds <= outside
    assert threading.active_count() == threads
    assert not list(tmp_path.iterdir())


def test_memory_on_a_cpu_is_that_of_the_block() -> None:
    """Also after a block that took more."""

    def peak(mebibytes: int) -> int:
        # pages that are new: an allocator may take what an earlier test left in a hole of its heap
        with measured(CPU) as usage, mmap.mmap(-1, mebibytes << 20) as block:
            np.frombuffer(block, dtype=np.uint8).fill(1)
        return usage.peak_memory_bytes

    gc.collect()  # what tests before this left in cycles would be given back between two blocks
    peaks = [peak(size) for size in (700, 100, 300)]
    assert peaks[0] - peaks[1] == pytest.approx(600 << 20, rel=0.05)
    assert peaks[2] - peaks[1] == pytest.approx(200 << 20, rel=0.05)


def test_energy_that_nothing_measures_is_left_out() -> None:
    with measured(CPU) as usage:
        pass
    assert (usage.energy_kwh, usage.energy_source) == (None, None)


def test_co2_of_a_kilowatt_hour_is_the_intensity_of_the_grid() -> None:
    record = {"seconds": 4.0, "peak_memory_bytes": 1, "images": 10, "energy_kwh": 2.0}
    found = amounts(record, grid_intensity=475)
    assert found["co2_grams"] == 950
    assert found["images_per_second"] == 2.5


def test_energy_is_what_the_counter_went_on_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter of millijoules that goes on by 7.2 MJ, which are 2 kWh."""
    counter = iter((5 * 10**12, 5 * 10**12 + 7_200_000_000))
    for name in ("nvmlInit", "nvmlShutdown", "nvmlDeviceGetHandleByUUID"):
        monkeypatch.setattr(pynvml, name, lambda *_: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lambda _: next(counter))
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 123)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="a"))
    with measured(torch.device("cuda")) as usage:
        pass
    assert usage.energy_kwh == pytest.approx(2.0)
    assert (usage.energy_source, usage.peak_memory_bytes) == (COUNTER, 123)


@needs_gpu
def test_a_gpu_counts_its_energy() -> None:
    on = torch.device("cuda")
    x = torch.randn(8192, 8192, device=on)
    with measured(on) as usage:
        for _ in range(200):
            y = x @ x
    assert y.is_cuda
    assert usage.peak_memory_bytes >= 2 * x.nbytes
    if usage.energy_kwh is not None:  # a part of a GPU has no counter
        watts = usage.energy_kwh * 3.6e6 / usage.seconds
        assert 30 < watts < 2000
        assert usage.energy_source == COUNTER
