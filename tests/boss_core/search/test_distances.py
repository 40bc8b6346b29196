"""Distances against closed forms, scipy, an optimal assignment and torch-fidelity."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from boss_core.errors import InputError
from boss_core.ode.noise import sample_noise
from boss_core.search.distances import (
    detail_error,
    endpoint_error,
    energy,
    feature_frechet,
    sliced_wasserstein,
)


def features(x: Tensor) -> Tensor:
    """(B, ...) to (B, 6): a layer of fixed random weights."""
    weights = sample_noise(range(x[0].numel()), (6,), seed=9)
    return (x.flatten(1) @ weights).relu()


ALL = {
    "sliced_wasserstein": sliced_wasserstein,
    "energy": energy,
    "feature_frechet": lambda reference: feature_frechet(reference, features),
    "endpoint_error": endpoint_error,
}


@pytest.mark.parametrize("name", ALL)
def test_every_candidate_has_its_own_distance_and_the_reference_none(name: str) -> None:
    reference = sample_noise(range(80), (2, 3, 3), seed=0)
    near = reference + 0.1 * sample_noise(range(80), (2, 3, 3), seed=1)
    far = 2 * reference + 1
    distance = ALL[name](reference)
    found = distance(torch.stack([far, reference, near]))
    assert found.shape == (3,)
    assert found.dtype == torch.float64
    alone = torch.cat([distance(x[None]) for x in (far, reference, near)])
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
    assert float(found[1]) == pytest.approx(0, abs=1e-6)
    assert found[0] > found[2] > 1e-3


def test_sliced_wasserstein_of_a_shift() -> None:
    # Every projection is moved by <u, shift>, whose mean square over directions is |shift|^2 / d.
    x, shift = sample_noise(range(200), (8,), seed=0), torch.tensor([3.0, 0, 0, -4, 0, 0, 0, 0])
    distance = sliced_wasserstein(x, projections=4000)
    assert float(distance((x + shift)[None])) == pytest.approx(5 / np.sqrt(8), rel=0.04)


def test_sliced_wasserstein_of_gaussians() -> None:
    # On a line the distance of N(0, 1) and N(m, s^2) is sqrt(m^2 + (1 - s)^2).
    x, y = (sample_noise(range(1), (200_000, 1), seed)[0] for seed in (0, 1))
    found = sliced_wasserstein(x, projections=1)((0.5 + 1.7 * y)[None])
    assert float(found) == pytest.approx(np.sqrt(0.5**2 + 0.7**2), rel=0.01)


def test_sliced_wasserstein_on_a_line_is_the_optimal_assignment() -> None:
    x, y = (sample_noise(range(40), (1,), seed) for seed in (0, 1))
    squares = (x - y.T).square().double().numpy()
    best = squares[scipy.optimize.linear_sum_assignment(squares)].mean()
    assert float(sliced_wasserstein(x)(y[None])) == pytest.approx(np.sqrt(best), rel=1e-5)


def test_projections_come_from_the_seed_alone() -> None:
    x, y = (sample_noise(range(50), (4,), seed) for seed in (0, 1))
    found = [float(sliced_wasserstein(x, projections=5, seed=s)(y[None])) for s in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_energy_on_a_line_is_the_square_of_scipys() -> None:
    x, y = sample_noise(range(70), (1,), seed=0), 1.3 * sample_noise(range(50), (1,), seed=1) + 0.4
    expected = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert float(energy(x)(y[None])) == pytest.approx(expected, rel=1e-6)


def test_energy_of_single_points() -> None:
    # Both pairs across are 5 apart; of the four pairs within y two are 6 apart, two the same.
    x, y = torch.zeros(1, 2, 2), torch.tensor([[4.0, 3.0], [4.0, -3.0]])
    assert float(energy(y)(x)) == pytest.approx(2 * 5 - 0 - 3)


def test_frechet_distance_is_torch_fidelitys() -> None:
    x = sample_noise(range(90), (1, 4, 4), seed=0)
    y = 0.7 * sample_noise(range(60), (1, 4, 4), seed=1) + 0.2
    wide = [features(images).double() for images in (x, y)]
    expected = fid_statistics_to_metric(*map(fid_features_to_statistics, wide), verbose=False)
    found = feature_frechet(x, features)(y[None])
    assert float(found) == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


def test_frechet_distance_with_more_features_than_samples() -> None:
    # The same covariances, whatever their rank: the squared distance of the means is left.
    x = sample_noise(range(10), (30,), seed=0)
    found = feature_frechet(x, lambda images: images)((x + 0.5)[None])
    assert float(found) == pytest.approx(30 * 0.25, rel=1e-5)


def test_features_of_a_network_in_training_carry_no_gradient() -> None:
    x = sample_noise(range(10), (3,), seed=0)
    assert not feature_frechet(x, torch.nn.Linear(3, 2))(x[None]).requires_grad


def test_endpoint_error_by_hand() -> None:
    reference = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    samples = torch.tensor([[[3.0, 4.0], [1.0, 1.0]], [[1.0, 1.0], [0.0, 0.0]]])
    assert endpoint_error(reference)(samples).tolist() == [12.5, 2.0]


def test_detail_error_is_the_power_of_high_frequencies() -> None:
    """Of a wave of frequency w along a row and none down it, a pixel differs from the mean of its
    neighbours by (1 - cos w) / 2 of itself; of independent errors, by 1 + 4/16 of their variance;
    of a slope, by nothing."""
    reference = sample_noise(range(400), (3, 18, 18), seed=0)
    distance = detail_error(reference)
    across = 2 * torch.pi * torch.arange(18) / 4  # 16 inner pixels: four whole waves
    wave = torch.sqrt(torch.tensor(2.0)) * torch.cos(across).expand(18, 18)
    slope = torch.linspace(-1, 1, 18).expand(18, 18)
    error = sample_noise(range(400), (3, 18, 18), seed=1)
    found = distance(torch.stack([reference + by for by in (wave, slope, error)])).tolist()
    assert found[0] == pytest.approx(0.25, rel=1e-5)
    assert found[1] == pytest.approx(0, abs=1e-10)
    assert found[2] == pytest.approx(1.25, rel=0.01)


def test_detail_of_what_is_no_image_is_refused() -> None:
    for shape in ((5, 3), (5, 3, 2, 8)):
        with pytest.raises(InputError, match=r"reference: shape .*; images \(N, ..., H, W\)"):
            detail_error(torch.zeros(shape))
    with pytest.raises(InputError, match="samples: 6 for a reference of 5; as many"):
        detail_error(torch.zeros(5, 3, 4, 4))(torch.zeros(2, 6, 3, 4, 4))


def test_what_cannot_be_compared_is_refused() -> None:
    reference = torch.zeros(5, 3)
    for name in ALL:
        with pytest.raises(InputError, match=r"samples: shape \(2, 5, 4\) for a reference"):
            ALL[name](reference)(torch.zeros(2, 5, 4))
    for distance in (sliced_wasserstein(reference), endpoint_error(reference)):
        with pytest.raises(InputError, match="samples: 6 for a reference of 5; as many"):
            distance(torch.zeros(2, 6, 3))
    with pytest.raises(InputError, match="projections: 0; at least 1"):
        sliced_wasserstein(reference, projections=0)
