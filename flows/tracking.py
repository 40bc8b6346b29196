"""MLflow shows what the files record: one run for each budget.

``metrics/K.json`` and the curves are the record; a run is a projection of them and carries the
hash of its record, so projecting twice adds nothing and a lost database loses nothing.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from filelock import FileLock

from flows import paths
from flows.config import Params
from flows.records import Json, read_json
from flows.variants import VARIANTS, read_schedules

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD_TAG = "boss.record"


def tracking_uri(params: Params) -> str:
    """The MLflow server of params.yaml or of the environment, else sqlite in this folder, by
    its absolute path (a relative one would name another file in another folder)."""
    return (
        params.tracking.uri
        or os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{Path('mlflow.db').resolve()}"
    )


def quiet_environment() -> dict[str, str]:
    """The environment with MLflow's telemetry off."""
    return os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def track_budget(params: Params, budget: int) -> None:
    """Project the record of one budget. A tracking server that fails does not fail the work:
    one line says so, and `boss track` projects the record later."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = tracking_uri(params)
    try:
        _project(_client(uri), params, budget)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(error).splitlines()[0]
        print(
            f"warning: MLflow at {uri}: {reason}; metrics are safe in {paths.metrics(budget)},"
            " `boss track` logs them later",
            file=sys.stderr,
        )


def _client(uri: str) -> "MlflowClient":
    os.environ.update(quiet_environment())
    # A server that is down is known to be after seconds, not minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    import logging

    import mlflow

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # Several writers on a fresh database crash in its migration: the first creates it alone.
    with FileLock(Path("mlflow.db.lock")):
        client = mlflow.MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _project(client: "MlflowClient", params: Params, budget: int) -> None:
    from mlflow.entities import Metric, Param, RunTag

    record = read_json(paths.metrics(budget))
    experiment = _experiment(client, str(read_json(paths.DATA / "card.json")["source"]))
    digest = _record_hash(budget)
    if client.search_runs([experiment], f"tags.`{RECORD_TAG}` = '{digest}'", max_results=1):
        return

    run = client.create_run(experiment, run_name=f"K={budget}")
    run_id = run.info.run_id
    values = {"nfe": budget, **_flatten(params.model_dump(mode="json"))}
    tags = {
        **{k: str(v) for k, v in record.items() if k.endswith("_hash") and isinstance(v, str)},
        **{f"student_hash.{k}": str(v) for k, v in record["student_hash"].items()},
        "extractor": record["extractor"],
    }
    commit = _git_commit()
    if commit:
        tags["git_commit"] = commit
    now = int(1000 * time.time())
    metrics = [Metric("nfe", budget, now, 0), Metric("samples", record["samples"], now, 0)]
    for variant in VARIANTS:
        metrics += [Metric(f"{variant}/{k}", v, now, 0) for k, v in record[variant].items()]
    for row in pd.read_csv(paths.curves(budget)).to_dict("records"):
        step = int(row.pop("step"))
        metrics += [Metric(f"training/{k}", float(v), now, step) for k, v in row.items()]
    for start in range(0, len(metrics), 1000):  # the most that one call takes
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    client.log_batch(
        run_id,
        params=[Param(k, str(v)) for k, v in values.items()],
        tags=[RunTag(k, v) for k, v in tags.items()],
    )
    schedules = {k: v.model_dump(mode="json") for k, v in read_schedules()[budget].items()}
    client.log_dict(run_id, schedules, "schedules.json")
    client.log_artifact(run_id, str(paths.metrics(budget)))
    client.log_artifacts(run_id, str(paths.samples(budget)), "samples")
    # Last, so that a run that was cut short is not taken for the whole of its record.
    client.set_tag(run_id, RECORD_TAG, digest)
    client.set_terminated(run_id)


def _record_hash(budget: int) -> str:
    digest = hashlib.sha256()
    for path in (paths.metrics(budget), paths.curves(budget), paths.SCHEDULES):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _experiment(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException:  # another writer was first
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _flatten(values: Json, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # not a git repository, or no git: DVC runs without it too
    return found.stdout.strip()
