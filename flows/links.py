"""Where the MLflow run of a record is: noted when it is logged, so that it can be shown without
asking MLflow, whose import alone takes seconds."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from boss_core.files import write_bytes
from flows import paths

LINKS = Path(".dvc/tmp/mlflow-runs.json")
UI = "http://127.0.0.1:5000"  # where `boss ui` serves a database that has no server of its own


def record_hash(budget: int, folder: Path = Path()) -> str:
    """The hash of all that a run shows: metrics, training curve, schedules of the budget."""
    schedules = json.loads((folder / paths.SCHEDULES).read_text())[str(budget)]
    digest = hashlib.sha256(json.dumps(schedules, sort_keys=True).encode())
    for path in (paths.metrics(budget), paths.curves(budget)):
        digest.update((folder / path).read_bytes())
    return digest.hexdigest()[:32]


def note_link(uri: str, record: str, experiment_id: str, run_id: str) -> None:
    known = _read(Path()) | {f"{uri} {record}": f"/#/experiments/{experiment_id}/runs/{run_id}"}
    write_bytes(LINKS, json.dumps(known, indent=1).encode())


def read_links(uri: str, budgets: Iterable[int], folder: Path = Path()) -> dict[int, str]:
    """The address of the run of every budget whose record is known to be in MLflow."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return {}
    known = _read(folder)
    # A server may have another name for a browser than for the worker: in containers it does.
    server = os.environ.get("MLFLOW_UI_URL") or (uri if uri.startswith("http") else UI)
    found = {k: known.get(f"{uri} {record_hash(k, folder)}") for k in budgets}
    return {k: server.rstrip("/") + path for k, path in found.items() if path}


def _read(folder: Path) -> dict[str, str]:
    path = folder / LINKS
    return json.loads(path.read_text()) if path.exists() else {}
