"""Tables of numbers, byte for byte as pandas writes them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from flows.records.tables import side_by_side, write_table


def numbers(draw: np.random.Generator, count: int) -> list[float]:
    """Of all sizes; whole ones, none and infinite ones among them."""
    found = draw.standard_normal(count) * 10.0 ** draw.integers(-30, 30, count)
    return [float(x) for x in found] + [0.0, -0.0, 3.0, 1e16, 1e-5, 1e5, math.nan, math.inf]


def test_as_pandas_writes_them(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    values, others = numbers(draw, 400), numbers(draw, 400)
    rows = [
        {"nfe": k, "bellman": a, "uniform": b}
        for k, (a, b) in enumerate(zip(values, others, strict=True), 1)
    ]
    write_table(tmp_path / "table.csv", rows)
    expected = pd.DataFrame(rows).to_csv(index=False)
    assert (tmp_path / "table.csv").read_text() == expected
    columns = ["uniform", "nfe", "missing"]
    write_table(tmp_path / "table.csv", rows, columns)
    expected = pd.DataFrame(rows, columns=columns).to_csv(index=False)
    assert (tmp_path / "table.csv").read_text() == expected
    write_table(tmp_path / "table.csv", [], columns)
    assert (tmp_path / "table.csv").read_text() == "uniform,nfe,missing\n"


def test_curves_side_by_side(tmp_path: Path) -> None:
    """A method that was trained for longer has rows of its own."""
    draw = np.random.default_rng(1)
    curves = {
        name: [
            {"step": 10 * k, "loss": float(draw.random()), "rate": float(draw.random())}
            for k in range(1, count)
        ]
        for name, count in (("boss", 5), ("reflow", 9))
    }
    write_table(tmp_path / "table.csv", side_by_side(curves))
    tables = [
        pd.DataFrame(rows).set_index("step").add_prefix(f"{name}_") for name, rows in curves.items()
    ]
    expected = pd.concat(tables, axis=1).reset_index().to_csv(index=False)
    assert (tmp_path / "table.csv").read_text() == expected
