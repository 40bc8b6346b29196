"""The automatic choice against the same numbers by numpy and scipy, and its rule."""

import numpy as np
import pytest
import scipy.stats
import torch

from boss_core.errors import InputError
from boss_core.ode.noise import sample_noise
from boss_core.ode.solvers import SOLVERS, ab2, euler
from boss_core.ode.timesteps import uniform
from boss_core.ode.velocity import with_labels
from boss_core.search.choose import (
    BASELINE,
    BLOCKS,
    Reference,
    choose,
    choose_sampled,
    roll_out,
    search_steps,
)
from boss_core.search.distances import energy, sliced_wasserstein
from boss_core.search.refine import refine
from tests.helpers.held_out import needed
from tests.helpers.mixture import mixture_velocity, rotated_velocity

GRID = uniform(40)
EVEN, EARLY, LATE = (0, 10, 20, 30, 40), (0, 1, 2, 3, 40), (0, 15, 28, 36, 40)


def teacher(samples: int, seed: int) -> Reference:
    noise = sample_noise(range(samples), (2,), seed)
    return roll_out(mixture_velocity, noise, GRID, batch_size=64)


SELECTION, TEST = teacher(128, 0), teacher(203, 1)


def select(candidates, test=TEST, **changes):
    arguments = {"distance": sliced_wasserstein, "batch_size": 50, **changes}
    return choose(mixture_velocity, GRID, candidates, test, **arguments)


def along_first(ends: torch.Tensor):
    """The energy distance of the first coordinates alone, which scipy has too."""
    inner = energy(ends[:, :1])
    return lambda samples: inner(samples[..., :1])


def test_gain_and_error_are_those_of_the_jackknife() -> None:
    found = select({"l2_squared": EARLY, "uniform": EVEN}, distance=along_first)
    ends = {
        name: euler(mixture_velocity, TEST.noise, GRID[list(indices)])[:, 0].numpy()
        for name, indices in (("l2_squared", EARLY), ("uniform", EVEN))
    }
    real = TEST.ends[:, 0].numpy()

    def gain(keep: np.ndarray) -> float:
        before, after = (
            scipy.stats.energy_distance(real[keep], ends[name][keep]) ** 2
            for name in ("l2_squared", "uniform")
        )
        return 1 - after / before

    rows = np.arange(len(real))
    assert found.objective == found.winner == "uniform"
    assert found.indices == EVEN
    assert found.gain == pytest.approx(gain(rows), rel=1e-5)
    left_out = [gain(np.flatnonzero(rows % BLOCKS != b)) for b in range(BLOCKS)]
    # The jackknife: the spread of B means that share all but one block is 1 / (B - 1) of it.
    error = np.sqrt((BLOCKS - 1) / BLOCKS * sum((g - np.mean(left_out)) ** 2 for g in left_out))
    assert found.standard_error == pytest.approx(error, rel=1e-4)
    for name, samples in ends.items():
        expected = scipy.stats.energy_distance(real, samples) ** 2
        assert found.distances[name] == pytest.approx(expected, rel=1e-5)


def test_the_papers_steps_stay_when_they_are_nearest() -> None:
    found = select({"early": EARLY, "l2_squared": EVEN, "copy": EVEN})
    assert (found.objective, found.indices, found.winner) == ("l2_squared", EVEN, "l2_squared")
    assert found.gain == found.standard_error == 0
    assert found.distances["copy"] == found.distances["l2_squared"] < found.distances["early"]


def test_a_winner_by_chance_is_dropped() -> None:
    # Steps that differ by one place of the fine grid: whichever wins, wins by nothing.
    outcomes = []
    for k in range(1, 4):
        for move in (-1, 1):
            moved = tuple(i + move * (j == k) for j, i in enumerate(LATE))
            found = select({"l2_squared": LATE, "moved": moved}, test=teacher(40, 2))
            if found.winner == "moved":
                sure = found.gain > needed(rivals=1) * found.standard_error
                assert found.objective == ("moved" if sure else "l2_squared")
                assert found.indices == (moved if sure else LATE)
                outcomes.append(sure)
    assert False in outcomes


def test_the_nearest_on_the_test_noise_wins_and_the_more_rivals_the_clearer_it_has_to() -> None:
    # Samples at a known distance: everything moved by so much.
    def sample(candidates, reference):
        return {name: reference.ends + noise[name] for name in candidates}

    generator = torch.Generator().manual_seed(0)
    spread = {"l2_squared": 0.3, "uniform": 0.28, "gits": 0.24, "oss": 0.26}
    noise = {
        name: by * torch.randn(TEST.ends.shape, generator=generator) for name, by in spread.items()
    }
    paths = {"l2_squared": EARLY, "uniform": EVEN, "gits": LATE, "oss": (0, 5, 10, 15, 40)}
    outcomes = []
    for count in (2, 3, 4):
        steps = dict(list(paths.items())[:count])
        found = choose_sampled(sample, 40, steps, TEST, distance=energy)
        assert found.winner == min(found.distances, key=lambda name: found.distances[name])
        assert found.rivals == count - 1
        sure = found.gain > needed(rivals=count - 1) * found.standard_error
        assert found.objective == (found.winner if sure else "l2_squared")
        outcomes.append((found.winner, found.gain, found.standard_error))
    assert outcomes[1] == outcomes[2]
    assert outcomes[2][0] == "gits"


def test_samples_that_are_not_finite_do_not_win() -> None:
    def sample(candidates, reference):
        ends = {"l2_squared": reference.ends + 0.1, "uniform": reference.ends.clone()}
        ends["uniform"][3] = torch.nan
        return ends

    steps = {"l2_squared": EARLY, "uniform": EVEN}
    found = choose_sampled(sample, 40, steps, TEST, distance=sliced_wasserstein)
    assert found.objective == found.winner == "l2_squared"
    assert (found.gain, found.standard_error) == (0.0, 0.0)
    assert found.distances["uniform"] == np.inf


@pytest.mark.parametrize("solver", ["ab2", "heun"])
def test_candidates_are_sampled_by_their_solver(solver: str) -> None:
    found = select({"l2_squared": EVEN, "late": LATE}, solver=solver)
    ends = SOLVERS[solver](mixture_velocity, TEST.noise, GRID[list(LATE)])
    expected = float(sliced_wasserstein(TEST.ends)(ends[None]))
    assert found.distances["late"] == pytest.approx(expected, rel=1e-6)
    assert set(found.distances) == set(found.candidates) == {"l2_squared", "late"}


def test_search_adds_the_refined_steps_and_counts_them() -> None:
    samples = []
    candidates = {"l2_squared": EARLY, "late": LATE}
    found = search_steps(
        mixture_velocity, GRID, candidates, SELECTION, TEST, distance=sliced_wasserstein,
        solver="ab2", batch_size=64, on_evaluations=samples.append,
    )  # fmt: skip
    to_selection = sliced_wasserstein(SELECTION.ends)
    nearest = min(
        (EARLY, LATE),
        key=lambda path: float(
            to_selection(ab2(mixture_velocity, SELECTION.noise, GRID[list(path)])[None])
        ),
    )
    expected = refine(
        mixture_velocity, SELECTION.noise, GRID, [nearest, EVEN], to_selection, solver="ab2",
        batch_size=64,
    )  # fmt: skip
    assert found.candidates == {**candidates, "refine": expected.indices}
    assert found.evaluations == expected.evaluations == sum(samples) / len(SELECTION.noise)
    to_test = sliced_wasserstein(TEST.ends)
    for name, path in found.candidates.items():
        ends = ab2(mixture_velocity, TEST.noise, GRID[list(path)])
        assert found.distances[name] == pytest.approx(float(to_test(ends[None])), rel=1e-5)
    # Nearest on the noise of the search, the refined steps need not be so on other noise.
    assert found.distances["late"] < found.distances["refine"] < found.distances["l2_squared"]
    assert found.objective == found.winner == "late"
    assert found.gain > needed(rivals=2) * found.standard_error > 0


def test_labels_go_with_their_noise() -> None:
    def conditional(samples: int, seed: int) -> Reference:
        noise, labels = sample_noise(range(samples), (2,), seed), torch.arange(samples) % 3
        made = roll_out(rotated_velocity, noise, GRID, batch_size=17, labels=labels)
        torch.testing.assert_close(
            made.ends, euler(with_labels(rotated_velocity, labels), noise, GRID)
        )
        return made

    selection, test = conditional(60, 0), conditional(60, 1)
    found = search_steps(
        rotated_velocity, GRID, {"l2_squared": EARLY}, selection, test, distance=energy,
        batch_size=25,
    )  # fmt: skip
    ends = euler(with_labels(rotated_velocity, test.labels), test.noise, GRID[list(EARLY)])
    expected = float(energy(test.ends)(ends[None]))
    assert found.distances["l2_squared"] == pytest.approx(expected, rel=1e-5)
    assert found.objective == "refine"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"candidates: uniform; l2_squared, .* needed"):
        select({"uniform": EVEN})
    with pytest.raises(InputError, match=r"candidates: of \[2, 4\] steps"):
        select({"l2_squared": EVEN, "short": (0, 20, 40)})
    with pytest.raises(InputError, match=r"candidates: other: \(0, 50, 40\); increasing"):
        select({"l2_squared": (0, 20, 40), "other": (0, 50, 40)})
    with pytest.raises(InputError, match="solver: 'rk45'; euler, ab2, multistep, heun known"):
        select({"l2_squared": EVEN}, solver="rk45")
    with pytest.raises(InputError, match="test noise: 19 samples; 20 or more"):
        select({"l2_squared": EVEN}, test=teacher(19, 1))
    with pytest.raises(InputError, match="in batches of 0; at least 1"):
        select({"l2_squared": EVEN}, batch_size=0)
    with pytest.raises(InputError, match="labels: 3 for 5 samples"):
        roll_out(
            rotated_velocity, torch.zeros(5, 2), GRID, batch_size=5,
            labels=torch.zeros(3, dtype=torch.int64),
        )  # fmt: skip


@pytest.mark.parametrize("baseline", [0.0, -1e-12])
def test_nothing_is_nearer_than_what_is_at_no_distance(baseline: float) -> None:
    """Rounding puts a Frechet distance of 0 to either side: no gain can be a share of that."""
    ends = {BASELINE: torch.full((40, 1), baseline), "l2": torch.full((40, 1), -1e-9)}
    found = choose_sampled(
        lambda candidates, to: {name: ends[name] for name in candidates},
        4,
        {BASELINE: (0, 1, 4), "l2": (0, 2, 4)},
        Reference(torch.zeros(40, 1), torch.zeros(40, 1)),
        distance=lambda to: lambda samples: samples.double().mean(dim=(1, 2)),
    )
    assert (found.objective, found.winner) == (BASELINE, BASELINE)
    assert (found.gain, found.standard_error) == (0.0, 0.0)
