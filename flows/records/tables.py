"""Tables of numbers as CSV, as pandas writes and reads them.

Without pandas, which takes a second to import: of a stage that trains for some seconds, and there
is one for every budget.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from boss_core.io.files import write_bytes


def write_table(
    path: Path, rows: Sequence[Mapping[str, float]], columns: Sequence[str] | None = None
) -> None:
    """Write rows, whole or not at all. What a row does not have, and NaN, is an empty cell.

    columns: their names in order; all that the rows have, as they come, where it is None."""
    columns = list(columns or dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        cells = (row.get(name, math.nan) for name in columns)
        table.writerow("" if math.isnan(cell) else cell for cell in cells)
    write_bytes(path, text.getvalue().encode())


def side_by_side(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """One row a ``step``, the columns of each curve under its name."""
    found: dict[float, dict[str, float]] = {}
    for name, rows in curves.items():
        for row in rows:
            of_step = found.setdefault(row["step"], {"step": row["step"]})
            of_step |= {f"{name}_{key}": value for key, value in row.items() if key != "step"}
    return [found[step] for step in sorted(found)]
