"""``boss table``."""

import sys
from typing import TYPE_CHECKING

from flows import paths
from flows.config import load_params

if TYPE_CHECKING:
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


def table() -> None:
    """Print the tables of the last run: Frechet distance for every budget and variant, by every
    judge, the one that decides first."""
    from rich.console import Console

    from flows.records.json_files import read_json
    from flows.records.judges import ABOUT, judges, remark
    from flows.records.variants import recorded

    params = load_params()
    floor = read_json(paths.metrics("teacher"))
    records = {k: read_json(paths.metrics(k)) for k in sorted(params.budgets)}
    variants = {name: found for r in records.values() for name, found in recorded(r).items()}
    own = "reference" in floor  # of a pipeline, whose budgets are steps
    whose = "of the teacher" if own else "real images"
    against = f"{floor['samples']:,} samples against {floor['reference_samples']:,} {whose}"
    if "compared" in floor:  # of films
        against += f", by {floor['compared']}"
    found = judges(floor, params.schedule)
    # In a log there is no terminal to fit into: a row must not be folded.
    console = Console(width=None if sys.stdout.isatty() else 150)
    for judge in found:
        print(f"{judge.metric} (lower is better): {against}; {judge.name}: {ABOUT[judge.name]}")
        console.print(_table(judge, records, floor, variants))
    for line in (LEGEND, remark(found, variants)):
        if line:
            console.print(line, highlight=False)


def _table(
    judge: "Judge", records: "dict[int, Json]", floor: "Json", variants: "dict[str, Variant]"
) -> "Table":
    """The table of one judge: two lines for a budget, values and their standard errors."""
    from rich import box
    from rich.table import Table

    from flows.records.judges import marks, read_estimates
    from flows.records.variants import recorded

    # Seven columns fit into 100 characters with one word a line and little around it, all ten
    # into 140.
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("steps" if "reference" in floor else "NFE", justify="right")
    for variant in variants.values():
        words = variant.title.replace(",", "").replace(":", "").split()
        shown.add_column("\n".join(words), justify="right", vertical="bottom")
    for budget, record in records.items():
        estimates = read_estimates(budget, record, judge.metric)
        of_budget = recorded(record)
        marked = marks(judge, of_budget, estimates)
        cells = (_cell(estimates[v], marked[v]) if v in of_budget else "" for v in variants)
        shown.add_row(str(budget), *cells)
    shown.add_section()
    fine = read_estimates("teacher", floor, judge.metric)["fine"]
    shown.add_row(str(floor["nfe"]), _cell(fine, ""), "(the floor)")
    return shown


def _cell(estimate: "Estimate", mark: str) -> str:
    value = f"{estimate.value:.4g}"
    shown = {"()": f"({value})", "": value}.get(mark, f"[bold]{value}{mark}[/bold]")
    return f"{shown}\n±{estimate.standard_error:.2g}"
