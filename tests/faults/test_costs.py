"""Costs of steps: the recursion against every path there is, and files of them that are not what
was written."""

import itertools
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from boss_core.bellman.recursion import optimal_paths, path_cost
from boss_core.costs.cost_file import CostKey, read_costs, write_costs
from boss_core.costs.matrix import CostSum
from tests.helpers.cases import cases, damaged, result_or_line

KEY = CostKey("hash", 4, "uniform", 0, shape="3")


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    """Of grids of up to 7 steps: costs of any size, and ties."""
    nodes = draw(st.integers(2, 8))
    some = st.sampled_from([0.0, 1.0, 2.0, 1e-300, 1e300])
    entries = draw(st.sampled_from([some, st.floats(0, 1e6), st.floats(-1e3, 1e3)]))
    return draw(arrays.arrays(np.float64, (nodes, nodes), elements=entries))


def paths(n: int, steps: int) -> list[tuple[int, ...]]:
    return [(0, *inner, n) for inner in itertools.combinations(range(1, n), steps - 1)]


@cases(24)
@given(matrices(), st.sampled_from([1.0, 0.5, 1.15]), st.sampled_from(["sum", "max"]))
def test_the_recursion_finds_the_best_of_all_paths(
    cost: np.ndarray, gamma: float, combine: str
) -> None:
    n = len(cost) - 1
    found = optimal_paths(cost, range(1, n + 1), gamma=gamma, combine=combine)
    join = max if combine == "max" else lambda a, b: a + b

    def worth(path: tuple[int, ...]) -> float:
        *steps, last = itertools.pairwise(path)
        value = cost[last]
        for step in reversed(steps):  # in the order of the recursion, so to the last bit
            value = join(cost[step], gamma * value)
        return value

    for budget, path in found.items():
        every = paths(n, budget)
        assert path.indices in every
        assert path.cost == worth(path.indices) == min(map(worth, every))
        if (gamma, combine) == (1.0, "sum"):
            np.testing.assert_allclose(
                path_cost(cost, path.indices), path.cost, rtol=1e-12, atol=1e-9
            )


@cases(24)
@given(matrices(), st.data())
def test_what_is_no_cost_is_one_line(cost: np.ndarray, data: st.DataObject) -> None:
    n = len(cost) - 1
    i = data.draw(st.integers(0, n - 1))
    wrong = cost.copy()
    wrong[i, data.draw(st.integers(i + 1, n))] = data.draw(
        st.sampled_from([np.nan, np.inf, -np.inf])
    )
    assert result_or_line(lambda: optimal_paths(wrong, [1]), "cost: entry") is None
    below = cost.copy()
    below[np.tril_indices(n + 1)] = np.nan  # is not read
    budgets = range(1, n + 1)
    assert optimal_paths(below, budgets) == optimal_paths(cost, budgets)
    budget = data.draw(st.sampled_from([0, -1, n + 1, 10**30, True, 1.0, "1", None]))
    assert result_or_line(lambda: optimal_paths(cost, [budget]), "budget: ") is None


@st.composite
def sums(draw: st.DrawFn) -> CostSum:
    total = KEY.empty_sum()
    samples = draw(st.integers(1, 25))
    torch.manual_seed(draw(st.integers(0, 100)))
    total.add(draw(st.sampled_from([1e-6, 1.0, 1e9])) * torch.randn(4, samples, 3))
    return total


def content_of(total: CostSum, folder: Path) -> bytes:
    path = folder / "cost.npz"
    write_costs(path, KEY, total)
    return path.read_bytes()


def same(one: CostSum, other: CostSum) -> bool:
    states = one.state(), other.state()
    return all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


@cases(20)
@given(sums())
def test_what_is_written_comes_back_to_the_last_bit(tmp_path: Path, total: CostSum) -> None:
    path = tmp_path / "cost.npz"
    content_of(total, tmp_path)
    key, read = read_costs(path)
    assert key == KEY
    assert same(read, total)


@cases(24)
@given(st.data())
def test_a_damaged_file_is_one_line_or_the_same_costs(tmp_path: Path, data: st.DataObject) -> None:
    total = data.draw(sums())
    path = tmp_path / "cost.npz"
    path.write_bytes(data.draw(damaged(content_of(total, tmp_path))))
    found = result_or_line(lambda: read_costs(path), str(path))
    if found is not None:
        assert same(found[1], total)
        assert found[0] == KEY
        found[1].result()


ODD: list[Any] = [
    np.zeros(0), np.zeros((5, 5)), np.float64(1.5), np.array(-1), np.array(0), np.array(1e30),
    np.zeros((20, 5, 5), np.float32), np.full((20, 5, 5), np.nan), np.full((5, 5), np.inf),
    -np.ones((20, 5, 5)), -np.ones((5, 5)), np.zeros((20, 5, 5), complex), np.zeros((20, 10, 10)),
    np.array("euler"), np.array("heun"), np.array("{}"), np.array("[1]"), np.array("a\nb"),
    np.array(json.dumps({"a\nb": 1})), np.array("[" * 100_000), np.linspace(0, 1, 9),
    np.array([0, 0.5, 0.4, 0.9, 1.0]), np.zeros((20, 5, 5), ">f8"), np.zeros((20, 5, 5)).T,
    np.array(True), np.array([None, {}], dtype=object), np.zeros((5, 5), np.float16), np.array([3]),
]  # fmt: skip
KEYS: list[Any] = [None, True, -1, 0, 5, 1.5, "", "karras", "a\nb", [], {}, 10**30, "x" * 100]


@st.composite
def mistaken(draw: st.DrawFn) -> bytes:
    """A file with a member of another kind, without one, or with another key."""
    total = draw(sums())
    content: dict[str, Any] = dict(total.state())
    key: Any = {
        "teacher_hash": "hash", "grid": 4, "spacing": "uniform", "seed": 0, "shape": "3",
        "conditions": None, "reference": "euler", "noise": "offset",
    }  # fmt: skip
    how = draw(st.sampled_from(["out", "odd", "odd", "key", "key out", "key more", "entry"]))
    name = draw(st.sampled_from(sorted(content)))
    of = draw(st.sampled_from(sorted(key)))
    if how == "out":
        del content[name]
    elif how == "odd":
        content[name] = draw(st.sampled_from(ODD))
    elif how == "key":
        key[of] = draw(st.sampled_from(KEYS))
    elif how == "key out":
        del key[of]
    elif how == "key more":
        key["a\nb"] = 1
    else:
        array = np.array(content[draw(st.sampled_from(["grams", "sums", "squares", "norms"]))])
        array.flat[draw(st.integers(0, array.size - 1))] = draw(st.sampled_from([np.nan, np.inf]))
        content[name] = array
    file = BytesIO()
    if draw(st.integers(0, 9)):
        content["search"] = np.array(json.dumps(key))
    np.savez(file, **content)
    return file.getvalue()


@cases(24)
@given(mistaken())
def test_a_mistaken_file_is_one_line_or_costs(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cost.npz"
    path.write_bytes(content)
    found = result_or_line(lambda: read_costs(path), str(path))
    if found is None:
        return
    key, total = found
    assert type(key.grid) is int
    assert len(key.timesteps) == 5
    np.testing.assert_allclose(key.timesteps, total.timesteps, rtol=0, atol=1e-12)
    matrix = total.result()
    assert np.isfinite(matrix.cost).all()
    assert matrix.cost.shape == (5, 5)
    assert matrix.samples >= 1
    assert len(matrix.group_cost) == min(matrix.samples, 20)
    total.add(torch.zeros(4, 2, 3), None if key.reference == "euler" else torch.zeros(4, 2, 3))
