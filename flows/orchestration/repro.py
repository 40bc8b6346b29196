"""``boss repro``: check, ``dvc repro``, and the last good outputs back where a stage failed."""

import subprocess
import sys
import time
from pathlib import Path

from flows import paths
from flows.config import load_params
from flows.orchestration.request import check_folder
from flows.stages.check import check
from flows.workspace.integrity import absent, not_stored, unstored
from flows.workspace.process import dvc_command, dvc_environment
from flows.workspace.recovery import restore, set_aside_cut_short
from flows.workspace.scm import settle_git


def repro() -> int:
    """Bring every output up to date; the exit code: 0, or 2 when a stage failed."""
    check_folder(Path())
    check(load_params())
    set_aside_cut_short(Path())
    settle_git(Path())
    before, since = absent(Path()), time.time()
    try:
        code = subprocess.run(dvc_command("repro"), env=dvc_environment()).returncode
    except KeyboardInterrupt:
        code = 130
    left = unstored(Path(), before=None if code else before, since=since)
    if code:
        restore(Path())
        print(
            "error: the run stopped at the stage above; every finished stage is kept, and the"
            " outputs of the last good run are back in place",
            file=sys.stderr,
        )
    if left:
        print(f"error: {not_stored(Path(), left)}", file=sys.stderr)
    return 2 if code or left else 0


def closing_lines() -> str:
    """Where a user finds the results."""
    return (
        f"Report: {paths.REPORT} (one file, open it in a browser)\n"
        "MLflow: `make ui`, or `boss ui`, then http://127.0.0.1:5000"
    )
