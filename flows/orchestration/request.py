"""What is asked of a run, checked before anything is copied or started."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from boss_core.errors import InputError
from flows.config import PARAMS, Params, load_params
from flows.stages.check import Found, check, named_inputs
from flows.workspace.experiment import INPUTS, check_experiment, override
from flows.workspace.graph import read_stages
from flows.workspace.process import git


def check_request(
    root: Path,
    overrides: Sequence[str],
    targets: Sequence[str],
    name: str | None,
    by: str = "--set",
) -> None:
    """InputError when the folder ``root``, which can be written to (`check_folder`), cannot be run
    like this.

    With overrides, targets are left to the copy that is run: which budgets there are, its
    parameters say. by: what the overrides come from, see `changed_by`."""
    if overrides:
        check_overrides(root, overrides, by)
        check_experiment(root, name)
        return
    if name is not None:
        raise InputError(
            f"--name: {name!r} without --set or --preset; a run without changed parameters is no"
            " experiment, so no name needed"
        )
    check(load_params(root / PARAMS))
    if targets:
        read_stages(root, targets)


def changed_by(presets: Sequence[str], overrides: Sequence[str]) -> str:
    """The options that parameters were changed by, for what is said of a wrong one."""
    used = [f"--preset {name}" for name in presets]
    return " ".join([*used, *(["--set"] if overrides or not used else ())])


def check_folder(root: Path) -> None:
    """InputError where nothing can be written into the project's folder."""
    if not os.access(root, os.W_OK):
        raise InputError(
            f"{root.resolve()}: may not be written to; a folder for the results needed"
        )


def check_overrides(
    root: Path, overrides: Sequence[str], by: str = "--set"
) -> tuple[Params, Found | None]:
    """InputError when params.yaml with these changes would not be valid; else the parameters, and
    what is known of the images. by: what the changes come from, see `changed_by`."""
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / PARAMS.name
        try:
            shutil.copyfile(root / PARAMS, changed)
            override(changed, overrides)
        except (OSError, InputError):
            load_params(root / PARAMS)  # not there, or not YAML: says so
            raise
        try:
            params = load_params(changed)
            found = check(params)
            _check_seen_from_a_copy(root, params)
        except InputError as error:
            text = str(error).replace(f"{changed}: ", f"{by}: ").replace(f"{PARAMS}: ", f"{by}: ")
            raise InputError(text) from error
        return params, found


def _check_seen_from_a_copy(root: Path, params: Params) -> None:
    """InputError for inputs that a copy of the folder would not have: those that a relative path
    finds outside of it, and those in it that neither git nor DVC brings there."""
    for name, path in named_inputs(params).items():
        if path.is_absolute():
            continue
        inside = Path(os.path.normpath(path))
        why = ""
        if inside.parts[:1] == ("..",):
            why = "leads out of the project"
        elif not _comes_along(root, inside):
            why = "is ignored by git"
        if why:
            raise InputError(
                f"{PARAMS}: {name}: {path}: {why}, and a run with --set works in a copy elsewhere;"
                f" the absolute path, {(root / path).absolute().resolve()}, needed"
            )


def _comes_along(root: Path, path: Path) -> bool:
    """Whether git has a file or folder of the project, or a link to it, or DVC (``dvc add``), or it
    lies where users bring what git ignores."""
    if path.parts[:1] == (INPUTS,) or any(
        (root / f"{each}.dvc").is_file() for each in (path, *path.parents)
    ):
        return True
    return bool(git(root, "check-ignore", "--quiet", str(path), check=False).returncode)
