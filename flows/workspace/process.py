"""DVC and git as child processes: one stage at a time, whose end says what DVC did with it."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from filelock import FileLock, Timeout

from boss_core.errors import InputError
from flows.telemetry import TELEMETRY_OFF
from flows.workspace.guard import guarded
from flows.workspace.integrity import absent, not_stored, unstored

# What DVC advises after each stage, which is only true at the end of all.
_HINTS = (
    "Use `dvc push`", "Updating lock file", "Generating lock file", "To track the",
    "To enable auto", "\tgit add", "\tdvc config",
)  # fmt: skip
RUN_LOCK = Path(".dvc/tmp/boss-run.lock")
# Locked by the stage that has all cores (`flows.stages.runner`).
TURNS_FILE = Path(".dvc/tmp/boss-turns.lock")


class Outcome(StrEnum):
    """What DVC did with a stage; the name of the task's final state in Prefect."""

    RAN = "Ran"
    RESTORED = "Restored"
    CACHED = "Cached"


class WorkspaceBusyError(Exception):
    """Another process holds what the stage needs: worth another try."""


class StageError(Exception):
    """The stage failed: the message is its own last word. Another try would end the same way."""


# The stages that run, of whichever runner of this process.
_RUNNING: set["subprocess.Popen[str]"] = set()
# Those that this process waits for and that run on other machines.
RUNNING_ELSEWHERE: set[str] = set()


def stages_running() -> bool:
    """Whether this process runs a stage at the moment, here or elsewhere."""
    return bool(_RUNNING or RUNNING_ELSEWHERE)


class Runner:
    """Runs single stages of one workspace as child processes, which `stop` ends."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._children: set[subprocess.Popen[str]] = set()
        self.stopped = threading.Event()

    def run(
        self,
        stage: str,
        *,
        environment: Mapping[str, str],
        log: Callable[[str], None],
        timeout: float,
    ) -> Outcome:
        """``dvc repro --single-item``: run the stage, restore it from the cache, or neither.

        environment: variables beside those of this process. log: called with each line.
        timeout: seconds, after which the stage is ended.
        Raises WorkspaceBusyError or StageError.
        """
        before, since = absent(self.root, stage), time.time()
        told = _Told(log)
        command = dvc_command("--wait-for-lock", "repro", "--single-item", stage)
        code = self._follow(command, environment, told, timeout)
        if code is None:
            raise StageError(f"{stage}: ended after {timeout:g} s; a larger --timeout may help")
        if code == 0:
            if left := unstored(self.root, stage, before=before, since=since):
                raise StageError(f"{stage}: {not_stored(self.root, left)}")
            return told.outcome
        if told.busy and told.outcome == Outcome.CACHED:
            raise WorkspaceBusyError(
                f"{stage}: another process, such as `dvc repro`, is at work in {self.root}; wait"
                f" for it and run again ({told.busy})"
            )
        raise StageError(f"{stage}: {told.error or told.last.removeprefix('ERROR: ')}")

    def call(
        self,
        stage: str,
        command: list[str],
        *,
        environment: Mapping[str, str],
        log: Callable[[str], None],
        timeout: float,
    ) -> None:
        """A command that a stage needs done before or after it, as one that moves its data; the
        arguments are those of `run`. StageError where it fails."""
        told = _Told(log)
        code = self._follow(command, environment, told, timeout)
        if code is None:
            raise StageError(f"{stage}: ended after {timeout:g} s; a larger --timeout may help")
        if code:
            raise StageError(f"{stage}: {told.error or told.last.removeprefix('ERROR: ')}")

    def _follow(
        self, command: list[str], environment: Mapping[str, str], told: "_Told", timeout: float
    ) -> int | None:
        """The exit code of a command whose lines are read as they come; None where it was ended
        because it took longer than ``timeout`` seconds."""
        overdue = threading.Event()
        with subprocess.Popen(
            guarded(command),
            cwd=self.root,
            env=dvc_environment() | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that the stage's own process is ended with it
        ) as child:
            self._children.add(child)
            _RUNNING.add(child)

            def end_overdue() -> None:
                overdue.set()
                _end(child)

            timer = threading.Timer(timeout, end_overdue)
            timer.start()
            try:
                if self.stopped.is_set():
                    _end(child)
                assert child.stdout is not None
                for line in map(str.rstrip, child.stdout):
                    told.read(line)
                code = child.wait()
            finally:
                timer.cancel()
                _end(child)
                self._children.discard(child)
                _RUNNING.discard(child)
        return None if overdue.is_set() else code

    def stop(self) -> None:
        """End every stage that is still running, and let no other start."""
        self.stopped.set()
        for child in list(self._children):
            _end(child)


@dataclass
class _Told:
    """What DVC has said of a stage: what it did, its last line, the error of the stage itself, and
    who holds what it needs. log: called with each line but DVC's advice."""

    log: Callable[[str], None]
    outcome: Outcome = Outcome.CACHED
    last: str = ""
    error: str = ""
    busy: str = ""

    def read(self, line: str) -> None:
        if not line or line.startswith(_HINTS):
            return
        self.log(line)
        self.last = line
        if line.startswith("> "):
            self.outcome = Outcome.RAN
        elif "is cached - skipping run" in line:
            self.outcome = Outcome.RESTORED
        elif "is busy" in line or "Unable to acquire lock" in line:
            self.busy = line.removeprefix("ERROR: ")
        elif line.startswith("error: "):
            self.error = line.removeprefix("error: ")


def _end(child: "subprocess.Popen[str]") -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 15)


@contextlib.contextmanager
def exclusive(root: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """One full run in a workspace at a time; InputError when another is at work in it. waiting: is
    called then, and the other run's end is waited for."""
    path = root / RUN_LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)  # the system lets go of it when its holder dies
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if waiting is None:
            raise InputError(
                f"{root}: another run is at work in this folder; wait for it, or give `boss run`"
                " --set, which runs in a copy of its own"
            ) from error
        waiting()
        lock.acquire(poll_interval=1)
    try:
        yield
    finally:
        lock.release()


def dvc_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dvc", *arguments]


def dvc_environment() -> dict[str, str]:
    """The stages are run as ``python -m ...``: let that be this interpreter, on the path or
    not. Nothing reports home, and lines come as they are printed."""
    here = str(Path(sys.executable).parent)
    return (os.environ | TELEMETRY_OFF) | {
        "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
        # A thread that waits for another by spinning keeps it from its core.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
    }


def dvc(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A quick DVC command in a workspace."""
    return _run(dvc_command("--wait-for-lock", *arguments), root, check)


def git(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A git command in a workspace."""
    return _run(["git", *arguments], root, check)


def _run(command: list[str], root: Path, check: bool) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=root, env=dvc_environment(), capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise StageError(f"{' '.join(command[-3:])}: {(done.stderr or done.stdout).strip()}")
    return done
