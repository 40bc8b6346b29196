"""``boss run``: check, ``dvc repro``, and the last good outputs back where a stage failed."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from flows import paths
from flows.config import load_params
from flows.stages.check import check

LOCK = Path("dvc.lock")


def run() -> int:
    """Bring every output up to date; the exit code: 0, or 2 when a stage failed."""
    check(load_params())
    try:
        code = _dvc("repro")
    except KeyboardInterrupt:
        code = 130
    if code:
        _restore()
        print(
            "error: the run stopped at the stage above; every finished stage is kept, and the"
            " outputs of the last good run are back in place",
            file=sys.stderr,
        )
        return 2
    return 0


def _restore() -> None:
    """DVC removes the outputs of a stage before it runs; take the recorded ones from its cache."""
    if not LOCK.exists():
        return
    stages = yaml.safe_load(LOCK.read_text()).get("stages", {})
    for stage in stages.values():
        recorded = [out["path"] for out in stage.get("outs", [])]
        if not all(Path(path).exists() for path in recorded):
            _dvc("checkout", "--quiet", "--force", *recorded)


def _dvc(*arguments: str) -> int:
    # The stages are run as `python -m ...`: let that be this interpreter, on the path or not.
    here = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}"}
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], env=environment).returncode


def closing_lines() -> str:
    """Where a user finds the results."""
    return (
        f"Report: {paths.REPORT} (one file, open it in a browser)\n"
        "MLflow: `make ui`, or `boss ui`, then http://127.0.0.1:5000"
    )
