"""``boss table``."""

from typing import TYPE_CHECKING

from flows.cli.options import line_width
from flows.config import load_params

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from boss_core.evaluation.comparison import Estimate
    from flows.records.json_files import Json
    from flows.records.judges import Judge
    from flows.records.variants import Variant

LEGEND = (
    "± one standard error, of other noise. * best of its row: ahead of every other by more than"
    " chance, in pairs from the same noise (5 %, for all pairs of a row). = level: the nearest,"
    " and what cannot be told from it. In brackets: not ranked by this judge."
)
FLOOR = "the teacher (the floor)"

Cells = dict[str, tuple["Estimate", str]]  # of a budget: each method's distance and its mark


def table() -> None:
    """Print the tables of the last run: Frechet distance for every budget and variant, by every
    judge, the one that decides first."""
    from rich.console import Console

    from flows.records.judges import ABOUT, judges, remark
    from flows.records.record import read_record
    from flows.records.variants import recorded

    params = load_params()
    floor = read_record("teacher")
    records = {k: read_record(k) for k in sorted(params.budgets)}
    variants = {name: found for r in records.values() for name, found in recorded(r).items()}
    own = "reference" in floor  # of a pipeline, whose budgets are steps
    whose = "of the teacher" if own else "real images"
    against = f"{floor['samples']:,} samples against {floor['reference_samples']:,} {whose}"
    if "compared" in floor:  # of films
        against += f", by {floor['compared']}"
    found = judges(floor, params.schedule)
    console = Console(width=line_width(150))
    for judge in found:
        print(f"{judge.metric} (lower is better): {against}; {judge.name}: {ABOUT[judge.name]}")
        console.print(_table(console, judge, records, floor, variants))
    for line in (LEGEND, remark(found, variants)):
        if line:
            console.print(line, highlight=False)


def _table(
    console: "Console",
    judge: "Judge",
    records: "dict[int, Json]",
    floor: "Json",
    variants: "dict[str, Variant]",
) -> "Table":
    """The table of one judge: with a column for each method, or where these do not fit with a line
    for each."""
    from rich.measure import Measurement

    from flows.records.judges import marks, read_estimates
    from flows.records.variants import recorded

    rows: dict[int, Cells] = {}
    for budget, record in records.items():
        estimates, of_budget = read_estimates(budget, record, judge.metric), recorded(record)
        marked = marks(judge, of_budget, estimates)
        rows[budget] = {name: (estimates[name], marked[name]) for name in of_budget}
    fine = read_estimates("teacher", floor, judge.metric)["fine"]
    first, last = "steps" if "reference" in floor else "NFE", (str(floor["nfe"]), fine)
    wide = _columns(first, rows, last, variants)
    needed = Measurement.get(console, console.options.update(width=1000), wide).minimum
    return wide if needed <= console.width else _lines(first, rows, last, variants)


def _columns(
    first: str,
    rows: dict[int, Cells],
    last: "tuple[str, Estimate]",
    variants: "dict[str, Variant]",
) -> "Table":
    """Two lines for a budget, values and their standard errors."""
    # Seven columns fit into 100 characters with one word a line and little around it, all ten
    # into 140.
    shown = _empty(first)
    for variant in variants.values():
        words = variant.title.replace(",", "").replace(":", "").split()
        shown.add_column("\n".join(words), justify="right", vertical="bottom")
    for budget, cells in rows.items():
        values = (_cell(*cells[name], "\n") if name in cells else "" for name in variants)
        shown.add_row(str(budget), *values)
    shown.add_section()
    shown.add_row(last[0], _cell(last[1], "", "\n"), "(the floor)")
    return shown


def _lines(
    first: str,
    rows: dict[int, Cells],
    last: "tuple[str, Estimate]",
    variants: "dict[str, Variant]",
) -> "Table":
    """As `boss compare` has them."""
    shown = _empty(first)
    shown.add_column("method")
    shown.add_column("distance", justify="right", no_wrap=True)
    for budget, cells in rows.items():
        for place, (name, cell) in enumerate(cells.items()):
            shown.add_row("" if place else str(budget), variants[name].title, _cell(*cell, " "))
        shown.add_section()
    shown.add_row(last[0], FLOOR, _cell(last[1], "", " "))
    return shown


def _empty(first: str) -> "Table":
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column(first, justify="right")
    return shown


def _cell(estimate: "Estimate", mark: str, between: str) -> str:
    value = f"{estimate.value:.4g}"
    shown = {"()": f"({value})", "": value}.get(mark, f"[bold]{value}{mark}[/bold]")
    return f"{shown}{between}±{estimate.standard_error:.2g}"
