"""Which distance is the smaller by more than chance, against Student's t by hand."""

import numpy as np
import pytest

from boss_core.errors import InputError
from boss_core.evaluation.comparison import (
    Best,
    Estimate,
    best_of,
    jackknife_error,
    paired_difference,
)


def draws(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count)


def test_the_error_of_a_mean_is_the_textbooks() -> None:
    """Of a mean the jackknife is exact: s / sqrt(n), with a sample in each block."""
    x = draws(3, 12)
    left_out = np.array([np.delete(x, i).mean() for i in range(12)])
    assert jackknife_error(left_out) == pytest.approx(x.std(ddof=1) / np.sqrt(12))


def estimate(value: float, seed: int, spread: float) -> Estimate:
    return Estimate(value, value + spread * draws(seed, 20))


def test_best_is_who_is_ahead_by_more_than_chance() -> None:
    near, level, behind = estimate(1.0, 0, 0.01), estimate(1.05, 1, 0.01), estimate(2.0, 2, 0.01)
    assert best_of({"b": behind, "n": near}) == Best("n", ("n",), 1)
    found = best_of({"l": level, "b": behind, "n": near})
    assert found == Best("n", ("l", "n"), 2)
    # The interval by hand: Student's t of 19 degrees of freedom at 2.5 % over two rivals is 2.433.
    apart = paired_difference(level, near)
    error = np.sqrt(19 * np.var(level.replicates - near.replicates))
    assert apart.standard_error == pytest.approx(error)
    assert apart.interval(rivals=2) == pytest.approx(
        (0.05 - 2.4334 * error, 0.05 + 2.4334 * error), rel=1e-4
    )
    assert apart.interval() == pytest.approx((0.05 - 2.093 * error, 0.05 + 2.093 * error), rel=1e-3)
    # By the same noise: both far from sure, and the difference sure.
    wide = estimate(1.0, 3, 1.0)
    moved = Estimate(1.05, wide.replicates + 0.05)
    assert best_of({"w": wide, "m": moved}).level == ("w",)
    # A copy is no rival, and level.
    assert best_of({"n": near, "copy": near, "b": behind}) == Best("n", ("n", "copy"), 1)
    assert best_of({"n": near}) == Best("n", ("n",), 0)
    with pytest.raises(InputError, match="20 and 6 blocks"):
        paired_difference(near, Estimate(1.0, draws(0, 6)))
