"""The predicted error of given steps under a solver: the summed costs of its steps (eq. 5).

The error of every step is a weighted sum of velocity increments (see `boss_core.cost` and
`boss_core.two_step`), so that its mean square is a quadratic form in their Gram matrix.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from boss_core.cost import CostMatrix
from boss_core.errors import InputError
from boss_core.timesteps import validate_timesteps


@dataclass(frozen=True)
class Prediction:
    """error: summed over the steps, in the unit of the cost matrix. standard_error: from its spread
    between groups of trajectories; None where there is one group only."""

    error: float
    standard_error: float | None


def predict(matrix: CostMatrix, indices: Sequence[int], solver: str = "euler") -> Prediction:
    """The predicted error of the steps between increasing grid indices from 0 to n. InputError for
    other indices, and for a solver that is neither ``euler`` nor ``ab2``."""
    weights = _weights(matrix.timesteps, indices, solver)
    upper = np.triu(matrix.group_gram)
    grams = upper + np.triu(upper, k=1).swapaxes(1, 2)
    of_group = ((weights @ grams) * weights).sum(axis=(1, 2))
    groups = len(grams)
    sizes = [len(range(group, matrix.samples, groups)) for group in range(groups)]
    spread = float(of_group.std(ddof=1) / np.sqrt(groups)) if groups > 1 else None
    # A sum of squares that rounds to a negative number is a zero.
    return Prediction(max(0.0, float(np.average(of_group, weights=sizes))), spread)


def _weights(timesteps: ArrayLike, indices: Sequence[int], solver: str) -> NDArray[np.float64]:
    """(K, n+1): the weight of each increment in the error of each step."""
    times = validate_timesteps(timesteps)
    n, nodes = len(times) - 1, list(indices)
    if nodes[:1] != [0] or nodes[-1:] != [n] or any(np.diff(nodes) <= 0):
        raise InputError(f"indices: {nodes}; increasing grid indices from 0 to {n} needed")
    if solver not in ("euler", "ab2"):
        raise InputError(f"solver: {solver!r}; euler or ab2 needed")
    weights = np.zeros((len(nodes) - 1, n + 1))
    for step, (j, k) in enumerate(itertools.pairwise(nodes)):
        weights[step, j + 1 : k] = times[k] - times[j + 1 : k]
        if solver == "ab2" and step:
            i = nodes[step - 1]
            weights[step, i + 1 : j + 1] = -((times[k] - times[j]) ** 2) / (
                2 * (times[j] - times[i])
            )
    return weights
