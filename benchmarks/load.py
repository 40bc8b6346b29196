"""What a task costs beyond its work, from 10 to 1,000 tasks.

    python -m benchmarks.load [--tasks 10 30 100 300] [--workers 2] [--track] [--csv FILE]

One small project runs with its real stages and one budget. For each number of tasks, a project of
so many budgets (two tasks each, of three methods of finetuning, beside nine others) then runs by
``boss run`` on a real Prefect server, with stages that copy the outputs of the small one: files of
the real kind and next to no work.

- a task: seconds between the first task's start and the last stage's end, for each stage;
- the floor: ``dvc repro --single-item`` of one such stage in the same project, over the workers
  that are at it side by side, which is the process that a task waits for;
- before and after: from the command's start to the first task, and from the last stage's end to
  the command's, with an MLflow server that is down: three tries, 12 s between them;
- again: the same command with nothing to do;
- track, where asked for: ``boss track`` of all budgets into a new database.
"""

import argparse
import csv
import json
import os
import resource
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.table import Table

from tests.helpers.project import Project
from tests.helpers.servers import free_port, prefect_server

SINGLE = 9  # stages that are there once; two more for each budget
KNOWN = 2  # the budget of the small project
REPEATS = 3


@dataclass(frozen=True)
class Load:
    """One run of the flow: seconds, of the processor too, which the process and all it started
    took; ``floor`` is of one stage."""

    tasks: int
    workers: int
    before: float
    stages: float
    after: float
    processor: float
    again: float
    floor: float
    track: float | None

    @property
    def a_task(self) -> float:
        return self.stages / self.tasks

    @property
    def of_the_floor(self) -> float:
        """How much longer a task takes than its process alone would."""
        return self.a_task * self.workers / self.floor


def main() -> None:
    """Measure, print a table and write it as CSV where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 30, 100, 300])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--track", action="store_true")
    parser.add_argument("--csv", type=Path)
    chosen = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    found: list[Load] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
        small = Project.create(folder / "small", {"budgets": [KNOWN]})
        small.run("boss", "repro")
        for tasks in chosen.tasks:
            budgets = max(1, round((tasks - SINGLE) / 2))
            project = stand_ins(small, folder / str(tasks), budgets)
            server = folder / f"server-{tasks}"
            server.mkdir()
            with prefect_server(server) as environment:
                run = measure(
                    project, environment, SINGLE + 2 * budgets, chosen.workers, chosen.track
                )
            found.append(run)
            shutil.rmtree(project.folder)
            show(found)
            if chosen.csv is not None:
                write(chosen.csv, found)


def stand_ins(small: Project, folder: Path, budgets: int) -> Project:
    """A project of the budgets 1, 2, ..., whose stages copy what those of the small one made."""
    kept = folder / "kept"
    shutil.copytree(small.folder, kept, ignore=shutil.ignore_patterns(".git", ".dvc"))
    schedules = json.loads((kept / "results" / "schedules.json").read_text())
    of_each = {str(budget + 1): schedules[str(KNOWN)] for budget in range(budgets)}
    (kept / "results" / "schedules.json").write_text(json.dumps(of_each))
    change: dict[str, Any] = {"budgets": [*range(1, budgets + 1)], "cost.grid": budgets + 2}
    project = Project.create(folder / "project", change)
    path = project.folder / "dvc.yaml"
    pipeline = yaml.safe_load(path.read_text())
    for stage in pipeline["stages"].values():
        stage["cmd"] = " && ".join(
            copied(kept, out) for out in [*stage["outs"], *stage.get("metrics", ())]
        )
    path.write_text(yaml.safe_dump(pipeline, sort_keys=False))
    project.commit("stages that copy")
    return project


def copied(kept: Path, out: str) -> str:
    """A command that makes an output of a budget from that of the only one there is."""
    source = kept / out.replace("${item.budget}", str(KNOWN))
    made = f"mkdir -p $(dirname {out}) && cp -r {source} {out}"
    if out.startswith("metrics/"):  # says which budget it is of
        made += f' && sed -i \'s/"nfe": {KNOWN},/"nfe": ${{item.budget}},/\' {out}'
    return made if "teacher" not in out else made.partition(" && sed")[0]


def measure(
    project: Project, environment: dict[str, str], tasks: int, workers: int, track: bool
) -> Load:
    """Run the flow of a project twice, and one of its stages alone."""
    environment = environment | {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    command = ["boss", "run", "--workers", str(workers)]
    used, start = processor(), time.time()
    project.run(*command, env=environment)
    end, used = time.time(), processor() - used
    runs = stage_runs(environment, tasks)
    first = min(moment(run["start_time"]) for run in runs)
    last = max(moment(run["end_time"]) for run in runs)
    start_again = time.perf_counter()
    project.run(*command, env=environment)
    again = time.perf_counter() - start_again
    alone = ["dvc", "repro", "--single-item", "--force", "evaluate@1"]
    floor = min(timed(project, alone) for _ in range(REPEATS))
    logged = timed(project, ["boss", "track", "--rebuild"]) if track else None
    return Load(tasks, workers, first - start, last - first, end - last, used, again, floor, logged)


def stage_runs(environment: dict[str, str], tasks: int) -> list[dict[str, Any]]:
    """What Prefect has of every stage's task run of the only flow run that there is."""
    until = time.monotonic() + 60
    while True:  # the last events arrive a moment after the run
        found: list[dict[str, Any]] = []
        while page := page_of_runs(environment, len(found)):
            found += page
        runs = [run for run in found if run["name"] != "track" and run["end_time"]]
        if len(runs) == tasks:
            return runs
        if time.monotonic() > until:
            raise SystemExit(f"Prefect has {len(runs)} finished tasks of {tasks}")
        time.sleep(1)


def page_of_runs(environment: dict[str, str], offset: int) -> list[dict[str, Any]]:
    """Task runs, no more than a server hands out at once."""
    body = {"offset": offset, "limit": 200, "sort": "NAME_ASC"}
    url = f"{environment['PREFECT_API_URL']}/task_runs/filter"
    reply = httpx.post(url, json=body, timeout=60)
    reply.raise_for_status()
    return reply.json()


def moment(text: str) -> float:
    """UNIX seconds of a time as Prefect writes it."""
    return datetime.fromisoformat(text).timestamp()


def timed(project: Project, command: list[str]) -> float:
    """Wall seconds of a command, which must succeed."""
    start = time.perf_counter()
    project.run(*command)
    return time.perf_counter() - start


def processor() -> float:
    """Processor seconds of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show(found: list[Load]) -> None:
    """Print the curve so far."""
    columns = (
        "tasks",
        "before",
        "a task",
        "floor",
        "a task of floor",
        "after",
        "cpu",
        "again",
        "track",
    )
    table = Table(*columns, title=f"seconds; {len(os.sched_getaffinity(0))} cores")
    for load in found:
        values = (load.before, load.a_task, load.floor / load.workers, load.of_the_floor)
        values += (load.after, load.processor / load.tasks, load.again)
        track = "" if load.track is None else f"{load.track:.1f}"
        table.add_row(str(load.tasks), *(f"{value:.2f}" for value in values), track)
    Console(width=100).print(table)


def write(path: Path, found: list[Load]) -> None:
    """One row for each run."""
    with open(path, "w", newline="") as file:
        rows = csv.DictWriter(file, [field.name for field in fields(Load)], lineterminator="\n")
        rows.writeheader()
        for load in found:
            rows.writerow(
                {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(load).items()}
            )


if __name__ == "__main__":
    main()
