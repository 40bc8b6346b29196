"""Students as models of MLflow's: with the run of their method, and in the registry where
``tracking.registered_model`` asks for it."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from boss_core.checkpoints.folder import CARD, WEIGHTS, Card, parse_card
from flows import paths
from flows.tracking.methods import BUDGET_RUN_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

MODEL = "model"  # its name: ``runs:/RUN/model``
PACKAGE = "boss-flow"


def log_student(
    client: "MlflowClient", uri: str, experiment: str, run: str, budget: int, method: str
) -> None:
    """The student of a budget and method, with its method's run. Nothing for an adapter and for a
    student of a pipeline, which no network of ours is: their artifacts are with the budget's run.
    """
    folder = paths.student(budget) / method
    if not (folder / WEIGHTS).is_file() or not (folder / CARD).is_file():
        return
    import mlflow
    import mlflow.pyfunc
    from mlflow.models import Model

    card = parse_card(folder / CARD, Card)
    # Made here, as `Model.log` would make it in the experiment that is the default.
    made = client.create_logged_model(experiment, name=MODEL, source_run_id=run)
    with _default(uri), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[^A]*An input example was not provided")
        Model.log(
            artifact_path=None,
            name=MODEL,
            model_id=made.model_id,
            flavor=mlflow.pyfunc,
            run_id=run,
            step=budget,  # of the metrics that are the model's as well
            python_model=str(Path(__file__).with_name("student_model.py")),
            artifacts={"student": str(folder)},
            signature=_signature(card),
            pip_requirements=[_requirement()],
        )
    _share(made.artifact_location, folder / WEIGHTS)


def register_students(
    client: "MlflowClient", experiment: str, budget_run: str, name: str | None
) -> None:
    """Every student of a budget's run as a version of the model ``NAME-K4-METHOD``, unless it is
    one; nothing where no name is given."""
    if name is None:
        return
    from mlflow.exceptions import MlflowException

    for run in client.search_runs([experiment], f"tags.`{BUDGET_RUN_TAG}` = '{budget_run}'"):
        for model in run.outputs.model_outputs if run.outputs else ():
            tags = run.data.tags
            full = f"{name}-K{tags['budget']}-{tags['method']}"
            if client.search_model_versions(f"name = '{full}' and run_id = '{run.info.run_id}'"):
                continue
            with suppress(MlflowException):  # it is there
                client.create_registered_model(full)
            client.create_model_version(
                full,
                f"models:/{model.model_id}",
                run_id=run.info.run_id,
                model_id=model.model_id,
            )


def _signature(card: Card) -> "ModelSignature":
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    columns = [ColSpec(DataType.long, "count"), ColSpec(DataType.long, "seed", required=False)]
    if card.config.classes is not None:
        columns.append(ColSpec(DataType.long, "label", required=False))
    images = TensorSpec(np.dtype("uint8"), (-1, *card.config.sample_shape))
    return ModelSignature(inputs=Schema(columns), outputs=Schema([images]))


def _requirement() -> str:
    try:
        return f"{PACKAGE}=={version(PACKAGE)}"
    except PackageNotFoundError:  # run from a checkout that is not installed
        return PACKAGE


def _share(location: str, weights: Path) -> None:
    """Where MLflow's artifacts lie on this disk, its copy of the weights and the project's are one
    file: both are replaced and removed, never written into."""
    if not location.startswith("file:"):
        return
    for copy in Path(url2pathname(urlsplit(location).path)).rglob(weights.name):
        linked = copy.with_name(f".{copy.name}.linked")
        with suppress(OSError):  # of another disk, or one without links: the copy stays
            os.link(weights.resolve(), linked)
            os.replace(linked, copy)


@contextmanager
def _default(uri: str) -> Iterator[None]:
    """MLflow's own default is this address meanwhile: models are logged to no other."""
    import mlflow

    before: Any = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
