"""The predicted error of any steps."""

import numpy as np
import pytest

from boss_core.bellman.objectives import optimal_steps
from boss_core.bellman.predicted import PredictedErrors
from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.ode.noise import sample_noise
from boss_core.ode.solver_table import SEARCHED
from boss_core.ode.timesteps import uniform
from tests.helpers.costs import smooth

MATRIX = estimate_cost_matrix(
    smooth, sample_noise(range(60), (3,), seed=1), uniform(15), batch_size=60
)


@pytest.mark.parametrize("solver", SEARCHED)
def test_it_is_what_the_search_minimised(solver: str) -> None:
    errors = PredictedErrors(MATRIX, solver)
    for budget, path in optimal_steps(MATRIX, [1, 2, 4, 7], solver=solver).items():
        error, spread = errors.of(path.indices)
        assert error == pytest.approx(path.cost, rel=1e-4), budget
        assert 0 < spread < error
        assert errors.of((*range(budget), 15))[0] >= error * (1 - 1e-6)


def test_its_standard_error_is_the_spread_between_groups() -> None:
    path = (0, 4, 9, 15)
    each = [sum(cost[i, j] for i, j in ((0, 4), (4, 9), (9, 15))) for cost in MATRIX.group_cost]
    error, spread = PredictedErrors(MATRIX).of(path)
    assert error == pytest.approx(np.mean(each), rel=1e-9)  # groups of three each
    assert spread == pytest.approx(np.std(each, ddof=1) / np.sqrt(20), rel=1e-9)
