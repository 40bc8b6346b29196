"""What is asked of a run, checked before anything is copied or started."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from boss_core.errors import InputError
from flows.config import PARAMS, load_params
from flows.stages.check import check
from flows.workspace.experiment import check_experiment, override
from flows.workspace.graph import read_stages


def check_request(
    root: Path, overrides: Sequence[str], targets: Sequence[str], name: str | None
) -> None:
    """InputError when the folder ``root``, which can be written to (`check_folder`), cannot be run
    like this.

    With overrides, targets are left to the copy that is run: which budgets there are, its
    parameters say."""
    if overrides:
        check_overrides(root, overrides)
        check_experiment(root, name)
        return
    if name is not None:
        raise InputError(
            f"--name: {name!r} without --set; a run without changed parameters is no experiment,"
            " so no name needed"
        )
    check(load_params(root / PARAMS))
    if targets:
        read_stages(root, targets)


def check_folder(root: Path) -> None:
    """InputError where nothing can be written into the project's folder."""
    if not os.access(root, os.W_OK):
        raise InputError(
            f"{root.resolve()}: may not be written to; a folder for the results needed"
        )


def check_overrides(root: Path, overrides: Sequence[str]) -> None:
    """InputError when params.yaml with these changes would not be valid."""
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
            check(params)
        except InputError as error:
            text = str(error).replace(f"{changed}: ", "--set: ").replace(f"{PARAMS}: ", "--set: ")
            raise InputError(text) from error
