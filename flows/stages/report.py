"""Table, plots and one self-contained HTML page, from the records of all budgets."""

import base64
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from boss_core.files import write_bytes
from boss_core.schedules import Schedule
from flows import paths, plots
from flows.config import Params
from flows.grids import write_grid
from flows.records import Json, frechet_name, read_images, read_json
from flows.runtime import run_stage
from flows.variants import VARIANTS, read_schedules

if TYPE_CHECKING:
    from pathlib import Path


def main(params: Params) -> None:
    budgets = sorted(params.budgets)
    records = {k: read_json(paths.metrics(k)) for k in budgets}
    floor = read_json(paths.metrics("teacher"))
    features = read_json(paths.FEATURES / "card.json")
    metric = frechet_name(floor)
    schedules = read_schedules()
    write_plots(records, floor, schedules, metric)
    write_grid(paths.PLOTS / "real.png", read_images("train").images)

    table = pd.DataFrame(
        [{"nfe": k, **{v: records[k][v][metric] for v in VARIANTS}} for k in budgets]
    )
    write_bytes(paths.FRECHET, table.to_csv(index=False).encode())

    page = Environment(
        loader=PackageLoader("flows", "."), autoescape=True, undefined=StrictUndefined
    ).get_template("report.html.j2")
    html = page.render(
        card=read_json(paths.DATA / "card.json"),
        budgets=budgets,
        records=records,
        floor=floor,
        features=features,
        schedules=schedules,
        variants=VARIANTS,
        best={k: min(VARIANTS, key=lambda v: records[k][v][metric]) for k in budgets},
        metric=metric,
        metrics=list(floor["fine"]),
        plot=lambda name: embedded(paths.PLOTS / f"{name}.png"),
        sample=lambda name, variant: embedded(paths.samples(name) / f"{variant}.png"),
    )
    write_bytes(paths.REPORT, html.encode())
    print(f"report: {paths.REPORT}")


def write_plots(
    records: dict[int, Json], floor: Json, schedules: dict[int, dict[str, Schedule]], metric: str
) -> None:
    budgets = list(records)
    with np.load(paths.COST) as file:
        cost, grid = file["cost"], file["timesteps"]
    plots.frechet(
        paths.PLOTS / "frechet.png",
        budgets,
        {v: [records[k][v][metric] for k in budgets] for v in VARIANTS},
        floor["fine"][metric],
        f"{metric} (lower is better)",
    )
    plots.schedules(paths.PLOTS / "schedules.png", {k: schedules[k] for k in budgets})
    plots.cost(paths.PLOTS / "cost.png", cost, grid, schedules[budgets[-1]]["bellman"])
    plots.predicted_error(
        paths.PLOTS / "predicted_error.png", pd.read_csv(paths.PREDICTED_ERROR), budgets
    )
    plots.training(paths.PLOTS / "training.png", {k: pd.read_csv(paths.curves(k)) for k in budgets})


def embedded(path: "Path") -> str:
    """A PNG as a data URI, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


if __name__ == "__main__":
    run_stage(main)
