"""A run with other parameters: a copy of the workspace, which becomes a DVC experiment."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from boss_core.errors import InputError
from flows.config import known_parameters
from flows.strict_yaml import shown
from flows.workspace.dvc_lock import forget
from flows.workspace.experiment_names import experiment_exists
from flows.workspace.graph import out_of_date, read_stages
from flows.workspace.integrity import COPIES
from flows.workspace.process import dvc, git
from flows.workspace.scm import require_commit

INPUTS = "inputs"  # what users bring, which git ignores

# Of an experiment: it names a folder and a git reference.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    if name and experiment_exists(root, name):
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
        git(root, "clone", "--quiet", "--shared", str(root), str(copy))
        git(copy, "checkout", "--quiet", "--detach", git(root, "rev-parse", "HEAD").stdout.strip())
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
            forget(copy, out_of_date(copy) - set(saved))
        dvc(copy, "exp", "save", "--name", name, *saved)
        git(root, "fetch", "--quiet", str(copy), "refs/exps/*:refs/exps/*")
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        lock.release()


def _remove_abandoned(copies: Path) -> None:
    """Copies whose run was killed, which cannot have removed them."""
    for copy in copies.iterdir():
        if copy.is_dir():
            with contextlib.suppress(Timeout), FileLock(f"{copy}.lock", timeout=0):
                shutil.rmtree(copy, ignore_errors=True)


def override(params: Path, overrides: Sequence[str]) -> None:
    """Change parameters as ``dvc exp run -S`` does: ``budgets=[4,6]``, ``data.path=x``; but one
    value each, where that would queue an experiment for each of several: ``seed=range(1,4)``; and
    any text, quoted or not, where that takes few signs beside letters: ``data.path=Bühne (1)``.

    InputError for a change that cannot be made, and for a file that DVC cannot read."""
    from dvc.exceptions import DvcException, InvalidArgumentError
    from dvc.utils.hydra import apply_overrides
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from ruamel.yaml.error import (
        YAMLError,
    )  # DVC's, of what cannot be written: a sweep inside a list

    unfit = InvalidArgumentError, HydraException, OmegaConfBaseException, YAMLError, ValueError

    with contextlib.suppress(*unfit, DvcException):
        # At once, as the file is read and written each time; below is said which cannot be made.
        apply_overrides(params, [_checked(change) for change in overrides])
        return
    for change in overrides:
        key, _, value = change.partition("=")
        try:
            apply_overrides(params, [_checked(change)])
        except InputError:
            raise
        except unfit as error:
            why = (
                known_parameters(key)
                or f"{shown(value)}; a value as YAML has it needed, as in [4,6]"
            )
            raise InputError(f"--set: {key}: {why}") from error
        except DvcException as error:  # of the file
            raise InputError(" ".join(str(error).split())) from error


def _checked(change: str) -> str:
    """A change as Hydra reads it; InputError for one of nothing, or of several values."""
    from dvc.utils.hydra import to_hydra_overrides

    key, equals, value = change.partition("=")
    if not equals:
        raise InputError(f"--set: {change!r}; NAME=VALUE needed, as in budgets=[4,6]")
    change = _parsable(change)
    (parsed,) = to_hydra_overrides([change])
    if _names_nothing(parsed.value()):
        raise InputError(f"--set: {key}: {shown(value)} changes nothing; {key}.NAME=VALUE needed")
    if parsed.is_sweep_override():
        raise InputError(
            f"--set: {key}: {shown(value)} is a sweep over several values; one value, and a run for"
            " each, needed"
        )
    return change


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


def _mirror(root: Path, copy: Path) -> None:
    """Make the files that git tracks or would track in the copy those of the workspace, and bring
    what git ignores in `INPUTS`."""
    tracked = _listed(root, "--cached", "--others", "--exclude-standard")
    ignored = _listed(root, "--others", "--ignored", "--exclude-standard", "--", INPUTS)
    brought = {name for name in ignored if not _in_cache(root, name)}
    # Links last: where they lead to is there by then, if it comes at all.
    for name in sorted([*tracked, *brought], key=lambda name: (root / name).is_symlink()):
        source, target = root / name, copy / name
        if source.is_symlink():
            _link(source, target)
        elif source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            (_same_file if name in brought else shutil.copy2)(source, target)
        elif source.is_dir():  # a repository in this one, as a network's that was cloned
            shutil.copytree(
                source, target, symlinks=True, ignore=shutil.ignore_patterns(".git"),
                copy_function=_same_file if name in brought else shutil.copy2, dirs_exist_ok=True,
            )  # fmt: skip
        else:
            target.unlink(missing_ok=True)


def _listed(root: Path, *which: str) -> list[str]:
    return [name for name in git(root, "ls-files", "-z", *which).stdout.split("\0") if name]


def _same_file(source: str | Path, target: str | Path) -> None:
    """A second name for a file: a network's weights may be gigabytes. A copy where the file system
    has no such names."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _in_cache(root: Path, name: str) -> bool:
    """Whether `dvc add` has put it there, from where `dvc checkout` brings it."""
    path = Path(name)
    places = (path, *path.parents)[: len(path.parts)]
    return any((root / p.with_name(f"{p.name}.dvc")).is_file() for p in places)


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
