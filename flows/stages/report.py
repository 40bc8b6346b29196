"""Table, plots and one self-contained HTML page, from the records of all budgets."""

import base64
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from boss_core.errors import InputError
from boss_core.evaluation.comparison import Estimate
from boss_core.io.files import write_bytes
from boss_core.ode.schedule import Schedule
from flows import paths
from flows.config import Params
from flows.records.json_files import Json, read_images, read_json
from flows.records.judges import ABOUT, Judge, judges, marks, read_estimates, remark
from flows.records.passwords import without_password
from flows.records.record import read_record
from flows.records.teachers import CARD
from flows.records.variants import Variant, read_schedules, recorded
from flows.report import plots
from flows.report.conclusion import conclude
from flows.report.image_grid import difference, write_grid
from flows.stages.pipelines.pictures import thumbnails
from flows.stages.runner import run_stage
from flows.tracking.runs import track_report


def main(params: Params) -> None:
    budgets = sorted(params.budgets)
    remove_others(budgets)
    records = {k: read_record(k) for k in budgets}
    floor = read_record("teacher")
    schedules = read_schedules()
    # All budgets have the same: `schedule` and `evaluate` ran for all with the same parameters.
    variants = recorded(records[budgets[0]])
    found = judges(floor, params.schedule)
    tables = [judged(judge, records, floor, variants) for judge in found]
    metric = found[0].metric
    measured = measured_schedules(records, schedules, variants, metric)
    write_plots(tables, records, floor, schedules, variants, measured)
    card = read_json(paths.DATA / "card.json")
    if card["train"]:
        write_grid(paths.PLOTS / "real.png", thumbnails(read_images("train").images))

    table = pd.DataFrame(
        [{"nfe": k, **{v: records[k][v][metric] for v in variants}} for k in budgets]
    )
    write_bytes(paths.FRECHET, table.to_csv(index=False).encode())

    page = Environment(
        loader=PackageLoader("flows.report", "."), autoescape=True, undefined=StrictUndefined
    ).get_template("report.html.j2")
    html = page.render(
        card=card | {"source": name_of(card)},
        budgets=budgets,
        records=records,
        floor=floor,
        tables=tables,
        remark=remark(found, variants),
        schedules=schedules,
        variants={name: variant.title for name, variant in variants.items()},
        measured=measured.to_dict("records"),
        metric=metric,
        metrics=list(floor["fine"]),
        plot=lambda name: embedded(paths.PLOTS / f"{name}.png"),
        sample=lambda name, variant: embedded(paths.samples(name) / f"{variant}.png"),
        difference=difference_of,
        conclusions=conclude(
            found[0],
            variants,
            tables[0].estimates,
            tables[0].floor,
            of_pipeline="reference" in floor,
        ),
        parameters=shown_parameters(),
    )
    write_bytes(paths.REPORT, html.encode())
    print(f"report: {paths.REPORT}")
    try:
        track_report(params)
    except InputError as error:  # all is written: nothing is lost with the server
        print(f"warning: {error}", file=sys.stderr)


def name_of(card: Json) -> str:
    """What the page is about: the data, or a pipeline that is compared with nothing else."""
    if card["source"] != "none":
        return str(card["source"])
    return str(read_json(CARD)["asked"]["source"])


def remove_others(budgets: Collection[int]) -> None:
    """Remove what an earlier run left of budgets that are not among these, as after a change of
    ``budgets`` or ``dvc exp apply``: beside results of other parameters it would be taken for
    one of them, and this stage, which depends on whole folders, would depend on the past.

    DVC's cache still has it, and puts it back when the budget comes back. What its stages took is
    in no cache, and stays: see `flows.measure.usage`."""
    gone = set()
    for of_budget in paths.OF_BUDGET:
        pattern = of_budget("*")
        for path in pattern.parent.glob(pattern.name):
            before, after = pattern.name.split("*")
            name = path.name.removeprefix(before).removesuffix(after)
            if not name.isdecimal() or int(name) in budgets:
                continue
            gone.add(int(name))
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if gone:
        names = ", ".join(map(str, sorted(gone)))
        print(
            f"report: removed outputs of budgets not in params.yaml, which DVC's cache has: {names}"
        )


@dataclass(frozen=True)
class Judged:
    """What one judge says of all budgets and variants.

    about: what it is. hash: of its weights. card: of its folder. estimates, marks: of every budget
    and variant, as `flows.records.judges.marks` has them. floor: of the teacher on the fine grid.
    """

    judge: Judge
    about: str
    hash: str
    card: Json
    estimates: dict[int, dict[str, Estimate]]
    marks: dict[int, dict[str, str]]
    floor: Estimate


def judged(
    judge: Judge, records: dict[int, Json], floor: Json, variants: dict[str, Variant]
) -> Judged:
    """InputError where the replicates of a record are not there."""
    name = judge.name
    own = name == floor["extractor"]
    estimates = {k: read_estimates(k, record, judge.metric) for k, record in records.items()}
    return Judged(
        judge=judge,
        about=ABOUT[name],
        hash=floor["extractor_hash"] if own else floor["judges"][name],
        card=read_json((paths.FEATURES if own else paths.JUDGES / name) / "card.json"),
        estimates=estimates,
        marks={k: marks(judge, variants, of) for k, of in estimates.items()},
        floor=read_estimates("teacher", floor, judge.metric)["fine"],
    )


def measured_schedules(
    records: dict[int, Json],
    schedules: dict[int, dict[str, Schedule]],
    variants: dict[str, Variant],
    metric: str,
) -> pd.DataFrame:
    """What was predicted for the teacher's steps beside what was measured, a row for each budget
    and untrained variant: ``nfe``, ``variant``, ``title``, ``predicted`` with its 95 % interval
    ``low`` to ``high``, and ``measured``."""
    rows = []
    curve = pd.read_csv(paths.PREDICTED_ERROR).set_index("nfe")
    intervals = curve[["bellman_low", "bellman_high"]].T.to_dict("list")
    with np.load(paths.COST) as file:
        groups = min(int(file["samples"]), len(file["grams"]))  # of one trajectory at least
    for budget, record in records.items():
        for name, variant in variants.items():
            if variant.trained or not variant.guided:  # costs are those of the guided velocity
                continue
            schedule = schedules[budget][variant.schedule]
            assert schedule.predicted_error is not None  # every schedule of the pipeline has one
            low, high = interval(schedule, intervals[schedule.steps], groups)
            rows.append(
                {
                    "nfe": budget,
                    "variant": name,
                    "title": variant.title,
                    "predicted": schedule.predicted_error,
                    "low": low,
                    "high": high,
                    "measured": record[name][metric],
                }
            )
    return pd.DataFrame(rows)


def interval(schedule: Schedule, of_bellman: list[float], groups: int) -> tuple[float, float]:
    """The 95 % interval of a predicted error: the bootstrap's for Bellman's steps, else by the
    standard error over the groups."""
    if schedule.solver == "euler" and schedule.objective == "l2_squared":
        return of_bellman[0], of_bellman[1]
    return schedule.interval(groups)


def write_plots(
    tables: list[Judged],
    records: dict[int, Json],
    floor: Json,
    schedules: dict[int, dict[str, Schedule]],
    variants: dict[str, Variant],
    measured: pd.DataFrame,
) -> None:
    budgets = list(records)
    with np.load(paths.COST) as file:
        cost, grid = file["cost"], file["timesteps"]
    # Of a pipeline with guidance a step takes two evaluations, but for its students.
    along = {"along": "steps"} if "reference" in floor else {}
    plots.frechet(
        paths.PLOTS / "frechet.png",
        budgets,
        variants,
        {
            table.judge.metric: (
                table.floor,
                {v: [table.estimates[k][v] for k in budgets] for v in variants},
            )
            for table in tables
        },
        **along,
    )
    plots.schedules(paths.PLOTS / "schedules.png", {k: schedules[k] for k in budgets})
    bellman = {k: schedules[k]["bellman"] for k in budgets}
    plots.cost(paths.PLOTS / "cost.png", cost, grid, bellman)
    plots.predicted_error(
        paths.PLOTS / "predicted_error.png", pd.read_csv(paths.PREDICTED_ERROR), budgets
    )
    plots.measured(paths.PLOTS / "measured.png", measured, variants, tables[0].judge.metric)
    curves = {k: pd.read_csv(paths.curves(k)) for k in budgets}
    plots.training(paths.PLOTS / "training.png", curves, variants)


def embedded(path: Path) -> str:
    """A PNG as a data URI, so that the page needs no other file."""
    return as_uri(path.read_bytes())


def shown_parameters() -> str:
    """params.yaml, as anyone may see it."""
    return without_password(Path("params.yaml").read_text())


def as_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def difference_of(budget: int, variant: str) -> tuple[str, float] | None:
    """What a variant's samples differ by from the teacher's, as a data URI, and in the mean."""
    found = difference(
        paths.samples(budget) / f"{variant}.png", paths.samples("teacher") / "fine.png"
    )
    return None if found is None else (as_uri(found[0]), found[1])


if __name__ == "__main__":
    run_stage(main)
