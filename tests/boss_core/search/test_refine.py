"""Refinement against exhaustive search and against plain runs of the solvers."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from boss_core.errors import InputError
from boss_core.ode.noise import sample_noise
from boss_core.ode.solvers import SOLVERS, euler
from boss_core.ode.timesteps import karras, nearest_indices, quadratic, uniform
from boss_core.ode.velocity import CountedVelocity, scalar_time, with_labels
from boss_core.search.distances import endpoint_error, energy, sliced_wasserstein
from boss_core.search.refine import refine
from tests.helpers.mixture import mixture_velocity, rotated_velocity

NOISE = sample_noise(range(64), (2,), seed=0)
FINE = uniform(40)
REFERENCE = euler(mixture_velocity, NOISE, FINE)


def even(n: int, steps: int) -> tuple[int, ...]:
    return nearest_indices(uniform(n), uniform(steps))


def fresh(indices, distance, solver: str, grid=FINE) -> float:
    ends = SOLVERS[solver](mixture_velocity, NOISE, grid[list(indices)])
    return float(distance(ends[None]))


@pytest.mark.parametrize("solver", ["euler", "ab2"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_result_is_what_a_plain_run_gives_and_no_worse_than_its_starts(
    solver: str, steps: int
) -> None:
    distance = sliced_wasserstein(REFERENCE)
    starts = [even(40, steps), (*range(steps), 40)]
    found = refine(mixture_velocity, NOISE, FINE, starts, distance, solver=solver, batch_size=50)
    assert found.distance == pytest.approx(fresh(found.indices, distance, solver), rel=1e-6)
    begun = [fresh(start, distance, solver) for start in starts]
    assert found.distance <= min(begun) * (1 + 1e-6)
    if steps > 1:
        assert found.distance < 0.9 * min(begun)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_no_move_of_one_knot_by_one_step_is_better(solver: str) -> None:
    distance = energy(REFERENCE)
    found = refine(
        mixture_velocity, NOISE, FINE, [even(40, 4)], distance, solver=solver, batch_size=64,
        sweeps=50,
    ).indices  # fmt: skip
    best = fresh(found, distance, solver)
    for k, move in itertools.product(range(1, 4), (-1, 1)):
        moved = (*found[:k], found[k] + move, *found[k + 1 :])
        if found[k - 1] < moved[k] < found[k + 1]:
            assert fresh(moved, distance, solver) >= best * (1 - 1e-6)


@pytest.mark.parametrize("grid", [uniform(6), quadratic(6), karras(12)], ids=str)
@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_two_steps_with_all_offsets_are_the_best_of_all(solver: str, grid) -> None:
    n = len(grid) - 1
    distance = sliced_wasserstein(euler(mixture_velocity, NOISE, grid))
    best = min(range(1, n), key=lambda k: fresh((0, k, n), distance, solver, grid))
    for start in range(1, n):
        found = refine(
            mixture_velocity, NOISE, grid, [(0, start, n)], distance, solver=solver,
            batch_size=64, offsets=[range(1, n)],
        )  # fmt: skip
        assert found.indices == (0, best, n)
        # The velocity at the noise, then one for each place of the knot.
        assert found.evaluations == n


def test_every_start_is_descended() -> None:
    distance, starts = sliced_wasserstein(REFERENCE), [(0, 1, 2, 40), (0, 30, 39, 40)]
    alone = [
        refine(mixture_velocity, NOISE, FINE, [start], distance, batch_size=64) for start in starts
    ]
    together = refine(mixture_velocity, NOISE, FINE, starts, distance, batch_size=64)
    assert together.distance <= min(one.distance for one in alone)
    # The noise is evaluated once, and what both meet too.
    assert together.evaluations < sum(one.evaluations for one in alone)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_evaluations_are_those_of_the_network_and_the_batch_size_changes_nothing_else(
    solver: str,
) -> None:
    distance, results = sliced_wasserstein(REFERENCE), []
    for batch_size in (64, 7, 1000):
        sizes, reported = [], []

        def network(x, t, sizes=sizes):
            assert len(x) <= batch_size  # noqa: B023
            sizes.append(len(x))
            return mixture_velocity(x, t)

        counted = CountedVelocity(network)
        found = refine(
            counted, NOISE, FINE, [even(40, 4)], distance, solver=solver, batch_size=batch_size,
            on_evaluations=reported.append,
        )  # fmt: skip
        assert found.evaluations * len(NOISE) == sum(sizes)
        assert sizes == reported
        if batch_size == 64:  # a call is one evaluation of all the noise
            assert counted.nfe == found.evaluations
        results.append(found)
    assert results[0] == results[1] == results[2]


def test_only_the_steps_from_the_moved_knot_on_are_evaluated_and_nothing_twice() -> None:
    times = []

    def network(x, t):
        times.append(round(float(t[0]) * 40))
        return mixture_velocity(x, t)

    refine(
        network, NOISE, FINE, [(0, 10, 20, 30, 40)], endpoint_error(REFERENCE), batch_size=64,
        offsets=[(2,)], sweeps=1,
    )  # fmt: skip
    # The start, then the candidates of the first knot: at both of its places, and after each at
    # the two knots that stay.
    assert times[:4] == [0, 10, 20, 30]
    assert times[4:6] == [8, 12]
    assert times.count(0) == 1
    assert len(times) == 4 + 2 * (3 + 2 + 1)


@pytest.mark.parametrize("make", [sliced_wasserstein, energy, endpoint_error])
def test_only_the_distances_of_a_knot_are_read_from_the_device(make) -> None:
    read, distance = [], make(REFERENCE)

    class Watch(TorchDispatchMode):
        """Sees every operation; those named here make a GPU's host wait."""

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            name = operation.overloadpacket.__name__
            assert name not in {"_local_scalar_dense", "nonzero", "equal", "masked_select"}, name
            return operation(*args, **(kwargs or {}))

    def counted(samples):
        read.append(len(samples))
        return distance(samples)

    with Watch():
        refine(mixture_velocity, NOISE, FINE, [even(40, 4)], counted, batch_size=64, sweeps=1)
    # The start, and at most one reading for each of three knots at each of four offsets.
    assert 1 < len(read) <= 1 + 3 * 4
    assert max(read[1:]) == 2


def test_labels_and_networks_of_one_time() -> None:
    labels = torch.arange(len(NOISE)) % 4
    velocity = with_labels(rotated_velocity, labels)
    distance = sliced_wasserstein(euler(velocity, NOISE, FINE))
    found = refine(
        rotated_velocity, NOISE, FINE, [even(40, 3)], distance, solver="ab2", batch_size=10,
        labels=labels,
    )  # fmt: skip
    ends = SOLVERS["ab2"](velocity, NOISE, FINE[list(found.indices)])
    assert found.distance == pytest.approx(float(distance(ends[None])), rel=1e-6)

    one_time = scalar_time(lambda x, t: mixture_velocity(x, t.expand(len(x))))
    distance = sliced_wasserstein(REFERENCE)
    assert refine(one_time, NOISE, FINE, [even(40, 3)], distance, batch_size=100) == refine(
        mixture_velocity, NOISE, FINE, [even(40, 3)], distance, batch_size=100
    )


def test_what_cannot_be_is_refused() -> None:
    distance = sliced_wasserstein(REFERENCE)

    def run(starts=((0, 20, 40),), noise=NOISE, velocity=mixture_velocity, **changes):
        return refine(velocity, noise, FINE, starts, distance, **{"batch_size": 9, **changes})

    with pytest.raises(InputError, match="solver: 'heun'; euler or ab2"):
        run(solver="heun")
    with pytest.raises(InputError, match="starts: none found"):
        run(starts=[])
    with pytest.raises(InputError, match=r"starts: \(0, 20, 20, 40\); increasing grid indices"):
        run(starts=[(0, 20, 20, 40)])
    with pytest.raises(InputError, match=r"starts: \(0, 20\); .* from 0 to 40"):
        run(starts=[(0, 20)])
    with pytest.raises(InputError, match=r"starts: of \[2, 3\] steps"):
        run(starts=[(0, 20, 40), (0, 10, 20, 40)])
    with pytest.raises(InputError, match="batches of 0"):
        run(batch_size=0)
    with pytest.raises(InputError, match="labels: 3 for 64 samples"):
        run(labels=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match=r"samples of the steps \(0, 20, 40\) are not finite"):
        run(velocity=lambda x, t: x * np.nan)
    with pytest.raises(InputError, match="velocity: returned shape"):
        run(velocity=lambda x, t: x[:, :1])
