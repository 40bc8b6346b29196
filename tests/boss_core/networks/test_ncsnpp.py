"""The NCSN++ and DDPM++ networks: compiled, of each sample alone, their filters and frequencies."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import upfirdn

from boss_core.networks.ncsnpp import Downsample, Upsample
from tests.helpers.rectified_flow import SMALL, small


@pytest.mark.parametrize("layout", SMALL)
def test_network_compiles_whole(layout: str) -> None:
    network = small(layout)
    x, t = torch.randn(3, 1, 8, 8), torch.rand(3)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t), network(x, t))


@pytest.mark.parametrize("layout", SMALL)
def test_velocity_of_a_sample_does_not_depend_on_its_batch(layout: str) -> None:
    network = small(layout)
    x, t = torch.randn(5, 1, 8, 8), torch.rand(5)
    with torch.no_grad():
        alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(network(x, t), alone, rtol=1e-5, atol=1e-5)


def test_a_trainable_network_keeps_its_fourier_frequencies() -> None:
    network = small("ncsnpp").requires_grad_(True)
    trained = {name for name, _ in network.named_parameters()}
    assert network.state_dict().keys() - trained == {"all_modules.0.W"}


def test_filters_are_those_of_upfirdn() -> None:
    """scipy's upfirdn along rows and columns, cropped as Karras et al. (2020) centre it."""
    taps = np.array([1.0, 2.0, 4.0, 3.0])
    change = {"fir_kernel": tuple(taps)}
    config = small("ncsnpp").config.model_copy(update=change)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)

    def resampled(image: NDArray, axis: int, up: int, down: int) -> NDArray:
        h = taps / taps.sum() * up
        full = upfirdn(h, image, up, 1, axis=axis)
        start = 1 if up == 2 else 2
        return np.take(full, range(start, start + up * image.shape[axis], down), axis=axis)

    higher = resampled(resampled(x.numpy(), 2, 2, 1), 3, 2, 1)
    np.testing.assert_allclose(Upsample(config).double()(x), higher, rtol=1e-6, atol=1e-7)
    lower = resampled(resampled(x.numpy(), 2, 1, 2), 3, 1, 2)
    np.testing.assert_allclose(Downsample(config).double()(x), lower, rtol=1e-6, atol=1e-7)
