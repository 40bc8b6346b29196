"""``boss repro``: check, all stages by DVC, and the last good outputs back where a stage failed."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from boss_core.errors import InputError
from flows import paths
from flows.config import load_params
from flows.measure.command import named, typed
from flows.orchestration.gpus import visible_gpus
from flows.orchestration.order import run_all
from flows.orchestration.request import check_folder
from flows.orchestration.revision import take_revision
from flows.stages.check import check
from flows.stages.runner import TURNS
from flows.workspace.dvc_lock import arrange
from flows.workspace.graph import Stage, out_of_date, read_stages
from flows.workspace.integrity import absent, not_stored, unstored
from flows.workspace.process import (
    TURNS_FILE,
    Outcome,
    Runner,
    StageError,
    WorkspaceBusyError,
    dvc_command,
    dvc_environment,
    exclusive,
)
from flows.workspace.recovery import restore, set_aside_cut_short
from flows.workspace.scm import settle_git

ENDED = (
    "the run stopped at the stage above; every finished stage is kept, and the outputs of the last"
    " good run are back in place"
)


def repro() -> int:
    """Bring every output up to date; the exit code: 0, or 2 when a stage failed."""
    check_folder(Path())
    params = load_params()
    check(params)
    set_aside_cut_short(Path())
    settle_git(Path())
    take_revision(Path(), params)
    called = named(typed(sys.argv))
    cores = len(os.sched_getaffinity(0))
    # A stage has all GPUs, and a single core is for one stage: DVC's own order is as good then.
    side_by_side = cores > 1 and not visible_gpus(params)
    before, since = absent(Path()), time.time()
    try:
        code = _side_by_side(cores, called) if side_by_side else _in_order(called)
    except KeyboardInterrupt:
        code = 130
    left = unstored(Path(), before=None if code else before, since=since)
    if code:
        restore(Path())
        print(f"error: {ENDED}", file=sys.stderr)
    if left:
        print(f"error: {not_stored(Path(), left)}", file=sys.stderr)
    return 2 if code or left else 0


def _in_order(called: dict[str, str]) -> int:
    return subprocess.run(dvc_command("repro"), env=dvc_environment() | called).returncode


def _side_by_side(workers: int, called: dict[str, str]) -> int:
    """As `dvc repro`, but for stages that do not need each other: these run side by side, as in the
    flow, so many at a time. called: the variable that says what called them."""
    root = Path()
    runner = Runner(root)
    environment = {TURNS: str((root / TURNS_FILE).resolve()), **called}

    def run(stage: Stage, known: bool) -> Outcome:
        if known:
            return Outcome.CACHED
        forever = threading.TIMEOUT_MAX
        return runner.run(stage.name, environment=environment, log=_show, timeout=forever)

    stages = read_stages(root)
    with exclusive(root), ThreadPoolExecutor(workers) as pool:
        try:
            outcomes, failures = run_all(
                stages,
                out_of_date(root),
                workers,
                start=lambda stage, known: pool.submit(run, stage, known),
                first_of=lambda running: next(iter(wait(running, None, FIRST_COMPLETED).done)),
                end_of=_end_of,
            )
        except BaseException:  # as by Ctrl-C
            runner.stop()  # nothing goes on behind its back
            raise
    arrange(root, [stage.name for stage in stages])
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if not failures and set(outcomes.values()) == {Outcome.CACHED}:
        print("Data and pipelines are up to date.")
    return 1 if failures else 0


def _end_of(future: "Future[Outcome]") -> Outcome | str:
    try:
        return future.result()
    except (StageError, InputError, WorkspaceBusyError) as error:
        return str(error)


def _show(line: str) -> None:
    """A line of a stage's or of DVC's: errors where errors go."""
    error = line.startswith(("error: ", "warning: ", "ERROR: ", "WARNING: "))
    print(line, file=sys.stderr if error else sys.stdout, flush=True)


def closing_lines() -> str:
    """Where a user finds the results."""
    return (
        f"Report: {paths.REPORT} (one file, open it in a browser)\n"
        "MLflow: `make ui`, or `boss ui`, then http://127.0.0.1:5000"
    )
