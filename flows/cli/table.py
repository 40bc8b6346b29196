"""``boss table``."""

import sys

from flows import paths
from flows.config import load_params


def table() -> None:
    """Print the table of the last run: Frechet distance for every budget and variant."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from flows.records.json_files import frechet_name, read_json
    from flows.records.variants import recorded

    params = load_params()
    floor = read_json(paths.metrics("teacher"))
    metric = frechet_name(floor)
    own = "reference" in floor  # of a pipeline, whose budgets are steps
    print(
        f"{metric} (lower is better): {floor['samples']:,} samples against"
        f" {floor['reference_samples']:,} {'of the teacher' if own else 'real images'}"
    )
    records = {k: read_json(paths.metrics(k)) for k in sorted(params.budgets)}
    variants = {name: found for r in records.values() for name, found in recorded(r).items()}
    # Seven columns fit into 100 characters with one word a line and little around it, all ten
    # into 140.
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("steps" if own else "NFE", justify="right")
    for variant in variants.values():
        words = variant.title.replace(",", "").replace(":", "").split()
        shown.add_column("\n".join(words), justify="right", vertical="bottom")
    for budget, record in records.items():
        values = {v: record[v][metric] for v in recorded(record)}
        best = min(values.values())
        cells = (f"{values[v]:.4g}" if v in values else "" for v in variants)
        marked = (f"[bold]{x}[/bold]" if x == f"{best:.4g}" else x for x in cells)
        shown.add_row(str(budget), *marked)
    shown.add_section()
    shown.add_row(str(floor["nfe"]), f"{floor['fine'][metric]:.4g}", "(the floor)")
    # In a log there is no terminal to fit into: a row must not be folded.
    Console(width=None if sys.stdout.isatty() else 150).print(shown)
