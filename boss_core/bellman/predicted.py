"""The predicted error of any steps: what they cost on the fine trajectories, and how sure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from boss_core.bellman.objectives import StepCosts, group_step_costs, path_values
from boss_core.costs.fitted import path_costs, path_weights
from boss_core.costs.matrix import CostMatrix
from boss_core.ode.solver_table import LARGEST_ORDER, SOLVERS


@dataclass(frozen=True)
class PredictedErrors:
    """Of steps of one solver on the grid of a matrix.

    order: velocities of a step of ``multistep``, whose weights are those that are best for each
    step on the fine trajectories (`boss_core.costs.fitted.path_weights`).
    """

    matrix: CostMatrix
    solver: str = "euler"
    order: int = LARGEST_ORDER

    def of(self, indices: Sequence[int]) -> tuple[float, float | None]:
        """The mean summed cost of a path, given by its grid indices, and its standard error, from
        the spread between groups; None for that where there is one group only."""
        each = self._each(indices)
        error = None if len(each) < 2 else float(each.std(ddof=1) / np.sqrt(len(each)))
        return float(np.average(each, weights=self.matrix.group_sizes)), error

    def _each(self, indices: Sequence[int]) -> NDArray[np.float64]:
        """(G,): over each group of trajectories."""
        if not SOLVERS[self.solver].fitted:
            return path_values(self._costs, indices)
        matrix = self.matrix
        weights = path_weights(matrix.gram, matrix.timesteps, indices, self.order)
        return path_costs(matrix.group_grams, matrix.timesteps, indices, weights).sum(axis=-1)

    @cached_property
    def _costs(self) -> StepCosts:
        return group_step_costs(self.matrix, solver=self.solver)
