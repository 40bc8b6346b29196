"""What is known of the solvers, from their order conditions."""

import pytest

from boss_core.errors import InputError
from boss_core.ode.solver_table import SOLVERS, steps_of, weights_of_steps

LENGTHS = [0.1, 0.3, 0.05, 0.25, 0.2, 0.1]


@pytest.mark.parametrize(
    ("name", "degree"), [("euler", 0), ("ab2", 1)]
)  # of the velocities that a step of a full look back integrates without an error
def test_weights_integrate_polynomials_of_their_order(name: str, degree: int) -> None:
    times = [sum(LENGTHS[:k]) for k in range(len(LENGTHS) + 1)]
    for k, weights in enumerate(weights_of_steps(name, LENGTHS)):
        assert len(weights) == 1 + min(k, SOLVERS[name].looks_back)
        for power in range(min(degree, len(weights) - 1) + 1):
            exact = (times[k + 1] ** (power + 1) - times[k] ** (power + 1)) / (power + 1)
            taken = sum(w * times[k - i] ** power for i, w in enumerate(weights))
            assert LENGTHS[k] * taken == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    ("budget", "solver", "steps"), [(6, "euler", 6), (6, "ab2", 6), (6, "heun", 3)]
)
def test_the_steps_that_evaluations_pay_for(budget: int, solver: str, steps: int) -> None:
    assert steps_of(budget, solver) == steps


@pytest.mark.parametrize(("budget", "solver"), [(0, "euler"), (5, "heun"), (4, "rk4")])
def test_evaluations_that_pay_for_no_steps(budget: int, solver: str) -> None:
    with pytest.raises(InputError):
        steps_of(budget, solver)
