"""Which of several distances is the smaller, by more than chance.

A distance comes with its jackknife replicates: what it is without each block of the samples in
turn. Their spread is its standard error (Efron and Tibshirani 1993, An Introduction to the
Bootstrap, eq. 11.5, with blocks for single samples). Sets of samples from the same noise are
compared in pairs, block by block: what the noise does to both of them cancels. All have the same
reference images, which are taken as given.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # that of scipy.stats takes a second to import

from boss_core.errors import InputError


@dataclass(frozen=True)
class Estimate:
    """A distance with its uncertainty.

    value: of all samples.
    replicates: (blocks,) float64, the distance without each block of samples: sample i is in
        block i modulo their number.
    """

    value: float
    replicates: NDArray[np.float64]

    @property
    def standard_error(self) -> float:
        """Of the value, over the noise that the samples start from."""
        return jackknife_error(self.replicates)


@dataclass(frozen=True)
class Difference:
    """A distance less another of samples from the same noise.

    value: the first less the second, below 0 where the first is nearer; standard_error: of it.
    blocks: that it comes from, for Student's t.
    """

    value: float
    standard_error: float
    blocks: int

    def interval(self, level: float = 0.95, rivals: int = 1) -> tuple[float, float]:
        """That holds the difference with this probability, for so many differences at once
        (Bonferroni), by Student's t of ``blocks - 1`` degrees of freedom."""
        half = self.standard_error * _bar(self.blocks, level, rivals)
        return self.value - half, self.value + half


@dataclass(frozen=True)
class Best:
    """The smallest of several distances, and those that cannot be told from it.

    name: of the smallest.
    level: the names, in their order, of all that are not further than it by more than chance, its
        own included; it is the best where it stands there alone.
    rivals: different sets of samples beside the smallest's, which the bar depends on.
    """

    name: str
    level: tuple[str, ...]
    rivals: int


def jackknife_error(replicates: NDArray[np.float64]) -> float:
    """The standard error of a number by what it is without each of as many blocks."""
    return float(np.sqrt((len(replicates) - 1) * np.var(replicates)))


def paired_difference(first: Estimate, second: Estimate) -> Difference:
    """The distance of one set of samples less that of another from the same noise, to the same
    reference. InputError for estimates of different numbers of blocks."""
    counts = len(first.replicates), len(second.replicates)
    if counts[0] != counts[1]:
        raise InputError(
            f"paired_difference: {counts[0]} and {counts[1]} blocks; estimates from the same noise,"
            " with as many blocks, needed"
        )
    error = jackknife_error(first.replicates - second.replicates)
    return Difference(first.value - second.value, error, counts[0])


def best_of(found: Mapping[str, Estimate]) -> Best:
    """Which of these distances is the smallest, and which of the others are level with it.

    found: at least one, all of samples from the same noise. Another is behind where the paired
    difference is beyond chance: Student's t at 2.5 %, over the number of rivals (Bonferroni), as
    `boss_core.search.choose.choose` has it: the best of m looks better than it is. The same samples
    under two names are one rival, and level with each other.
    """
    name = min(found, key=lambda each: found[each].value)
    best = found[name]
    rivals = len({(each.value, each.replicates.tobytes()) for each in found.values()}) - 1
    level = []
    for other, estimate in found.items():
        behind = paired_difference(estimate, best)
        if behind.interval(rivals=max(1, rivals))[0] <= 0:
            level.append(other)
    return Best(name, tuple(level), rivals)


def _bar(blocks: int, level: float, rivals: int) -> float:
    """How many standard errors a difference has to be from 0."""
    return float(stdtrit(blocks - 1, 1 - (1 - level) / 2 / rivals))
