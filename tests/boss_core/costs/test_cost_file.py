"""Costs as a file: what was written comes back, and a search goes on from it."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from boss_core.bellman.names import OBJECTIVES
from boss_core.bellman.objectives import optimal_steps
from boss_core.costs.cost_file import (
    CostKey,
    CostSaver,
    network_key,
    read_costs,
    read_own_costs,
    write_costs,
)
from boss_core.costs.measure import measure_costs
from boss_core.errors import InputError
from boss_core.ode.noise import COSTS, NoiseSource, sample_noise
from tests.helpers.costs import pairwise, smooth

SOURCE = NoiseSource((6,), seed=5)
KEY = network_key(SOURCE, "hash", 12)


def measured(samples: int, path: Path | None = None):
    total = KEY.empty_sum() if path is None else read_own_costs(path, KEY)
    measure_costs(total, smooth, SOURCE, samples=samples, batch_size=7)
    return total


def test_a_matrix_comes_back_from_its_file_to_the_bit(tmp_path: Path) -> None:
    path, written = tmp_path / "cost.npz", measured(23)
    write_costs(path, KEY, written)
    key, read = read_costs(path)
    assert key == KEY
    for name in ("cost", "standard_error", "group_gram", "group_norm"):
        np.testing.assert_array_equal(getattr(read.result(), name), getattr(written.result(), name))
    for solver, objective in itertools.product(("euler", "ab2"), OBJECTIVES):
        given = {"solver": solver, "objective": objective}
        paths = (optimal_steps(total.result(), [2, 5], **given) for total in (read, written))
        assert next(paths) == next(paths)


def test_costs_are_those_of_the_definition_on_the_noise_of_the_seed() -> None:
    found = measured(23).result()
    noise = sample_noise(range(23), (6,), seed=5 + COSTS)
    expected = pairwise(smooth, noise, KEY.timesteps).mean(axis=0)
    far = np.triu_indices(13, k=2)
    np.testing.assert_allclose(found.cost[far], expected[far], rtol=1e-5)


def test_a_stopped_search_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "cost.npz"
    total, calls = KEY.empty_sum(), iter(range(2 * 12))

    def stopped(x, t):
        next(calls)  # ends in the third batch
        return smooth(x, t)

    with pytest.raises(StopIteration), CostSaver(path, KEY, total):
        measure_costs(total, stopped, SOURCE, samples=28, batch_size=7)
    assert read_own_costs(path, KEY).samples == 14
    whole, resumed = measured(28).result(), measured(28, path).result()
    np.testing.assert_array_equal(resumed.cost, whole.cost)
    np.testing.assert_array_equal(resumed.group_gram, whole.group_gram)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"teacher_hash": "0" * 64}, "teacher_hash is 000000000000 there and hash now"),
        ({"seed": 6}, "seed is 6 there and 5 now"),
        ({"conditions": "labels"}, "conditions is labels there and None now"),
    ],
)
def test_the_costs_of_another_search_are_named(tmp_path: Path, change: dict, says: str) -> None:
    path = tmp_path / "cost.npz"
    write_costs(path, dataclasses.replace(KEY, **change), measured(3))
    with pytest.raises(InputError, match=f"cost.npz: the costs of another search: {says}"):
        read_own_costs(path, KEY)


def test_costs_on_noise_of_before_there_were_offsets_are_not_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "cost.npz"
    write_costs(path, KEY, measured(3))
    with np.load(path) as file:
        content = dict(file)
    search = json.loads(str(content["search"]))
    del search["noise"], search["reference"]  # older still
    np.savez(path, **content | {"search": json.dumps(search)})
    assert read_costs(path)[0] == dataclasses.replace(KEY, noise="rows")
    with pytest.raises(InputError, match="the costs of an earlier version, which drew other noise"):
        read_own_costs(path, KEY)


def test_the_frequencies_of_labels_are_part_of_a_search() -> None:
    keys = {
        network_key(NoiseSource((6,), 5, classes=2, frequencies=found), "hash", 12)
        for found in (None, (1.0, 1.0), (1.0, 2.0))
    }
    assert len(keys) == 3
    assert isinstance(keys.pop(), CostKey)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cost.npz"
    np.savez(path, cost=np.zeros((3, 3)))
    with pytest.raises(InputError, match=r"cost\.npz: not the costs of a search \(.*search"):
        read_costs(path)
