"""What a task costs beyond its work, from 10 to 1,000 tasks.

    python -m benchmarks.load [--tasks 10 30 100 300] [--workers 2] [--csv FILE]
    python -m benchmarks.load --tasks 400 1000 --last 20      # of so many, where all take hours

For each number of tasks, a project of so many budgets (two tasks each, for three methods of
finetuning, beside nine others) runs by ``boss run`` on a real Prefect server, with its real graph,
parameters and dependencies, and stages that only write `{}`.

- a task: seconds between the first task's start and the last one's end, for each task;
- the floor: ``dvc repro --single-item`` of one such stage in the same project, over the workers
  that are at it side by side: the process that a task waits for, as DVC itself would run it;
- before and after: from the command's start to the first task, and from the last to the end;
- cpu: processor seconds of all processes for each task, which others on the machine change less;
- again: the same command with nothing to do.

With ``--last`` all but so many tasks are done before the clock starts, by DVC itself in one process
that writes dvc.lock once, and a task is what the command takes longer than the one with nothing to
do.
"""

import argparse
import contextlib
import csv
import os
import resource
import shutil
import subprocess
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
from tests.helpers.servers import prefect_server

SINGLE = 9  # stages that are there once; two more for each budget
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
    parser.add_argument("--last", type=int, help="tasks that are left to run; even")
    parser.add_argument("--csv", type=Path)
    chosen = parser.parse_args()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    found: list[Load] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PREFECT_HOME"] = str(folder / "prefect")
        for tasks in chosen.tasks:
            budgets = max(1, round((tasks - SINGLE) / 2))
            project = stand_ins(folder / str(tasks), budgets)
            server = folder / f"server-{tasks}"
            server.mkdir()
            with prefect_server(server) as environment:
                done = SINGLE + 2 * budgets, chosen.workers
                if chosen.last is None:
                    run = measure(project, environment, *done)
                else:
                    begin(project, range(budgets - chosen.last // 2 + 1, budgets + 1))
                    run = measure_last(project, environment, *done, chosen.last)
            found.append(run)
            shutil.rmtree(project.folder)
            show(found)
            if chosen.csv is not None:
                write(chosen.csv, found)


def stand_ins(folder: Path, budgets: int) -> Project:
    """A project of the budgets 1, 2, ..., whose stages write `{}` into each output."""
    change: dict[str, Any] = {"budgets": [*range(1, budgets + 1)], "cost.grid": budgets + 2}
    change["schedule.solver"] = "euler"  # which has no largest grid
    project = Project.create(folder, change)
    path = project.folder / "dvc.yaml"
    pipeline = yaml.safe_load(path.read_text())
    # Elsewhere than records are, so that nothing is logged to MLflow, which is other work.
    pipeline["stages"]["evaluate"]["metrics"] = ["metrics/of-${item.budget}.json"]
    for stage in pipeline["stages"].values():
        stage["cmd"] = " && ".join(map(written, [*stage["outs"], *stage.get("metrics", ())]))
    path.write_text(yaml.safe_dump(pipeline, sort_keys=False))
    project.commit("stages that write `{}`")
    return project


def written(out: str) -> str:
    """A command that makes an output, a file or a folder of one."""
    path = Path(out)
    file = path if path.suffix else path / "file"
    return f"mkdir -p {file.parent} && echo {{}} > {file}"


def measure(project: Project, environment: dict[str, str], tasks: int, workers: int) -> Load:
    """Run the flow of a project twice, and one of its stages alone."""
    command = ["boss", "run", "--workers", str(workers), "--target", "report", "--target", "floor"]
    used, start = processor(), time.time()
    project.run(*command, env=environment)
    end, used = time.time(), processor() - used
    runs = stage_runs(environment, tasks)
    first = min(moment(run["start_time"]) for run in runs)
    last = max(moment(run["end_time"]) for run in runs)
    start_again = time.perf_counter()
    project.run(*command, env=environment)
    again = time.perf_counter() - start_again
    floor = floor_of(project)
    return Load(tasks, workers, first - start, last - first, end - last, used, again, floor)


def begin(project: Project, left: range) -> None:
    """Write every output and its record, but for the records of these budgets' two stages."""
    from dvc.repo import Repo
    from dvc.stage.serialize import to_single_stage_lockfile
    from dvc.utils.serialize import dump_yaml

    unrecorded = {f"{stage}@{budget}" for budget in left for stage in ("finetune", "evaluate")}
    records = {}
    with contextlib.chdir(project.folder), Repo() as repo, repo.lock, repo.scm_context:
        for stage in repo.index.stages:
            subprocess.run(stage.cmd, shell=True, cwd=project.folder, check=True)
        for stage in repo.index.stages:
            stage.save(run_cache=False)
            stage.commit()
            if stage.name not in unrecorded:
                records[stage.name] = to_single_stage_lockfile(stage)
    dump_yaml(str(project.folder / "dvc.lock"), {"schema": "2.0", "stages": records})


def measure_last(
    project: Project, environment: dict[str, str], tasks: int, workers: int, last: int
) -> Load:
    """Run what is left of a flow, and the whole of it again."""
    command = ["boss", "run", "--workers", str(workers), "--target", "report", "--target", "floor"]
    used, start = processor(), time.perf_counter()
    project.run(*command, env=environment)
    whole, used = time.perf_counter() - start, processor() - used
    idle, start = processor(), time.perf_counter()
    project.run(*command, env=environment)
    again, idle = time.perf_counter() - start, processor() - idle
    floor = floor_of(project)
    # As if all tasks took what these do.
    a_task = (whole - again) / last
    return Load(
        tasks, workers, 0.0, a_task * tasks, 0.0, (used - idle) / last * tasks, again, floor
    )


def floor_of(project: Project) -> float:
    """Seconds of one stage by DVC alone."""
    alone = ["dvc", "repro", "--single-item", "--force", "evaluate@1"]
    return min(timed(project, alone) for _ in range(REPEATS))


def stage_runs(environment: dict[str, str], tasks: int) -> list[dict[str, Any]]:
    """What Prefect has of every stage's task run of the only flow run that there is."""
    until = time.monotonic() + 60
    while True:  # the last events arrive a moment after the run
        found: list[dict[str, Any]] = []
        while page := page_of_runs(environment, len(found)):
            found += page
        runs = [run for run in found if run["end_time"]]
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
    )
    table = Table(*columns, title=f"seconds; {len(os.sched_getaffinity(0))} cores")
    for load in found:
        values = (load.before, load.a_task, load.floor / load.workers, load.of_the_floor)
        values += (load.after, load.processor / load.tasks, load.again)
        table.add_row(str(load.tasks), *(f"{value:.2f}" for value in values))
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
