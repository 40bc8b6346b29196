"""Fitted weights: closed forms of linear flows, the order of convergence, brute force, and what
cannot be fitted."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from boss_core.costs.fine_states import roll_out_states
from boss_core.costs.fit import RIDGES, fit_paths, fit_weights
from boss_core.errors import InputError
from boss_core.ode.noise import sample_noise
from boss_core.ode.solver_table import weights_of_steps
from boss_core.ode.solvers import ab2, multistep
from boss_core.ode.timesteps import uniform
from tests.helpers.costs import smooth

NOISE = sample_noise(range(60), (4,), seed=5).double()


def fine(velocity, times, noise=NOISE, **more):
    """The states at some times, by RK45."""
    return roll_out_states(velocity, noise, times, reference="rk45", batch_size=100, **more)


def sampled(velocity, times, weights, noise=NOISE):
    return multistep("multistep", velocity, noise, times, weights=weights)


def test_a_linear_flow_is_its_exact_exponential() -> None:
    def velocity(x, t):
        return -2.0 * x

    times = np.array([0.0, 0.3, 0.5, 1.0])
    states = [np.exp(-2 * t) * NOISE for t in times]
    found = fit_weights(velocity, states, times, order=2, batch_size=60)
    # Euler's first step leaves (1 - 0.6) x; the second solves for where the exponential is.
    y, v = 0.4, (-2.0, -0.8)
    w = (np.exp(-1.0) - y - 0.2 * v[1]) / (0.2 * (v[0] - v[1]))
    assert found.weights[0] == (1.0,)
    np.testing.assert_allclose(found.weights[1], (1 - w, w), rtol=1e-5)
    ends = sampled(velocity, times, found.weights)
    np.testing.assert_allclose(ends, np.exp(-2.0) * NOISE, rtol=1e-4)
    assert found.error < 1e-8
    assert max(map(max, found.standard_error)) < 1e-6


def test_two_rates_need_three_velocities() -> None:
    rates = torch.tensor([-2.0, -0.5, 1.0, 1.0]).double()
    rates[3] = -2.0
    rates[2] = -0.5

    def velocity(x, t):
        return rates * x

    times = np.array([0.0, 0.25, 0.6, 0.7, 1.0])
    states = [torch.exp(rates * t) * NOISE for t in times]
    two, three = (
        fit_weights(velocity, states, times, order=order, batch_size=7) for order in (2, 3)
    )
    exact = states[-1]
    assert (sampled(velocity, times, three.weights) - exact).abs().max() < 1e-4
    assert (sampled(velocity, times, two.weights) - exact).abs().max() > 1e-3
    assert three.error < 1e-8 < two.error


def test_each_step_is_the_least_that_its_weights_can_leave() -> None:
    times = np.array([0.0, 0.2, 0.45, 0.8, 1.0])
    states = fine(smooth, times)
    found = fit_weights(smooth, states, times, batch_size=25, ridges=(1e-9,))
    for k in (1, 2, 3):

        def left(free: np.ndarray, k: int = k) -> float:
            weights = (*found.weights[:k], (1 - free.sum(), *free))
            part = np.array([*times[: k + 1], 1.0])  # steps as long as they are, up to knot k + 1
            kept: list[torch.Tensor] = []
            multistep(
                "multistep", smooth, NOISE, part, weights=(*found.weights[:k], (1.0,)),
                observer=lambda i, x, v: kept.append((x, v)),
            )  # fmt: skip
            y = kept[k][0]
            for weight, (_, v) in zip(weights[k], reversed(kept[: k + 1]), strict=False):
                y = y + (times[k + 1] - times[k]) * weight * v
            return float((y - states[k + 1]).square().sum())

        start = np.array(found.weights[k][1:])
        best = minimize(left, start, method="Nelder-Mead", options={"xatol": 1e-7}).fun
        assert left(start) <= best * (1 + 1e-4)


def test_errors_fall_with_the_order_of_convergence() -> None:
    exact = fine(smooth, uniform(1))[-1]

    def error(steps: int, order: int) -> float:
        times = uniform(steps)
        weights = fit_weights(smooth, fine(smooth, times), times, order=order, batch_size=60)
        return float((sampled(smooth, times, weights.weights) - exact).square().mean().sqrt())

    for order in (2, 3):
        few, more = error(32, order), error(64, order)
        assert np.log2(few / more) > order - 0.15
        plain = ab2(smooth, NOISE, uniform(32))
        assert few < float((plain - exact).square().mean().sqrt())


def test_batches_labels_and_counts() -> None:
    def velocity(x, t, labels):
        return smooth(x, t) * (1 + labels.view(-1, 1))

    labels = torch.arange(60) % 2
    times = uniform(4)
    states = fine(velocity, times, labels=labels)
    seen: list[int] = []
    found = fit_weights(
        velocity, states, times, batch_size=7, labels=labels, on_evaluations=seen.append
    )
    assert sum(seen) == 4 * 60
    assert max(seen) == 7
    whole = fit_weights(velocity, states, times, batch_size=60, labels=labels)
    for a, b in zip(found.weights, whole.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    assert [len(of) for of in found.weights] == [1, 2, 3, 3]
    np.testing.assert_allclose([sum(of) for of in found.weights], 1, atol=1e-12)


def test_paths_side_by_side_are_those_of_each_alone() -> None:
    times = uniform(6)
    states = fine(smooth, times)
    paths = [(0, 2, 3, 6), (0, 6), (0, 1, 2, 3, 5, 6), (0, 4, 6)]
    seen: list[int] = []
    together = fit_paths(smooth, states, times, paths, batch_size=25, on_evaluations=seen.append)
    assert sum(seen) == 60 * (1 + 2 + 0 + 4 + 1)  # the velocities at the noise are of all
    for path, found in zip(paths, together, strict=True):
        alone = fit_weights(smooth, states[list(path)], times[list(path)], batch_size=25)
        for a, b in ((found.weights, alone.weights), (found.standard_error, alone.standard_error)):
            for of_step, wanted in zip(a, b, strict=True):
                np.testing.assert_allclose(of_step, wanted, rtol=1e-9, atol=1e-12)
        assert found.ridge == alone.ridge
        ends = sampled(smooth, times[list(path)], found.weights)
        error = float((ends - states[-1]).square().sum(1).mean())
        assert [found.error, alone.error] == pytest.approx([error, error])
    assert fit_paths(smooth, states, times, [], batch_size=25) == []
    with pytest.raises(
        InputError, match=r"paths: \(0, 3, 2, 6\); increasing grid indices from 0 to"
    ):
        fit_paths(smooth, states, times, [*paths, (0, 3, 2, 6)], batch_size=25)


@pytest.mark.parametrize("late", [-0.1, 0.3, 0.6])
def test_one_of_several_paths_that_explodes_is_named(late: float) -> None:
    """That of two steps goes on from where the network is not finite; that of one does not."""
    times = uniform(4)
    states = fine(smooth, times)

    def explodes(x, t):
        return torch.where((t > late).view(-1, 1) & (t != 0.5).view(-1, 1), x * torch.inf, x)

    if late > 0:
        assert fit_paths(explodes, states, times, [(0, 2, 4), (0, 4)], batch_size=60)
    with pytest.raises(InputError, match=r"velocity: states of [123] steps are not finite at t = "):
        fit_paths(explodes, states, times, [(0, 2, 4), (0, 4), (0, 1, 3, 4)], batch_size=60)


def test_standard_errors_are_the_spread_over_draws_of_noise() -> None:
    times = uniform(4)
    draws = [sample_noise(range(200), (4,), seed=seed).double() for seed in range(40)]
    found = [
        fit_weights(smooth, fine(smooth, times, x), times, batch_size=200, ridges=(1e-6,))
        for x in draws
    ]
    # Of the first step with weights: those after it move with the steps before them too.
    spread = np.std([of.weights[1] for of in found], axis=0, ddof=1)
    said = np.mean([of.standard_error[1] for of in found], axis=0)
    np.testing.assert_allclose(said, spread, rtol=0.3)


def test_few_noises_are_drawn_to_adams_bashforth_where_they_tell_nothing() -> None:
    """Targets that are noise of their own: held-out noises want no weights of theirs."""
    times = uniform(3)
    prior = weights_of_steps("ab2", np.diff(times))[1][1]
    away: dict[tuple[float, ...], list[float]] = {RIDGES: [], (1e-9,): []}
    for seed in range(30):
        noise = sample_noise(range(10), (1,), seed).double()
        states = fine(smooth, times, noise)
        states[1:] += 20 * sample_noise(range(10, 40), (1,), seed).double().view(3, 10, 1)
        for ridges, found in away.items():
            of = fit_weights(smooth, states, times, order=2, batch_size=10, ridges=ridges)
            found.append(abs(of.weights[1][1] - prior))
    chosen, without = (np.median(found) for found in away.values())
    assert chosen < without / 2


def test_what_cannot_be_fitted_is_refused() -> None:
    times = uniform(3)
    states = fine(smooth, times)
    with pytest.raises(InputError, match="states: of 9 noises; at least 10 needed"):
        fit_weights(smooth, states[:, :9], times, batch_size=9)
    with pytest.raises(InputError, match="states: at 4 knots for 3 timesteps"):
        fit_weights(smooth, states, uniform(2), batch_size=9)
    with pytest.raises(InputError, match="order: 1; 2 to 3"):
        fit_weights(smooth, states, times, order=1, batch_size=9)

    def explodes(x, t):
        return torch.where(t.view(-1, 1) > 0.2, x * torch.inf, x)

    with pytest.raises(InputError, match=r"velocity: states of 3 steps are not finite at t = 0.66"):
        fit_weights(explodes, states, times, batch_size=60)
