"""The forward recursion against a plain one, and against the solvers."""

import numpy as np
import pytest
import torch

from boss_core.ode.noise import sample_labels, sample_noise
from boss_core.ode.solvers import SOLVERS, euler
from boss_core.ode.timesteps import quadratic, uniform
from boss_core.ode.velocity import CountedVelocity
from boss_core.search.forward import oss_paths

GRID = quadratic(9)
N = len(GRID) - 1


def velocity(x, t):
    t = t.view(-1, 1, 1)
    return torch.sin(3 * x + 4 * t) + x * t**2


def noise(samples: int = 7) -> torch.Tensor:
    return sample_noise(range(samples), (2, 3), seed=0).double()


def run(solver: str, times, x: torch.Tensor) -> torch.Tensor:
    """Where a solver is after the first steps of a path that need not end at 1."""
    if len(times) == 1:
        return x
    # Time runs from 0 to 1 for a solver: the same steps, stretched.
    end = times[-1]
    stretched = [t / end for t in times[:-1]] + [1.0]
    return SOLVERS[solver](lambda x, t: end * velocity(x, end * t), x, stretched)


def plain(solver: str, budget: int) -> tuple[tuple[int, ...], float]:
    """The recursion as it is written; the state at the end of a path is run from the start."""
    states: list[torch.Tensor] = []
    euler(velocity, noise(), GRID, observer=lambda k, x, v: states.append(x.clone()))

    def error(path: tuple[int, ...]) -> float:
        end = run(solver, [float(GRID[i]) for i in path], noise())
        return float((states[path[-1]] - end).square().flatten(1).sum(dim=1).mean())

    best = {0: (0,)}
    for _ in range(budget):
        best = {
            j: min(((*path, j) for i, path in sorted(best.items()) if i < j), key=error)
            for j in range(1, N + 1)
            if any(i < j for i in best)
        }
    return best[N], error(best[N])


@pytest.mark.parametrize("solver", ["euler", "ab2"])
@pytest.mark.parametrize("batch_size", [3, 7])
def test_equals_the_plain_recursion(solver: str, batch_size: int) -> None:
    budgets = [1, 2, 3, 4, 6]
    found = oss_paths(velocity, noise(), GRID, budgets, solver=solver, batch_size=batch_size)
    assert list(found) == budgets
    for budget in budgets:
        indices, error = plain(solver, budget)
        assert found[budget].indices == indices
        assert found[budget].cost == pytest.approx(error, rel=1e-9)


def test_every_fine_step_is_the_teacher_itself() -> None:
    x = noise().float()
    path = oss_paths(velocity, x, uniform(12), [12], batch_size=4)[12]
    assert path.indices == tuple(range(13))
    assert path.cost == 0.0


def test_one_step_is_euler_for_both() -> None:
    last = euler(velocity, noise(), GRID)
    one = euler(velocity, noise(), [0, 1])
    error = float((last - one).square().flatten(1).sum(dim=1).mean())
    for solver in ("euler", "ab2"):
        path = oss_paths(velocity, noise(), GRID, [1], solver=solver, batch_size=7)[1]
        assert path.indices == (0, N)
        assert path.cost == pytest.approx(error, rel=1e-12)


def test_evaluations_are_those_it_says_and_the_noise_is_left_alone() -> None:
    counted, seen, x = CountedVelocity(velocity), [], noise()
    before = x.clone()
    oss_paths(counted, x, GRID, [2, 4], batch_size=7, on_step=seen.append)
    # The teacher's n, and a student's in every state that 1, 2 and 3 steps reach.
    assert counted.nfe == N + (N - 1) + (N - 2) + (N - 3) == len(seen)
    assert torch.equal(x, before)


def test_labels_stay_with_their_samples() -> None:
    labels = sample_labels(range(7), 3, seed=0)

    def conditional(x, t, labels):
        return velocity(x, t) * (1 + labels.view(-1, 1, 1))

    whole = oss_paths(conditional, noise(), GRID, [3], labels=labels, batch_size=7)
    parts = oss_paths(conditional, noise(), GRID, [3], labels=labels, batch_size=2)
    assert whole[3].indices == parts[3].indices
    end = euler(lambda x, t: conditional(x, t, labels), noise(), GRID[list(whole[3].indices)])
    fine = euler(lambda x, t: conditional(x, t, labels), noise(), GRID)
    error = float((end - fine).square().flatten(1).sum(dim=1).mean())
    assert whole[3].cost == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"solver": "heun"}, "solver: 'heun'; euler or ab2"),
        ({"budgets": [0]}, f"budget: 0; 1..{N}"),
        ({"budgets": [N + 1]}, f"budget: {N + 1}; 1..{N}"),
        ({"noise": noise()[:0]}, "noise: 0 samples in batches of 7"),
        ({"labels": torch.zeros(3)}, "labels: 3 for 7 samples"),
        ({"velocity": lambda x, t: x * np.nan}, "velocity: not finite"),
        ({"velocity": lambda x, t: x.float()}, "torch.float32 for states of torch.float64"),
    ],
)
def test_what_cannot_be_is_refused(given, says: str) -> None:
    rest = {"velocity": velocity, "noise": noise(), "timesteps": GRID, "budgets": [2]} | given
    with pytest.raises(ValueError, match=says):
        oss_paths(batch_size=7, **rest)
