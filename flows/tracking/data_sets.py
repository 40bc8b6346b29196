"""What a run measures against, as MLflow's data sets: by name, DVC's hash and source."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows import paths
from flows.config import Data, Params
from flows.records.json_files import Json, read_json
from flows.tracking.connection import PROJECT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

_TRIES, _BETWEEN = 10, 0.1  # and seconds
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is
LONGEST = 36  # characters of a digest: as wide as MLflow's column, and DVC's hash of a folder


def references(params: Params, record: Json) -> "Sequence[DatasetInput]":
    """The real images, and of a pipeline its own images before them: those that `frechet` is
    measured against come first."""
    found = []
    count = int(record["reference_samples"])
    if record.get("reference") == "teacher":
        asked = read_json(paths.TEACHER / "card.json").get("asked", {})
        name = f"{asked.get('source')}: its own images"
        digest = _dvc_hash("floor", paths.samples("teacher")) or record["reference_hash"]
        found.append(_input(name, digest, "local", _local(str(paths.samples("teacher"))), count))
    real = "real_reference_hash" if found else "reference_hash"
    card = read_json(paths.DATA / "card.json")
    if real in record and card.get("train"):
        digest = _dvc_hash("prepare", paths.DATA) or record[real]
        kind, source = _source(params.data)
        found.append(_input(str(card["source"]), digest, kind, source, count, card))
    return found


def log_references(client: "MlflowClient", run: str, found: "Sequence[DatasetInput]") -> None:
    """Name what a run measures against. Of two projects that are the first to name a data set, a
    server with a database refuses the one whose entry comes second; the next try finds it there."""
    from mlflow.exceptions import MlflowException

    for tries in range(_TRIES, 0, -1):
        try:
            client.log_inputs(run, found)
            return
        except MlflowException as error:
            if tries == 1 or "nique" not in str(error):  # UniqueViolation, UNIQUE constraint
                raise
            time.sleep(_BETWEEN)


def _input(
    name: str, digest: str, kind: str, source: Json, count: int, card: Json | None = None
) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile: dict[str, Any] = {"num_rows": count}  # those that are compared with
    if card is not None:
        profile |= {"of": card["train"], "shape": card["shape"], "classes": card.get("classes")}
    described = Dataset(
        name=name,
        digest=digest[:LONGEST],
        source_type=kind,
        source=json.dumps(source),
        profile=json.dumps(profile),
    )
    return DatasetInput(described, [InputTag("mlflow.data.context", "evaluation")])


def _source(data: Data) -> tuple[str, Json]:
    """Where the images come from: a type of MLflow's and what that needs, for
    ``mlflow.data.get_source``."""
    if data.source == "digits":
        return "code", {"tags": {"mlflow.source.name": "sklearn.datasets.load_digits"}}
    return "local", _local(data.path)


def _local(path: str) -> Json:
    return {"uri": str(Path(os.environ.get(PROJECT, ""), path).resolve())}


def _dvc_hash(stage: str, path: Path) -> str | None:
    """That of an output in dvc.lock; None where DVC did not make it.

    A stage that ends beside this one writes the file in one go, but in place: what is cut short is
    looked at again."""
    lock = Path("dvc.lock")
    for _ in range(_TRIES if lock.is_file() else 0):
        try:
            outs = yaml.load(lock.read_text(), _LOADER)["stages"][stage]["outs"]
            return next(str(out["md5"]) for out in outs if out["path"] == path.as_posix())
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, StopIteration):
            time.sleep(_BETWEEN)
    return None
