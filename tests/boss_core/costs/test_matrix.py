"""The cost matrix against the definition (eq. 5), pair by pair in float64."""

import json

import numpy as np
import pytest
import torch

from boss_core.bellman.recursion import optimal_paths, path_standard_error
from boss_core.costs.gram import add_products
from boss_core.costs.matrix import (
    CostSum,
    add_trajectories,
    estimate_cost_matrix,
    rollout_bytes,
)
from boss_core.errors import InputError
from boss_core.ode.noise import sample_noise
from boss_core.ode.timesteps import karras, quadratic, uniform
from boss_core.ode.velocity import CountedVelocity
from tests.helpers.checkout import SHARED, needs_shared
from tests.helpers.costs import pairwise, smooth


def stiff(x, t):
    """Changes a millionfold faster at the start than at the end."""
    t = t.view(-1, 1)
    return torch.tanh(x) * torch.exp(-30 * t) * 40 + 1e-3 * torch.cos(x + t) + 5.0


@pytest.mark.parametrize("velocity", [smooth, stiff])
@pytest.mark.parametrize("grid", [uniform(60), karras(40), quadratic(50)], ids=str)
def test_equals_the_definition_on_every_entry(velocity, grid) -> None:
    noise = sample_noise(range(13), (37,), seed=1)
    expected = pairwise(velocity, noise, grid)
    found = estimate_cost_matrix(velocity, noise, grid, batch_size=5)
    far = np.triu_indices(len(grid), k=2)
    mean = expected.mean(axis=0)
    np.testing.assert_allclose(found.cost[far], mean[far], rtol=1e-6, atol=0)
    error = expected.std(axis=0, ddof=1) / np.sqrt(len(noise))
    np.testing.assert_allclose(found.standard_error[far], error[far], rtol=1e-3)
    indices = [0, 7, 19, len(grid) - 1]
    sums = expected[:, indices[:-1], indices[1:]].sum(axis=1)
    error = sums.std(ddof=1) / np.sqrt(len(noise))
    assert path_standard_error(found.group_cost, indices) == pytest.approx(error, rel=1e-6)
    norm = np.sqrt(expected).mean(axis=0)
    np.testing.assert_allclose(found.norm[far], norm[far], rtol=1e-6, atol=0)
    near = ~np.triu(np.ones_like(mean, dtype=bool), k=2)
    assert (found.cost[near] == 0).all()
    assert found.samples == 13


def test_holds_over_eight_orders_of_magnitude() -> None:
    grid = uniform(100)
    noise = sample_noise(range(8), (50,), seed=2)
    expected = pairwise(stiff, noise, grid).mean(axis=0)
    far = np.triu_indices(101, k=2)
    assert expected[far].max() / expected[far].min() > 1e8
    found = estimate_cost_matrix(stiff, noise, grid, batch_size=8)
    np.testing.assert_allclose(found.cost[far], expected[far], rtol=1e-6, atol=0)


def test_does_not_depend_on_the_batch_size_and_counts_evaluations() -> None:
    noise = sample_noise(range(10), (6,), seed=0)
    whole = estimate_cost_matrix(smooth, noise, uniform(20), batch_size=10)
    counted = CountedVelocity(smooth)
    parts = estimate_cost_matrix(counted, noise, uniform(20), batch_size=4)
    np.testing.assert_allclose(parts.cost, whole.cost, rtol=1e-6)
    assert counted.nfe == 3 * 20


def test_costs_and_their_uncertainty_do_not_depend_on_how_samples_come() -> None:
    """More trajectories than groups, so that groups hold several and unequally many."""
    noise = sample_noise(range(50), (6,), seed=0)
    expected = pairwise(smooth, noise, uniform(20))
    found = [estimate_cost_matrix(smooth, noise, uniform(20), batch_size=b) for b in (7, 50)]
    for matrix in found:
        np.testing.assert_allclose(matrix.cost[0, 20], expected[:, 0, 20].mean(), rtol=1e-6)
        groups = [expected[group::20, 0, 20].mean() for group in range(20)]
        np.testing.assert_allclose(matrix.group_cost[:, 0, 20], groups, rtol=1e-6)
        norms = [np.sqrt(expected[group::20, 0, 20]).mean() for group in range(20)]
        np.testing.assert_allclose(matrix.group_norm[:, 0, 20], norms, rtol=1e-6)
        norm = np.sqrt(expected[:, 0, 20]).mean()
        np.testing.assert_allclose(matrix.norm[0, 20], norm, rtol=1e-6)
        spread = np.std(groups, ddof=1) / np.sqrt(20)
        assert path_standard_error(matrix.group_cost, [0, 20]) == pytest.approx(spread, rel=1e-6)


def test_a_sum_goes_on_from_its_state() -> None:
    noise = sample_noise(range(33), (6,), seed=0)
    whole = estimate_cost_matrix(smooth, noise, uniform(20), batch_size=33)
    first = CostSum(uniform(20))
    add_trajectories(first, smooth, noise[:25], batch_size=25)
    again = CostSum.from_state(first.state())
    add_trajectories(again, smooth, noise[25:], batch_size=8)
    found = again.result()
    for name in ("cost", "standard_error", "norm", "group_cost", "group_norm"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-6)
    assert found.samples == 33


def test_bfloat16_velocities_are_measured_in_float64() -> None:
    noise = sample_noise(range(6), (40,), seed=0).bfloat16()
    expected = pairwise(smooth, noise, uniform(12)).mean(axis=0)
    found = estimate_cost_matrix(smooth, noise, uniform(12), batch_size=3)
    far = np.triu_indices(13, k=2)
    np.testing.assert_allclose(found.cost[far], expected[far], rtol=1e-6)


def test_says_how_much_it_holds() -> None:
    assert rollout_bytes(100, 3 * 32 * 32, 20) == 100 * 20 * 3072 * 4
    assert rollout_bytes(100, 3 * 32 * 32, 20, torch.bfloat16) == 100 * 20 * 3072 * 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_velocity_that_is_not_finite_is_named_with_its_time(bad: float) -> None:
    def velocity(x, t):
        return torch.where(t.view(-1, 1) > 0.45, bad, 1.0) * torch.ones_like(x)

    with pytest.raises(ValueError, match=r"not finite at t = 0\.5 \(step 5 of 10\)"):
        estimate_cost_matrix(velocity, torch.zeros(4, 3), uniform(10), batch_size=2)


def test_a_velocity_of_another_shape_and_no_noise_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 2\) for states of shape \(4, 3\)"):
        estimate_cost_matrix(lambda x, t: x[:, :2], torch.zeros(4, 3), uniform(4), batch_size=4)
    with pytest.raises(ValueError, match="0 samples"):
        estimate_cost_matrix(smooth, torch.zeros(0, 3), uniform(4), batch_size=4)


@needs_shared
@pytest.mark.parametrize("name", ["rf_cifar", "rf_256"])
def test_schedules_of_the_published_cost_matrices(name: str) -> None:
    folder = SHARED / "reference" / name
    expected = json.loads((folder / "expected.json").read_text())
    cost = np.load(folder / "expected.npz")["cost_matrix"]
    found = optimal_paths(cost, [int(k) for k in expected["paths"]])
    for budget, indices in expected["paths"].items():
        assert list(found[int(budget)].indices) == indices
        assert found[int(budget)].cost == pytest.approx(expected["path_cost"][budget], rel=1e-5)


@pytest.mark.parametrize("vectors", [1, 2])
def test_products_of_all_samples_at_once(vectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, in blocks of three elements, against numpy."""
    monkeypatch.setattr("boss_core.costs.gram.DEVICE_BYTES", 8 * 5 * (vectors * 4 - 1) * 3)
    rng = np.random.default_rng(0)
    v, r = rng.standard_normal((2, 4, 5, 10)).astype(np.float32)
    rows = np.diff(v, axis=0).astype(float)
    if vectors == 2:
        rows = np.stack([r[0], *(x for k in range(3) for x in (rows[k], r[k + 1]))])
    grams = torch.zeros(5, len(rows), len(rows), dtype=torch.float64)
    add_products(grams, torch.from_numpy(v), torch.from_numpy(r) if vectors == 2 else None)
    np.testing.assert_allclose(grams, np.einsum("lbe,mbe->blm", rows, rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "large"), [(torch.float64, 1e200), (torch.float32, 3e38)])
def test_velocities_that_are_finite_but_overflow_are_said_to_be(dtype, large: float) -> None:
    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sign(t - 0.6).view(-1, 1) * torch.full_like(x, large)

    with pytest.raises(InputError, match=r"velocity: finite, but up to .*: squared errors of step"):
        estimate_cost_matrix(velocity, torch.zeros(3, 2, dtype=dtype), uniform(4), batch_size=2)
