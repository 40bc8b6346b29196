"""Costs against Heun's and RK45's path, from the definition on the solver's own states."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch

from boss_core.bellman.objectives import group_step_costs, step_costs
from boss_core.costs.matrix import CostSum, add_trajectories, estimate_cost_matrix, rollout_bytes
from boss_core.costs.references import TOLERANCE, roll_out_path
from boss_core.ode.noise import sample_labels, sample_noise
from boss_core.ode.solvers import heun, rk45
from boss_core.ode.timesteps import karras, quadratic, uniform
from boss_core.ode.velocity import CountedVelocity, with_labels
from tests.helpers.costs import ab2_costs

SOLVERS = {"heun": heun, "rk45": partial(rk45, rtol=TOLERANCE, atol=TOLERANCE)}
RATE = 1.3


def smooth(x, t):
    t = t.view(-1, 1)
    return torch.sin(3 * x + 4 * t) + x * t**2


def conditional(x, t, labels):
    return smooth(x, t) * (1 + labels.view(-1, 1)) + labels.view(-1, 1)


def linear(x, t):
    return RATE * x


def path(reference: str, velocity, noise, grid):
    """States and velocities at all grid points but, of these, the last: float64."""
    states = []
    # What a network of the noise's dtype makes of states that are kept in float64.
    narrow = lambda x, t: velocity(x.to(noise.dtype), t.to(noise.dtype)).double()  # noqa: E731
    keep = lambda k, x, v: states.append(x.clone())  # noqa: E731
    SOLVERS[reference](narrow, noise.double(), grid, observer=keep)
    times = torch.as_tensor(grid)
    return states, [narrow(states[k], times[k].expand(len(noise))) for k in range(len(grid) - 1)]


def pairwise(states, velocities, grid) -> np.ndarray:
    """The cost of each sample and pair, as eq. 5 is written: (N, n+1, n+1)."""
    cost = np.zeros((len(states[0]), len(grid), len(grid)))
    for i, j in itertools.combinations(range(len(grid)), 2):
        error = states[j] - states[i] - (grid[j] - grid[i]) * velocities[i]
        cost[:, i, j] = error.square().sum(dim=1).numpy()
    return cost


@pytest.mark.parametrize("reference", ["heun", "rk45"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("grid", [uniform(60), karras(30), quadratic(40)], ids=str)
def test_equals_the_definition_on_every_entry(reference: str, dtype, grid) -> None:
    noise = sample_noise(range(27), (37,), seed=1).to(dtype)
    expected = pairwise(*path(reference, smooth, noise, grid), grid)
    found = estimate_cost_matrix(smooth, noise, grid, batch_size=27, reference=reference)
    above = np.triu_indices(len(grid), k=1)
    mean = expected.mean(axis=0)
    assert mean[above].min() > 0  # one grid step too
    np.testing.assert_allclose(found.cost[above], mean[above], rtol=1e-6, atol=0)
    assert (np.tril(found.cost) == 0).all()
    error = expected.std(axis=0, ddof=1) / np.sqrt(len(noise))
    np.testing.assert_allclose(found.standard_error[above], error[above], rtol=1e-3)
    norm = np.sqrt(expected).mean(axis=0)
    np.testing.assert_allclose(found.norm[above], norm[above], rtol=1e-6, atol=0)
    for group in (0, 19):
        square = expected[group::20].mean(axis=0)
        np.testing.assert_allclose(found.group_cost[group][above], square[above], rtol=1e-6)


@pytest.mark.parametrize("reference", ["heun", "rk45"])
@pytest.mark.parametrize("grid", [uniform(14), quadratic(12)], ids=str)
def test_every_two_step_step_costs_what_its_definition_says(reference: str, grid) -> None:
    noise = sample_noise(range(7), (5,), seed=0).double()
    states, velocities = path(reference, smooth, noise, grid)
    matrix = estimate_cost_matrix(smooth, noise, grid, batch_size=7, reference=reference)
    found = ab2_costs(matrix.gram, grid)
    expected = np.zeros((len(noise), *found.shape))
    for i, j, k in itertools.combinations(range(len(grid)), 3):
        big, small = grid[k] - grid[j], grid[j] - grid[i]
        r = big / small
        step = states[j] + big * ((1 + r / 2) * velocities[j] - r / 2 * velocities[i])
        expected[:, i, j, k] = (step - states[k]).square().sum(dim=1).numpy()
    np.testing.assert_allclose(found, expected.mean(axis=0), rtol=1e-8, atol=1e-14)

    # Seven trajectories, so each is a group by itself.
    of_groups, of_all = group_step_costs(matrix, solver="ab2"), step_costs(matrix, solver="ab2")
    assert of_groups.after is not None
    assert of_all.after is not None
    for j, block in enumerate(of_groups.after):
        np.testing.assert_allclose(block, expected[:, :j, j, j + 1 :], rtol=1e-8, atol=1e-14)
        np.testing.assert_allclose(of_all.after[j][0], block.mean(axis=0), rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("grid", [uniform(12), quadratic(12)], ids=str)
def test_a_linear_flow_in_closed_form(grid) -> None:
    """x(t) = x_0 exp(a t): what RK45 finds, Euler's and the two-step steps err by."""
    noise = sample_noise(range(5), (4,), seed=3).double()
    total = CostSum(grid, reference="rk45")
    total.add(*roll_out_path(linear, noise, grid, "rk45", tolerance=1e-12))
    matrix = total.result()
    size = float(noise.square().sum(dim=1).mean())
    x, v = np.exp(RATE * grid), RATE * np.exp(RATE * grid)
    ahead = np.triu(grid[None, :] - grid[:, None], k=1)
    error = np.triu(x[None, :] - x[:, None] - ahead * v[:, None], k=1)
    np.testing.assert_allclose(matrix.cost, size * error**2, rtol=1e-6, atol=0)

    found = ab2_costs(matrix.gram, grid)
    for i, j, k in itertools.combinations(range(len(grid)), 3):
        big, small = grid[k] - grid[j], grid[j] - grid[i]
        two_step = x[k] - x[j] - big * v[j] - big**2 / (2 * small) * (v[j] - v[i])
        assert found[i, j, k] == pytest.approx(size * two_step**2, rel=1e-5)


def test_heun_comes_to_the_closed_form_with_order_two_and_euler_with_order_one() -> None:
    noise = torch.ones(1, 1, dtype=torch.float64)
    exact = (np.exp(RATE) - 1 - RATE) ** 2
    for reference, order in (("euler", 1), ("heun", 2)):
        off = [
            estimate_cost_matrix(linear, noise, uniform(n), batch_size=1, reference=reference)
            .cost[0, n] - exact
            for n in (40, 80)
        ]  # fmt: skip
        assert np.log2(off[0] / off[1]) == pytest.approx(order, abs=0.05)


def test_a_sum_goes_on_from_its_state_in_any_batch_with_labels() -> None:
    """Heun's: RK45 chooses its steps for a whole batch."""
    noise, labels = sample_noise(range(33), (6,), seed=0), sample_labels(range(33), 3, seed=1)
    grid = quadratic(20)
    expected = pairwise(*path("heun", with_labels(conditional, labels), noise, grid), grid)
    first = CostSum(grid, reference="heun")
    add_trajectories(first, conditional, noise[:25], batch_size=25, labels=labels[:25])
    again = CostSum.from_state(first.state())
    add_trajectories(again, conditional, noise[25:], batch_size=3, labels=labels[25:])
    found = again.result()
    above = np.triu_indices(21, k=1)
    np.testing.assert_allclose(found.cost[above], expected.mean(axis=0)[above], rtol=1e-6)
    group = expected[3::20].mean(axis=0)
    np.testing.assert_allclose(found.group_cost[3][above], group[above], rtol=1e-6)


def test_a_state_of_before_there_were_others_is_eulers() -> None:
    total = CostSum(uniform(5))
    add_trajectories(total, smooth, sample_noise(range(3), (4,), seed=0), batch_size=3)
    state = {name: value for name, value in total.state().items() if name != "reference"}
    again = CostSum.from_state(state)
    assert again.reference == "euler"
    np.testing.assert_array_equal(again.result().cost, total.result().cost)


def test_evaluations_and_times() -> None:
    noise, seen = sample_noise(range(4), (3,), seed=0), []

    def watched(x, t):
        seen.append(float(t[0]))
        return smooth(x, t)

    counted = CountedVelocity(smooth)
    estimate_cost_matrix(counted, noise, uniform(20), batch_size=4, reference="heun")
    assert counted.nfe == 2 * 20
    counted = CountedVelocity(smooth)
    SOLVERS["rk45"](counted, noise.double(), uniform(20))
    own = counted.nfe
    estimate_cost_matrix(watched, noise, uniform(20), batch_size=4, reference="rk45")
    assert abs(len(seen) - (own + 20)) <= 12  # the velocity in float32: a step more or less
    assert max(seen) == 1.0  # none past the end, where a network has not been trained


def test_says_how_much_it_holds() -> None:
    assert rollout_bytes(100, 3072, 20, reference="heun") == 100 * 20 * 3072 * (4 + 4)
    found = rollout_bytes(100, 3072, 20, torch.bfloat16, reference="rk45")
    assert found == 20 * 3072 * (100 * (2 + 4) + 101 * 8)


@pytest.mark.parametrize("reference", ["heun", "rk45"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_velocity_that_is_not_finite_is_named_with_its_time(reference: str, bad: float) -> None:
    def velocity(x, t):
        return torch.where(t.view(-1, 1) > 0.95, bad, 1.0) * torch.ones_like(x)

    with pytest.raises(ValueError, match=r"velocity: not finite at t = (0\.9|1)"):
        estimate_cost_matrix(
            velocity, torch.zeros(4, 3), uniform(10), batch_size=2, reference=reference
        )


def test_what_cannot_be_is_refused() -> None:
    noise = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="reference: 'ab2'; euler, heun, rk45 known"):
        estimate_cost_matrix(smooth, noise, uniform(4), batch_size=4, reference="ab2")
    with pytest.raises(ValueError, match="residuals: none for a sum over heun trajectories"):
        CostSum(uniform(4), reference="heun").add(torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match="residuals: some for a sum over euler trajectories"):
        CostSum(uniform(4)).add(torch.zeros(4, 2, 3), torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match=r"shape \(4, 2\) for states of shape \(4, 3\)"):
        estimate_cost_matrix(
            lambda x, t: x[:, :2], noise, uniform(4), batch_size=4, reference="heun"
        )
