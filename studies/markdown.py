"""What the pages of results have in common: numbers over seeds, tables, and text between marks."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from boss_core.io.files import write_bytes


def write_between(path: Path, source: str, title: str, parts: Sequence[str]) -> None:
    """Write what was made between two marks of the page; text outside them is kept.

    source: the script that makes it. title: of a page that is new."""
    begin = f"<!-- made by {source} from here; text outside the two marks is kept -->"
    end = f"<!-- made by {source} up to here -->"
    before, after = f"# {title}\n\n## What it says\n\n", "\n"
    if path.exists():
        text = path.read_text()
        before, found, rest = text.partition(begin)
        after = rest.partition(end)[2] if found else after
    write_bytes(path, (before + "\n\n".join([begin, *parts, end]) + after).encode())


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Mean and its standard error (NaN where there is one value only)."""
    found = np.asarray(values, dtype=float)
    found = found[np.isfinite(found)]
    if not len(found):
        return np.nan, np.nan
    error = found.std(ddof=1) / np.sqrt(len(found)) if len(found) > 1 else np.nan
    return float(found.mean()), float(error)


def value(values: ArrayLike, decimals: int | None = None) -> str:
    """Mean ± standard error, in three significant digits of the mean or with so many decimals."""
    mean, error = mean_and_error(values)
    if not np.isfinite(mean):
        return ""
    if decimals is None:
        decimals = max(0, 2 - int(np.floor(np.log10(abs(mean))))) if mean else 0
    return f"{mean:.{decimals}f}" + (f" ± {error:.{decimals}f}" if np.isfinite(error) else "")


def grid_table(
    corner: str,
    names: Sequence[str],
    budgets: Sequence[int],
    cells: dict[tuple[str, int], str],
) -> str:
    """A table with a column for each budget."""
    lines = [[f"`{name}`", *(cells.get((name, k), "") for k in budgets)] for name in names]
    return markdown([corner, *(f"K = {k}" for k in budgets)], lines)


def markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---"] * len(columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, rule, *lines])
