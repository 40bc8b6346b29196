"""Which networks have one thread of a CPU, and which all."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from boss_core.networks.threads import SMALL, is_small, limit_threads
from boss_core.networks.unet import UNet, UNetConfig


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_is_by_weights_times_pixels() -> None:
    """A layer of 10,000 weights at 100 x 100 pixels is at the limit, at 101 x 100 beyond."""
    assert SMALL == 1e8
    layer = nn.Conv2d(100, 100, 1, bias=False)
    assert is_small(layer, (100, 100, 100))
    assert not is_small(layer, (100, 101, 100))
    assert is_small(nn.Linear(10_000, 10_000, bias=False), (10_000,))  # a vector has one pixel


@pytest.mark.parametrize(("size", "channels", "small"), [(8, 16, True), (32, 32, False)])
def test_the_default_network_is_small(size: int, channels: int, small: bool) -> None:
    config = UNetConfig(
        image_size=size,
        channels=1,
        base_channels=channels,
        channel_multipliers=(1, 2, 2),
        blocks=1,
        attention_sizes=(4,),
    )
    network = UNet(config)
    assert is_small(network) == small
    assert is_small(network, (1, size, size)) == small
    # 16 times the pixels are 16 times the work; no network is small on images large enough.
    assert not is_small(network, (1, 256, 256))


@pytest.mark.usefixtures("two_threads")
def test_one_thread_for_small_networks_on_a_cpu_alone() -> None:
    cpu, layer = torch.device("cpu"), nn.Conv2d(100, 100, 1, bias=False)
    limit_threads(layer, (100, 101, 100), cpu)
    limit_threads(lambda x, t: x, (1, 2, 2), cpu)  # nobody knows what that computes
    limit_threads(layer, (100, 100, 100), torch.device("cuda"))
    assert torch.get_num_threads() == 2
    limit_threads(layer, (100, 100, 100), cpu)
    assert torch.get_num_threads() == 1
