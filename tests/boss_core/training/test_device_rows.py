"""Rows from memory, from a file, and on a GPU from its memory or read ahead: the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from boss_core.checkpoints.rectified_flow import read_config
from boss_core.io.pixels import from_uint8
from boss_core.networks.ncsnpp import NCSNpp
from boss_core.networks.ncsnpp_init import initialise
from boss_core.training import device_rows
from boss_core.training.device_rows import DeviceRows
from boss_core.training.flow_matching import flow_matching_loss
from boss_core.training.loop import train
from boss_core.training.randomness import BatchShare, device_generator, step_generator
from boss_core.training.settings import TrainingSettings

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def index_of(step: int, share: BatchShare) -> tuple[np.ndarray, np.ndarray]:
    draw = step_generator(0, step)
    return share.take(draw.integers(50, size=(8, 1))), share.take(draw.integers(4, size=(8, 2)))


def test_rows_of_an_array_and_of_a_mapped_file(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((50, 4, 3)).astype(np.float32)
    np.save(tmp_path / "array.npy", array)
    mapped = np.load(tmp_path / "array.npy", mmap_mode="r")
    for source in (array, mapped):
        batch = DeviceRows.of(source, CPU).batches(index_of)
        for step in (0, 1, 7):
            rows, places = index_of(step, BatchShare())
            assert np.array_equal(batch(step, BatchShare()).numpy(), array[rows, places])
            shares = [batch(step, BatchShare(rank, 2)).numpy() for rank in (0, 1)]
            assert np.array_equal(np.stack(shares, axis=1).reshape(8, 2, 3), array[rows, places])


def test_a_ddpmpp_starts_with_a_velocity_of_zero_and_a_gradient() -> None:
    config = read_config("cifar10")[0].model_copy(update={"nf": 8, "num_res_blocks": 1})
    torch.manual_seed(0)
    network = NCSNpp(config)
    initialise(network)
    x, t = torch.randn(2, 3, 32, 32), torch.rand(2)
    assert not network(x, t).any()
    trained = train(
        network, lambda network, *_: (network(x, t) - x).square().mean(), settings(iterations=60)
    )
    assert trained.curve[-1]["loss"] < 0.9  # 1 with a velocity of 0


def settings(**change: object) -> TrainingSettings:
    values = {
        "iterations": 20, "batch_size": 8, "learning_rate": 2e-3,
        "learning_rate_schedule": "constant", "warmup": 0, "gradient_clip": 1.0, "ema_decay": 0.9,
    }  # fmt: skip
    return TrainingSettings.model_validate(values | change)


@needs_gpu
@pytest.mark.parametrize("share", [device_rows.LARGEST_SHARE, 0.0])
def test_rows_on_a_gpu_whether_they_fit_or_not(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    array = np.random.default_rng(0).standard_normal((50, 4, 3, 32, 32)).astype(np.float32)
    monkeypatch.setattr(device_rows, "LARGEST_SHARE", share)
    rows = DeviceRows.of(array, gpu)
    assert (rows.resident is None) == (share == 0)
    batch = rows.batches(index_of)
    for step in (0, 1, 2, 3, 9, 10):
        of_step = index_of(step, BatchShare())
        assert np.array_equal(batch(step, BatchShare()).cpu().numpy(), array[of_step])
        assert np.array_equal(rows.take(*of_step).cpu().numpy(), array[of_step])


@needs_gpu
def test_rows_in_half_precision_where_only_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    array = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    free = torch.cuda.mem_get_info(gpu)[0]
    monkeypatch.setattr(device_rows, "LARGEST_SHARE", 0.75 * array.nbytes / free)
    rows = DeviceRows.of(array, gpu, halve=True)
    assert rows.resident is not None
    assert rows.resident.dtype == torch.float16
    taken = rows.take(np.arange(64))
    assert taken.dtype == torch.float32
    np.testing.assert_allclose(taken.cpu().numpy(), array, rtol=1e-3, atol=1e-7)


@needs_gpu
@pytest.mark.parametrize("share", [device_rows.LARGEST_SHARE, 0.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_no_step_on_a_gpu_waits_for_it(
    compiled: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(device_rows, "LARGEST_SHARE", share)
    images = np.random.default_rng(0).integers(256, size=(500, 3, 32, 32)).astype(np.uint8)
    config = read_config("cifar10")[0].model_copy(update={"nf": 32, "num_res_blocks": 1})
    network = NCSNpp(config)
    initialise(network)
    names = list(network.state_dict())
    batch = DeviceRows.of(images, gpu).batches(
        lambda step, share: (share.take(step_generator(0, step).integers(500, size=64)),)
    )

    def loss(network, step, share):
        draw = device_generator(0, step, gpu)
        noise = torch.randn((64, 3, 32, 32), generator=draw, device=gpu)
        t = torch.rand(64, generator=draw, device=gpu)
        pixels = from_uint8(batch(step, share))
        return flow_matching_loss(network, pixels, share.take(noise), share.take(t))

    done = 0

    def on_step(steps: int) -> None:
        nonlocal done
        done += steps
        if done == 5:  # compiled, and all memory there
            torch.cuda.set_sync_debug_mode("error")
        elif done == 18:
            torch.cuda.set_sync_debug_mode("default")

    try:
        trained = train(
            network.to(gpu), loss, settings(iterations=60), precision="bfloat16",
            compile=compiled, on_step=on_step, log_every=20,
        )  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert list(trained.network.state_dict()) == names
    assert trained.curve[-1]["loss"] < trained.curve[0]["loss"]
