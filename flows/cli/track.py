"""``boss track``."""

import sys
from functools import partial

import typer

from flows import paths
from flows.config import load_params


def track(
    rebuild: bool = typer.Option(
        False, help="Fail when MLflow cannot be reached, where otherwise a warning is enough."
    ),
) -> None:
    """Log the recorded metrics of every budget to MLflow, as into an empty database; what is
    there already stays as it is."""
    from boss_core.errors import InputError
    from flows.tracking.links import lacking
    from flows.tracking.runs import track_budget, track_report

    params = load_params()
    found = paths.metrics("").parent.glob("*.json")
    measured = {int(path.stem) for path in found if path.stem.isdecimal()}
    projections = []
    for budget in sorted(measured):
        if budget not in params.budgets:
            print(f"K={budget}: not logged: not among the budgets of params.yaml")
            continue
        lack = lacking(budget)
        if lack:
            print(f"K={budget}: not logged: {lack}; `boss run` makes it")
            continue
        projections.append(partial(track_budget, params, budget))
    for project in (*projections, partial(track_report, params)):
        try:
            if done := project():
                print(done)
        except InputError as error:
            if rebuild:
                raise
            print(f"warning: {error}", file=sys.stderr)
