"""Standard errors against the spread over repeated draws, where the distance has a closed form."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from boss_core.errors import InputError
from boss_core.evaluation.comparison import paired_difference
from boss_core.evaluation.uncertainty import blocks_of, frechet_with_error, kid_with_error


def draws(seed: int, samples: int, features: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(samples, features))


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2)."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root))


def kid(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate by its definition, a sum over pairs."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    within, others = kernel(x, x), kernel(y, y)
    within, others = within.sum() - within.trace(), others.sum() - others.trace()
    return float(within / n / (n - 1) + others / m / (m - 1) - 2 * kernel(x, y).mean())


def without(x: np.ndarray, block: int, blocks: int) -> np.ndarray:
    return x[np.arange(len(x)) % blocks != block]


@pytest.mark.parametrize(
    ("samples", "features"),
    [(90, 6), (40, 60), (90, 80), (40, 80)],
    ids=["few features", "of samples fewer", "of the reference fewer", "of both fewer"],
)
def test_replicates_are_the_distances_without_each_block(samples: int, features: int) -> None:
    """A number of samples that the blocks do not divide, too."""
    x, y = draws(0, samples, features) * 1.3 + 0.2, draws(1, 70, features)
    pair = torch.from_numpy(x), torch.from_numpy(y)
    found = frechet_with_error(*pair, blocks=7)
    assert found.value == pytest.approx(frechet(x, y), rel=1e-5)
    expected = [frechet(without(x, block, 7), y) for block in range(7)]
    assert found.replicates == pytest.approx(expected, rel=1e-5)
    shifted = kid_with_error(3.0, *pair, blocks=7)
    assert shifted.value == 3.0
    change = [kid(without(x, block, 7), y) - kid(x, y) for block in range(7)]
    assert shifted.replicates == pytest.approx(3.0 + np.array(change), rel=1e-9)


@pytest.mark.parametrize(
    ("features", "samples", "scale", "shift"),
    [(8, 400, 1.2, 0.0), (8, 400, 1.0, 0.3), (64, 1200, 1.2, 0.0), (64, 1200, 1.0, 0.15)],
)
def test_the_standard_error_is_the_spread_over_draws(
    features: int, samples: int, scale: float, shift: float
) -> None:
    """Gaussians against a given reference: the mean of the errors against the spread of the
    distances over repeated draws, and so of the difference to a second set from the same noise."""
    draw = np.random.default_rng(features)
    mix = draw.normal(size=(features, features)) / np.sqrt(features)
    reference = torch.from_numpy(draw.normal(size=(900, features)) @ mix)
    repeats = 60
    found, differences = [], []
    for _ in range(repeats):
        noise = draw.normal(size=(samples, features)) @ mix
        first, second = (
            frechet_with_error(torch.from_numpy(a * noise + b), reference)
            for a, b in ((scale, shift), (1.05 * scale, 0.9 * shift))
        )
        found.append(first)
        differences.append(paired_difference(first, second))
    for estimates in (found, differences):
        spread = np.std([each.value for each in estimates], ddof=1)
        errors = np.sqrt(np.mean([each.standard_error**2 for each in estimates]))
        assert errors == pytest.approx(spread, rel=0.25)
    # Paired, the noise cancels: alone each is surer of nothing.
    alone = np.hypot(found[0].standard_error, found[0].standard_error)
    assert differences[0].standard_error < 0.75 * alone


def test_near_no_distance_the_error_is_too_large_rather_than_too_small() -> None:
    """Where both are the same Gaussian, what is measured is chance alone, and no longer smooth."""
    draw = np.random.default_rng(0)
    reference = torch.from_numpy(draw.normal(size=(900, 8)))
    found = [
        frechet_with_error(torch.from_numpy(draw.normal(size=(400, 8))), reference)
        for _ in range(100)
    ]
    spread = np.std([each.value for each in found], ddof=1)
    assert 0.9 < np.mean([each.standard_error for each in found]) / spread < 1.6


def test_what_has_no_error_is_refused() -> None:
    x = torch.from_numpy(draws(0, 30, 4))
    assert blocks_of(30) == 15
    assert blocks_of(4) == 2
    assert blocks_of(2000) == 20

    def refused(match: str, a: Tensor = x, b: Tensor = x, blocks: int = 5) -> None:
        with pytest.raises(InputError, match=match):
            frechet_with_error(a, b, blocks)
        with pytest.raises(InputError, match=match):
            kid_with_error(0.0, a, b, blocks)

    refused("blocks: 16 of 30 samples", blocks=16)
    refused("blocks: 1 of 30 samples", blocks=1)
    refused(r"features: \(30, 4\) and \(30, 3\)", b=x[:, :3])
    refused(r"features: \(30,\) and \(30, 4\)", a=x[:, 0])
    refused("features: generated are not all finite", a=x / 0)
    refused("features: 1 of the reference", b=x[:1])
