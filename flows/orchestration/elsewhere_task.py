"""A stage on another machine, which shares no folder with the one that asked for it: in a clone of
the project of its own, from DVC's remote and back into it."""

import contextlib
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from boss_core.errors import InputError
from flows import paths
from flows.config import PARAMS, load_params
from flows.orchestration.elsewhere_runners import wanted
from flows.orchestration.gpus import announce_gpus, gpu_slot, threads, visible_gpus
from flows.orchestration.progress_artifacts import shown_progress
from flows.stages.runner import TURNS
from flows.tracking.connection import LATER
from flows.workspace.bundle import unbundle
from flows.workspace.dvc_lock import locked_stages, write_lock
from flows.workspace.integrity import cache_folder
from flows.workspace.process import Outcome, Runner, StageError, dvc_command

INTERVAL = 2.0  # seconds between two looks at whether a stage is still waited for
AGAIN = [5.0, 20.0]  # seconds until the next try to move data: a network has moments
_FOLDER = "boss-stage-"


@dataclass(frozen=True)
class Job:
    """A stage, and all that a machine needs to run it.

    outputs: those of other stages that it reads. lock: the entries of dvc.lock of their stages, and
    its own if there is one. bundle: the project, see `flows.workspace.bundle`. environment: of the
    stage. count: GPUs that it takes, 0 for none. timeout: seconds."""

    stage: str
    outputs: tuple[str, ...]
    lock: Mapping[str, Any]
    bundle: bytes
    environment: Mapping[str, str]
    count: int
    timeout: float


@dataclass(frozen=True)
class Done:
    """What a machine hands back of a stage; its outputs are in DVC's remote.

    entry: of dvc.lock. runs: what DVC's cache has noted of the run, by their paths there. usage:
    what it took, by the names of files (`flows.measure.usage`)."""

    outcome: Outcome
    host: str
    entry: Mapping[str, Any]
    runs: Mapping[str, bytes]
    usage: Mapping[str, bytes]


@task(cache_policy=NO_CACHE, persist_result=False)
def stage_elsewhere(stage: str, job: Job) -> Any:
    """Run or restore one stage in a folder that is removed after it."""
    logger = get_run_logger()
    try:
        with own_folder() as folder:
            done = _run(job, folder, logger.info)
    except (StageError, InputError) as error:
        return Failed(message=str(error))
    return Completed(name=done.outcome, message=f"{done.outcome} by DVC on {done.host}", data=done)


def _run(job: Job, folder: Path, log: Callable[[str], None]) -> Done:
    unbundle(job.bundle, folder / "project")
    project, name = folder / "project", job.stage
    write_lock(project, job.lock)
    gpus = visible_gpus(load_params(project / PARAMS)) if job.count else []
    announce_gpus(gpus)
    environment = {
        **job.environment,
        LATER: "1",
        TURNS: str(Path(gettempdir()) / f"boss-turns-{os.getuid()}.lock"),
        "DVC_SITE_CACHE_DIR": str(folder / "site"),  # DVC's would keep something of every folder
    }
    if gpus:
        environment["OMP_NUM_THREADS"] = str(threads(len(gpus)))
    runner = Runner(project)

    def move(command: list[str]) -> None:
        for seconds in [*AGAIN, None]:
            try:
                runner.call(name, command, environment=environment, log=log, timeout=job.timeout)
            except StageError as error:
                if seconds is None or runner.stopped.wait(seconds):
                    raise
                log(f"{error}; another try")
            else:
                return

    with ended_when_unwanted(runner):
        move([sys.executable, "-m", "flows.workspace.known", name, *job.outputs])
        with (
            gpu_slot(gpus, job.count, stopped=runner.stopped, log=log) as gpu,
            shown_progress(name, log) as lines,
        ):
            outcome = runner.run(
                name, environment=environment | gpu, log=lines, timeout=job.timeout
            )
        if outcome != Outcome.CACHED:
            move(dvc_command("push", "--quiet", "--run-cache", name))
    runs = cache_folder(project) / "runs"
    return Done(
        outcome,
        socket.gethostname(),
        locked_stages(project)[name],
        {str(path.relative_to(runs)): path.read_bytes() for path in _files(runs)},
        {path.name: path.read_bytes() for path in _files(project / paths.usage("").parent)},
    )


@contextlib.contextmanager
def ended_when_unwanted(runner: Runner) -> Iterator[None]:
    """Stop the stages of a runner as soon as nobody waits for this task any more."""
    over, waited_for = threading.Event(), wanted()

    def watch() -> None:
        while not over.wait(INTERVAL):
            if not waited_for():
                runner.stop()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for one stage among the machine's temporary ones, removed after it. Those of stages
    whose worker was killed, which cannot have removed them, are removed too."""
    base = Path(gettempdir())
    for left in base.glob(f"{_FOLDER}*/"):
        if left.stat().st_uid == os.getuid():
            with contextlib.suppress(Timeout), FileLock(f"{left}.lock", timeout=0):
                _remove(left)
    folder = base / f"{_FOLDER}{uuid4()}"
    with FileLock(f"{folder}.lock"):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            _remove(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(f"{folder}.lock").unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
