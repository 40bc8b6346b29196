"""DVC as the flow sees it: the graph of stages, what is out of date, one stage run, a copy.

`dvc.yaml` is the only definition and DVC's cache the only cache: nothing here keeps a list of
stages or a fingerprint of its own.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from filelock import FileLock, Timeout

from boss_core.errors import InputError
from boss_core.files import write_bytes
from flows.config import known_parameters
from flows.strict_yaml import shown
from flows.telemetry import TELEMETRY_OFF
from flows.workspace.dvc_lock import LOCK, locked_stages, read_lock
from flows.workspace.guard import guarded
from flows.workspace.integrity import COPIES, absent, not_stored, unstored
from flows.workspace.scm import require_commit

# What DVC advises after each stage, which is only true at the end of all.
_HINTS = (
    "Use `dvc push`", "Updating lock file", "Generating lock file", "To track the",
    "To enable auto", "\tgit add", "\tdvc config",
)  # fmt: skip
RUN_LOCK = Path(".dvc/tmp/boss-run.lock")
# Of an experiment: it names a folder and a git reference.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Outcome(StrEnum):
    """What DVC did with a stage; the name of the task's final state in Prefect."""

    RAN = "Ran"
    RESTORED = "Restored"
    CACHED = "Cached"


class WorkspaceBusyError(Exception):
    """Another process holds what the stage needs: worth another try."""


class StageError(Exception):
    """The stage failed: the message is its own last word. Another try would end the same way."""


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml.

    name: DVC's address, ``teacher`` or ``finetune@6``.
    needs: the stages whose outputs it reads.
    computes: it uses a GPU where there is one (``meta: {computes: true}`` in dvc.yaml).
    trains: it uses one for each of ``compute.processes`` (``meta: {trains: true}``).
    """

    name: str
    needs: frozenset[str]
    computes: bool
    trains: bool

    @property
    def of_matrix(self) -> bool:
        """Whether it is one of several that differ by a parameter, such as the budget."""
        return "@" in self.name


def read_stages(root: Path, targets: Sequence[str] = ()) -> list[Stage]:
    """The stages that the targets need, themselves included, each after those it needs.

    targets: addresses, or names of a matrix for all of it (``evaluate``); none: everything.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            graph = repo.index.graph
            found = {
                _address(stage.addressing, root): Stage(
                    _address(stage.addressing, root),
                    frozenset(_address(n.addressing, root) for n in graph.successors(stage)),
                    bool((stage.meta or {}).get("computes")),
                    bool((stage.meta or {}).get("trains")),
                )
                for stage in graph
            }
    except DvcException as error:
        raise InputError(f"dvc.yaml: {' '.join(str(error).split())}") from error
    wanted: list[str] = []
    for target in targets or found:
        matches = [name for name in found if target in (name, name.split("@")[0])]
        if not matches:
            known = dict.fromkeys(name.split("@")[0] for name in found)
            raise InputError(f"target: {target!r}; a stage needed, one of {', '.join(known)}")
        wanted += matches
    ordered: dict[str, Stage] = {}

    def add(name: str) -> None:
        if name not in ordered:
            for need in sorted(found[name].needs):
                add(need)
            ordered[name] = found[name]

    for name in wanted:
        add(name)
    return list(ordered.values())


def out_of_date(root: Path) -> set[str]:
    """The stages that DVC would not skip as they stand: a dependency, a parameter, the command
    or an output is not what dvc.lock records. Where another process is writing to one, all."""
    from dvc.lock import LockError
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo:
        try:
            return {_address(name, root) for name in repo.status()}
        except LockError:
            return {_address(stage.addressing, root) for stage in repo.index.graph}


def _address(name: str, root: Path) -> str:
    """DVC's name of a stage as seen from ``root``: it gives it as seen from here."""
    path, colon, stage = name.rpartition(":")
    if colon:
        path = os.path.relpath(path, root)
        return stage if path == "dvc.yaml" else f"{path}:{stage}"
    return os.path.relpath(name, root) if name.endswith(".dvc") else name


# The stages that run, of whichever runner of this process.
_RUNNING: set["subprocess.Popen[str]"] = set()


def stages_running() -> bool:
    """Whether this process runs a stage at the moment."""
    return bool(_RUNNING)


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
        command = guarded(dvc_command("--wait-for-lock", "repro", "--single-item", stage))
        outcome, last, error, busy = Outcome.CACHED, "", "", ""
        before, since = absent(self.root, stage), time.time()
        with subprocess.Popen(
            command,
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
            overdue = threading.Event()

            def end_overdue(child: subprocess.Popen[str] = child) -> None:
                overdue.set()
                _end(child)

            timer = threading.Timer(timeout, end_overdue)
            timer.start()
            try:
                if self.stopped.is_set():
                    _end(child)
                assert child.stdout is not None
                for line in map(str.rstrip, child.stdout):
                    if not line or line.startswith(_HINTS):
                        continue
                    log(line)
                    last = line
                    if line.startswith("> "):
                        outcome = Outcome.RAN
                    elif "is cached - skipping run" in line:
                        outcome = Outcome.RESTORED
                    elif "is busy" in line or "Unable to acquire lock" in line:
                        busy = line.removeprefix("ERROR: ")
                    elif line.startswith("error: "):
                        error = line.removeprefix("error: ")
                code = child.wait()
            finally:
                timer.cancel()
                _end(child)
                self._children.discard(child)
                _RUNNING.discard(child)
        if overdue.is_set():
            raise StageError(f"{stage}: ended after {timeout:g} s; a larger --timeout may help")
        if code == 0:
            if left := unstored(self.root, stage, before=before, since=since):
                raise StageError(f"{stage}: {not_stored(self.root, left)}")
            return outcome
        if busy and outcome == Outcome.CACHED:
            raise WorkspaceBusyError(
                f"{stage}: another process, such as `dvc repro`, is at work in {self.root}; wait"
                f" for it and run again ({busy})"
            )
        raise StageError(f"{stage}: {error or last.removeprefix('ERROR: ')}")

    def stop(self) -> None:
        """End every stage that is still running, and let no other start."""
        self.stopped.set()
        for child in list(self._children):
            _end(child)


def _end(child: "subprocess.Popen[str]") -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, 15)


def restore(root: Path) -> None:
    """Bring back what a failed stage took away: DVC removes outputs before a stage runs; the
    recorded ones are in its cache."""
    try:
        stages = locked_stages(root)
    except InputError:  # nothing to go by; the run has failed, and the next one says so
        return
    for stage in stages.values():
        recorded = [out["path"] for out in stage.get("outs", [])]
        if not all((root / path).exists() for path in recorded):
            dvc(root, "checkout", "--quiet", "--force", *recorded, check=False)


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """One full run in a workspace at a time; InputError when another is at work in it."""
    path = root / RUN_LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)  # the system lets go of it when its holder dies
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{root}: another run is at work in this folder; wait for it, or give --set, which"
            " runs in a copy of its own"
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_experiment(root: Path, name: str | None) -> None:
    """InputError where no experiment can be made, or none of this name (None: of any)."""
    if name is not None and (
        not _NAME.fullmatch(name) or ".." in name or name.endswith((".", ".lock"))
    ):
        raise InputError(
            f"--name: {name!r}; letters, digits, dots, dashes and underscores needed, and a letter"
            " or a digit first"
        )
    require_commit(root)
    commit = _git(root, "rev-parse", "HEAD").stdout.strip()
    known = f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"  # where DVC has those of a commit
    if name and not _git(root, "show-ref", "--verify", "--quiet", known, check=False).returncode:
        raise InputError(f"--name: {name!r} is an experiment already; another name needed")


@contextlib.contextmanager
def isolated_copy(
    root: Path, name: str, overrides: Sequence[str], targets: Sequence[str] = ()
) -> Iterator[Path]:
    """A copy of the workspace, uncommitted changes included, with some parameters changed.

    It shares DVC's cache, so it restores what is known and whatever it computes is kept. What
    the block leaves there becomes the DVC experiment ``name`` of the workspace's last commit:
    with ``targets``, of theirs and of what they need only. Neither the workspace nor its
    params.yaml is touched.
    """
    check_experiment(root, name)
    copy = root / COPIES / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(copy.parent)
    lock = FileLock(copy.with_name(f"{name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"--name: {name!r}: a run of that name is at work; another name needed"
        ) from error
    try:
        shutil.rmtree(copy, ignore_errors=True)
        _git(root, "clone", "--quiet", "--shared", str(root), str(copy))
        _git(
            copy, "checkout", "--quiet", "--detach", _git(root, "rev-parse", "HEAD").stdout.strip()
        )
        _mirror(root, copy)
        override(copy / "params.yaml", overrides)
        cache = dvc(root, "cache", "dir").stdout.strip()
        local = root / ".dvc" / "config.local"
        if local.exists():
            shutil.copy(local, copy / ".dvc" / "config.local")
        # From there, as DVC writes no path into its settings that is not ASCII.
        shared = os.path.relpath((root / cache).resolve(), copy.resolve())
        dvc(copy, "cache", "dir", "--local", shared)
        # What is in the cache saves a run of its stage; what is not will be made.
        dvc(copy, "checkout", "--quiet", "--allow-missing", check=False)
        yield copy
        saved: list[str] = []
        if targets:
            # DVC would record what other stages left under the changed parameters as made by them.
            saved = [stage.name for stage in read_stages(copy, targets)]
            _forget(copy, out_of_date(copy) - set(saved))
        dvc(copy, "exp", "save", "--name", name, *saved)
        _git(root, "fetch", "--quiet", str(copy), "refs/exps/*:refs/exps/*")
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        lock.release()


def _remove_abandoned(copies: Path) -> None:
    """Copies whose run was killed, which cannot have removed them."""
    for copy in copies.iterdir():
        if copy.is_dir():
            with contextlib.suppress(Timeout), FileLock(f"{copy}.lock", timeout=0):
                shutil.rmtree(copy, ignore_errors=True)


def _forget(folder: Path, stages: set[str]) -> None:
    """Take stages out of dvc.lock: their results are of other parameters."""
    from dvc.utils.serialize import dumps_yaml  # the same YAML that it reads

    path = folder / LOCK
    if not path.exists():
        return
    content = read_lock(path.read_bytes(), path)
    found = content.get("stages", {})
    kept = {name: entry for name, entry in found.items() if name not in stages}
    write_bytes(path, dumps_yaml({**content, "stages": kept}).encode())


def override(params: Path, overrides: Sequence[str]) -> None:
    """Change parameters as ``dvc exp run -S`` does: ``budgets=[4,6]``, ``data.path=x``; but one
    value each, where that would queue an experiment for each of several: ``seed=range(1,4)``; and
    any text, quoted or not, where that takes few signs beside letters: ``data.path=Bühne (1)``."""
    from dvc.exceptions import InvalidArgumentError
    from dvc.utils.hydra import apply_overrides, to_hydra_overrides
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from ruamel.yaml.error import (
        YAMLError,
    )  # DVC's, of what cannot be written: a sweep inside a list

    unfit = InvalidArgumentError, HydraException, OmegaConfBaseException, YAMLError, ValueError

    for change in overrides:
        key, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"--set: {change!r}; NAME=VALUE needed, as in budgets=[4,6]")
        try:
            change = _parsable(change)
            (parsed,) = to_hydra_overrides([change])
            if _names_nothing(parsed.value()):
                raise InputError(
                    f"--set: {key}: {shown(value)} changes nothing; {key}.NAME=VALUE needed"
                )
            if parsed.is_sweep_override():
                raise InputError(
                    f"--set: {key}: {shown(value)} is a sweep over several values; one value, and a"
                    " run for each, needed"
                )
            apply_overrides(params, [change])
        except InputError:
            raise
        except unfit as error:
            why = (
                known_parameters(key)
                or f"{shown(value)}; a value as YAML has it needed, as in [4,6]"
            )
            raise InputError(f"--set: {key}: {why}") from error


def _parsable(change: str) -> str:
    """The same with its value in quotes, if Hydra takes that text in no other way."""
    from dvc.utils.hydra import to_hydra_overrides
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    key, _, value = change.partition("=")
    try:
        to_hydra_overrides([change])
    except HydraException:
        if value[:1] not in ("'", '"', "[", "{", "$"):
            return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    return change


def _names_nothing(value: object) -> bool:
    """Whether it has an empty block in it, which is merged into the one that is there."""
    if isinstance(value, dict):
        return not value or any(map(_names_nothing, value.values()))
    return False


def dvc_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dvc", *arguments]


def dvc_environment() -> dict[str, str]:
    """The stages are run as ``python -m ...``: let that be this interpreter, on the path or
    not. Nothing reports home, and lines come as they are printed."""
    here = str(Path(sys.executable).parent)
    return (os.environ | TELEMETRY_OFF) | {
        "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }


def dvc(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A quick DVC command in a workspace."""
    return _run(dvc_command("--wait-for-lock", *arguments), root, check)


def _git(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return _run(["git", *arguments], root, check)


def _run(command: list[str], root: Path, check: bool) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, cwd=root, env=dvc_environment(), capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise StageError(f"{' '.join(command[-3:])}: {(done.stderr or done.stdout).strip()}")
    return done


def _mirror(root: Path, copy: Path) -> None:
    """Make the files that git tracks or would track in the copy those of the workspace."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    # Links last: where they lead to is there by then, if it comes at all.
    names = sorted(filter(None, listed.split("\0")), key=lambda name: (root / name).is_symlink())
    for name in names:
        source, target = root / name, copy / name
        if source.is_symlink():
            _link(source, target)
        elif source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
        else:
            target.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """The same link in the copy; to where it leads from the workspace if from there to nothing, as
    a relative one out of the project, or to what git ignores."""
    if target.is_dir() and not target.is_symlink():
        raise InputError(  # which an experiment cannot record: DVC fails to, at the end
            f"{source}: a link in place of a folder that git knows; a commit of that, or a link"
            " under another name, needed for --set"
        )
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.readlink())
    if source.exists() and not target.exists():
        target.unlink()
        target.symlink_to(source.resolve())
