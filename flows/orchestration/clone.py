"""A run in a clone of its own, as a worker of a pool makes one on whichever host it is, and removes
at the end: what the DVC remote knows is brought there, and what each stage makes is sent back.

A deployment with ``--repository`` says so by the variable BOSS_CLONE. Elsewhere nothing here does
anything."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from prefect import get_run_logger

from boss_core.errors import InputError
from flows.config import PARAMS, load_params
from flows.records.passwords import without_password
from flows.tracking.connection import sqlite_file, tracking_uri
from flows.workspace.graph import read_stages
from flows.workspace.process import Outcome, Runner, StageError, git
from flows.workspace.remote import check_remote
from flows.workspace.run_cache import pull_inputs, pull_stage, pull_stages, push_stage

CLONE = "BOSS_CLONE"
# Seconds until the next try of what fails on the way to the remote: a connection that is lost for
# some minutes costs no training of days, which is in a folder that goes with the run.
DELAYS = (5.0, 20.0, 60.0, 180.0)
_ONE_AT_A_TIME = threading.Lock()  # several would share the way
Result = TypeVar("Result")


def in_clone() -> bool:
    """Whether this folder is there for this run alone."""
    return bool(os.environ.get(CLONE))


def bring_inputs(root: Path, *, experiment: bool) -> None:
    """In a clone: what the checks of a run read. InputError where the remote cannot be reached, and
    where an ``experiment`` could not be sent back to the repository."""
    if not in_clone():
        return
    check_remote(root)
    _trying(lambda: pull_inputs(root), "inputs do not come from the DVC remote")
    if sqlite_file(tracking_uri(load_params(root / PARAMS), root)):
        get_run_logger().warning(
            "MLFLOW_TRACKING_URI is not set where this worker runs: what MLflow has of this run"
            " goes with its clone; `boss track`, in one that has the results, logs it"
        )
    if experiment:
        for name in ("user.name", "user.email"):  # of the commit that an experiment is
            if git(root, "config", name, check=False).returncode:
                raise InputError(
                    f"overrides: git has no {name} where this worker runs; an experiment is a"
                    f" commit, so `git config --global {name} ...` there needed"
                )
        # Their names are taken, too.
        _git(root, "fetch", "--quiet", "origin", "refs/exps/*:refs/exps/*")
        _git(root, "push", "--quiet", "--dry-run", "origin", "HEAD:refs/exps/boss-may-push")


def runner_of(folder: Path, targets: Sequence[str]) -> Runner:
    """What runs the stages of a folder; in a clone one that has put in place what is known of
    them, and sends what each makes. InputError where the remote cannot be reached."""
    if not in_clone():
        return Runner(folder)
    count = len(read_stages(folder, targets))
    known = _trying(lambda: pull_stages(folder, targets), "the DVC remote cannot be read")
    get_run_logger().info("brought what is known: %d of %d stages", len(known), count)
    return _SendingRunner(folder, known)


def send_experiment(root: Path, name: str) -> None:
    """In a clone: the experiment to the repository that it is a clone of, where `dvc exp pull
    origin NAME` finds it. StageError where that refuses it."""
    if not in_clone():
        return
    listed = git(root, "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    (reference,) = [each for each in listed if each.endswith(f"/{name}")]
    _git(root, "push", "--quiet", "origin", f"{reference}:{reference}")
    get_run_logger().info("in any clone: `dvc exp pull origin %s`, `dvc exp apply %s`", name, name)


class _SendingRunner(Runner):
    """A runner whose stages have ended when their outputs are in the DVC remote.

    known: whose outputs are in place. What comes after a stage that has to run, as `check` with
    every change of a parameter, may be known all the same."""

    def __init__(self, root: Path, known: Sequence[str]) -> None:
        super().__init__(root)
        self._known = frozenset(known)

    def run(
        self,
        stage: str,
        *,
        environment: Mapping[str, str],
        log: Callable[[str], None],
        timeout: float,
    ) -> Outcome:
        if stage not in self._known:
            with _ONE_AT_A_TIME:
                lost = f"{stage}: the DVC remote cannot be read"
                _trying(lambda: pull_stage(self.root, stage), lost, self.stopped)
        outcome = super().run(stage, environment=environment, log=log, timeout=timeout)
        if outcome != Outcome.CACHED:  # what was restored may be of this machine's own cache
            lost = f"{stage}: its outputs do not reach the DVC remote"
            with _ONE_AT_A_TIME:
                _trying(lambda: push_stage(self.root, stage), lost, self.stopped)
        return outcome


def _trying(
    what: Callable[[], Result], failed: str, stopped: threading.Event | None = None
) -> Result:
    """The result of something that talks to the remote, tried again for some minutes; StageError
    that begins with ``failed``."""
    stopped = stopped or threading.Event()
    for delay in (*DELAYS, None):
        try:
            return what()
        except InputError:
            raise
        except Exception as error:  # of whichever protocol the remote speaks
            why = without_password(" ".join(str(error).split()) or type(error).__name__)
            if delay is None or stopped.is_set():
                raise StageError(f"{failed}: {why}") from error
            get_run_logger().warning("%s: %s; another try in %g s", failed, why, delay)
            stopped.wait(delay)
    raise AssertionError


def _git(root: Path, *arguments: str) -> None:
    """A git command that needs the repository; InputError with git's last words."""
    done = git(root, *arguments, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        fatal = [line for line in said if line.startswith(("fatal: ", "error: "))] or said
        raise InputError(
            f"overrides: git {arguments[0]}: {without_password(fatal[0])}; an experiment is sent to"
            " the repository, which this worker's account has to be allowed"
        )
