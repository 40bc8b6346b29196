"""What a run shows at its end: on Prefect's page the table of results, what it says, and links to
MLflow; in the log of a deployment's run, which is what `prefect deployment run --watch` prints, the
table."""

import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.states import Completed, Failed

from flows import paths
from flows.config import Params
from flows.records.judges import judges, marks, read_estimates, remark
from flows.records.record import read_record
from flows.records.variants import Variant, recorded
from flows.report.conclusion import conclude
from flows.tracking.connection import tracking_uri
from flows.tracking.links import read_links
from flows.workspace.process import dvc_environment

RETRIES = 2  # of the projection into MLflow
# Characters that Prefect leaves of a terminal of 80 for a line of a log, behind time and run.
LOG_WIDTH = 52


class TrackingLostError(Exception):
    """MLflow could not be reached, or refused; it may be there again later."""


@task(
    name="track",
    task_run_name="track",
    retries=RETRIES,
    retry_delay_seconds=[2, 10],
    cache_policy=NO_CACHE,
)
def track(folder: Path, environment: Mapping[str, str]) -> Any:
    """Project the records into MLflow; what is there already stays as it is."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.app", "track", "--rebuild"],
        cwd=folder,
        env=dvc_environment() | dict(environment),
        capture_output=True,
        text=True,
    )
    for line in done.stdout.splitlines():
        get_run_logger().info(line)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"]
        reason = said[-1].removeprefix("error: ")
        if task_run.run_count > RETRIES:
            return Failed(message=reason)  # raised, it would be shown as a mistake of ours
        raise TrackingLostError(reason)
    return Completed()


def publish_results(
    params: Params, root: Path, folder: Path, environment: Mapping[str, str], *, changed: bool
) -> None:
    """A table artifact of all budgets that have a record, and a link to each one's MLflow run.

    folder: where the records are, the workspace ``root`` or a copy of it.
    changed: a record may be new, so MLflow is brought up to date first; else only if it does
    not have them all."""
    budgets = [k for k in sorted(params.budgets) if (folder / paths.metrics(k)).exists()]
    if not budgets:
        return
    uri = tracking_uri(params, root)
    links = read_links(uri, budgets, folder)
    if changed or len(links) < len(budgets):
        state = track(folder, environment, return_state=True)
        if state.is_failed():
            get_run_logger().warning(
                "MLflow: %s; the records are safe in metrics/, `boss track` logs them later",
                state.message,
            )
        links = read_links(uri, budgets, folder)
    rows, said = read_table(params, folder, budgets)
    if folder != root and len(said) > 1:  # a copy, which is gone after the run
        said.append(
            f"These commands are for the files of {folder.name}: `dvc exp apply {folder.name}` puts"
            " them into this folder."
        )
    for row in rows:
        budget = row["NFE"]
        if budget in links:
            row["MLflow run"] = f"[K={budget}]({links[budget]})"
            create_link_artifact(
                links[budget],
                f"K={budget}",
                key=f"boss-mlflow-{budget}",
                description=f"MLflow run of K={budget}",
            )
    for line in said[1:]:
        get_run_logger().info(line)
    create_table_artifact(rows, key="boss-results", description="\n\n".join(said))


def log_table(root: Path, command: Sequence[str]) -> None:
    """What a `boss` command prints, ``table`` or ``compare``, as the last entry of this run's log,
    narrow enough for a terminal; a warning where it has no table to print."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.app", *command],
        cwd=root,
        env=dvc_environment() | {"COLUMNS": str(LOG_WIDTH)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [""])[-1].removeprefix("error: ")
        get_run_logger().warning("no table: %s", reason)
        return
    lines = (textwrap.fill(line, LOG_WIDTH) if len(line) > LOG_WIDTH else line.rstrip()
             for line in done.stdout.rstrip().splitlines())  # fmt: skip
    get_run_logger().info("%s\n%s", f"boss {' '.join(command)}", "\n".join(lines))


def read_table(
    params: Params, folder: Path, budgets: Sequence[int]
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each budget, by the judge that decides, and what there is to say of them: what the
    values are first.

    After a run of some stages the record of another budget may be one of earlier parameters, with
    other methods or without this judge: it has a row of what it has, and no marks."""
    floor = read_record("teacher", folder)
    found = judges(floor, params.schedule)
    judge = found[0]
    of_floor = read_estimates("teacher", floor, judge.metric, folder)["fine"]
    rows: list[dict[str, Any]] = []
    came_out: list[str] = []
    every: dict[str, Variant] = {}
    for budget in budgets:
        record = read_record(budget, folder)
        variants = recorded(record)
        every |= variants
        row: dict[str, Any] = {"NFE": budget, "MLflow run": "not logged yet"}
        rows.append(row)
        if any(judge.metric not in record[name] for name in variants):
            continue
        estimates = read_estimates(budget, record, judge.metric, folder)
        of_budget = marks(judge, variants, estimates)
        for name, variant in variants.items():
            row[variant.title] = shown(record[name][judge.metric], of_budget[name])
        came_out += [
            f"K = {each.budget}: {each.sentence} `{each.command}`"
            for each in conclude(
                judge, variants, {budget: estimates}, of_floor, of_pipeline="reference" in floor
            )
        ]
    about = (
        f"{judge.metric} for every budget (NFE); lower is better; the teacher's own on the fine"
        f" grid: {of_floor.value:.4g}. * is ahead of all others of its row by more than chance; ="
        " cannot be told from the nearest; in brackets: not ranked."
    )
    return rows, [about, *filter(None, [remark(found, every)]), *came_out]


def shown(value: float, mark: str) -> str:
    """A cell of the table."""
    return f"({value:.4g})" if mark == "()" else f"{value:.4g}{mark}"
