"""Solvers against a closed form, and their convergence orders."""

import numpy as np
import pytest
import torch

from boss_core.ode.noise import sample_noise
from boss_core.ode.solvers import ab2, euler, heun, rk45
from boss_core.ode.timesteps import karras, quadratic, uniform
from boss_core.ode.velocity import CountedVelocity
from tests.helpers.linear import Linear


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2), (ab2, 2)])
@pytest.mark.parametrize("grid", [uniform, quadratic])
def test_convergence_order(solver, order: int, grid) -> None:
    ode, x = Linear(), torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    errors = [
        float((solver(ode, x, grid(n)) - ode.solution(x)).abs().max()) for n in (80, 160, 320)
    ]
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert slopes == pytest.approx([order, order], abs=0.1)


def test_euler_by_hand() -> None:
    ode, x = Linear(), torch.tensor([[2.0]], dtype=torch.float64)
    # Two unequal steps: x1 = x0 + 0.25 a x0; x2 = x1 + 0.75 (a x1 + 0.25 b).
    x1 = 2.0 + 0.25 * -1.3 * 2.0
    expected = x1 + 0.75 * (-1.3 * x1 + 0.7 * 0.25)
    assert float(euler(ode, x, [0, 0.25, 1])) == pytest.approx(expected, abs=1e-12)


def test_ab2_by_hand() -> None:
    ode, x = Linear(), torch.tensor([[2.0]], dtype=torch.float64)
    v0 = -1.3 * 2.0
    x1 = 2.0 + 0.25 * v0
    v1 = -1.3 * x1 + 0.7 * 0.25
    # The integral from 0.25 to 1 of the line through (0, v0) and (0.25, v1).
    expected = x1 + 0.75 * v1 + 0.75**2 / 2 * (v1 - v0) / 0.25
    assert float(ab2(ode, x, [0, 0.25, 1])) == pytest.approx(expected, abs=1e-12)
    assert torch.equal(ab2(ode, x, [0, 1]), euler(ode, x, [0, 1]))


@pytest.mark.parametrize("solver", [ab2, heun, rk45])
def test_a_network_that_returns_one_buffer(solver) -> None:
    ode, buffer = Linear(), torch.empty(2, 3, dtype=torch.float64)
    x = torch.ones(2, 3, dtype=torch.float64)
    found = solver(lambda x, t: buffer.copy_(ode(x, t)), x, uniform(5))
    assert torch.equal(found, solver(ode, x, uniform(5)))


def test_rk45_keeps_its_tolerance_and_tighter_costs_more() -> None:
    ode, x = Linear(), torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    evaluations = []
    for tolerance in (1e-4, 1e-8):
        counted = CountedVelocity(ode)
        found = rk45(counted, x, rtol=tolerance, atol=tolerance)
        assert float((found - ode.solution(x)).abs().max()) < 10 * tolerance
        evaluations.append(counted.nfe)
    assert evaluations[0] < evaluations[1]


@pytest.mark.parametrize(("solver", "each"), [(euler, 1), (ab2, 1), (heun, 2)])
def test_evaluations_are_counted_at_the_call(solver, each: int) -> None:
    counted = CountedVelocity(Linear())
    solver(counted, torch.zeros(5, 3), uniform(7))
    assert counted.nfe == 7 * each
    guided = CountedVelocity(Linear(), evaluations_per_call=2)
    solver(guided, torch.zeros(5, 3), uniform(7))
    assert guided.nfe == 14 * each


@pytest.mark.parametrize("solver", [euler, ab2, heun, rk45])
def test_observer_sees_every_knot_once(solver) -> None:
    seen = {}
    x = torch.ones(2, 3, dtype=torch.float64)
    last = solver(Linear(), x, uniform(4), observer=lambda k, x, v: seen.update({k: x.clone()}))
    assert list(seen) == [0, 1, 2, 3, 4]
    assert torch.equal(seen[0], x)
    assert torch.equal(seen[4], last)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    def noise(rows: range) -> torch.Tensor:
        return sample_noise(rows, (3, 4, 4), seed=7)

    whole = noise(range(10))
    assert torch.equal(whole[6:9], noise(range(6, 9)))
    assert not torch.equal(whole, sample_noise(range(10), (3, 4, 4), seed=8))
    assert abs(float(sample_noise(range(2000), (50,), 0).std()) - 1) < 0.01
    for solver in (euler, heun):
        together = solver(Linear(), whole, karras(5))
        alone = torch.cat([solver(Linear(), noise(range(i, i + 1)), karras(5)) for i in range(10)])
        assert torch.equal(together, alone)


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ([0.0], "at least two times"),
        ([0.0, 0.5, 0.5, 1.0], "0.5 is followed by 0.5"),
        ([0.0, np.nan, 1.0], "entry 1 is not finite"),
        ([0.1, 0.9], "run from 0.1 to 0.9"),
        ([-0.1, 1.0], "run from -0.1 to 1.0"),
        ([1.0, 0.0], "run from 1.0 to 0.0"),
    ],
)
def test_timesteps_that_cannot_be_are_refused(times, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        euler(Linear(), torch.zeros(1, 1), times)
