"""Where the MLflow run of a record is: noted when it is logged, so that it can be shown without
asking MLflow, whose import alone takes seconds."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from boss_core.io.files import write_bytes
from flows import paths
from flows.records.json_files import read_json
from flows.records.passwords import without_password

LINKS = Path(".dvc/tmp/mlflow-runs.json")
UI = "http://127.0.0.1:5000"  # where `boss ui` serves a database that has no server of its own


def lacking(budget: int, folder: Path = Path()) -> str | None:
    """What a budget's record is not whole without, such as after its budget was taken out of
    params.yaml and put back; None where it is."""
    of_budget = (paths.metrics(budget), paths.curves(budget), paths.samples(budget))
    for path in (paths.SCHEDULES, *of_budget):
        if not (folder / path).exists():
            return f"{path}: no such file"
    if str(budget) not in read_json(folder / paths.SCHEDULES):
        return f"{paths.SCHEDULES}: no budget {budget}"
    return None


def record_hash(budget: int, folder: Path = Path()) -> str:
    """The hash of all that a run shows: metrics and what they are of, training curve, schedules of
    the budget; the record has to be whole."""
    schedules = read_json(folder / paths.SCHEDULES)[str(budget)]
    digest = hashlib.sha256(json.dumps(schedules, sort_keys=True).encode())
    files = [paths.metrics(budget), paths.curves(budget)]
    if (folder / paths.made_of(budget)).exists():  # not of a record of an earlier version
        files.append(paths.made_of(budget))
    for path in files:
        digest.update((folder / path).read_bytes())
    return digest.hexdigest()[:32]


def note_link(uri: str, record: str, experiment_id: str, run_id: str) -> None:
    run = f"/#/experiments/{experiment_id}/runs/{run_id}"
    known = _read(Path()) | {f"{without_password(uri)} {record}": run}
    try:
        write_bytes(LINKS, json.dumps(known, indent=1).encode())
    except OSError as error:  # the run is logged all the same
        print(f"warning: {LINKS}: {error.strerror}; the flow's page lacks a link", file=sys.stderr)


def read_links(uri: str, budgets: Iterable[int], folder: Path = Path()) -> dict[int, str]:
    """The address of the run of every budget whose record is known to be in MLflow."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return {}
    known = _read(folder)
    # A server may have another name for a browser than for the worker: in containers it does.
    server = os.environ.get("MLFLOW_UI_URL") or (_anonymous(uri) if uri.startswith("http") else UI)
    shown = without_password(uri)
    whole = [k for k in budgets if not lacking(k, folder)]
    found = {k: known.get(f"{shown} {record_hash(k, folder)}") for k in whole}
    return {k: server.rstrip("/") + path for k, path in found.items() if path}


def runs_page(uri: str, budgets: Iterable[int]) -> str:
    """The path of the page with the runs of this project's experiment; nothing where none is known
    to be logged. MLflow's own first page is one of traces of language models."""
    for link in read_links(uri, budgets).values():
        experiment = link.partition("/#/experiments/")[2].partition("/")[0]
        return f"/#/experiments/{experiment}/runs?workflowType=machine_learning"
    return ""


def _anonymous(url: str) -> str:
    """The address of a server without user and password: a browser asks for them."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _read(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / LINKS).read_text())
    except (OSError, ValueError):  # cut short, it is no more than links to be made again
        return {}
    return found if isinstance(found, dict) else {}
