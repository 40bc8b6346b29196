"""MLflow shows what the files record: one run for each budget and one for each method
at it (`flows.tracking.methods`), under one for the pipeline run.

``metrics/K.json`` and the curves are the record; a run is a projection of them and carries the
hash of its record, so projecting twice adds nothing and a lost database loses nothing.

The parent says in words what is best at each budget.
"""

import hashlib
import json
import os
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from boss_core.errors import InputError
from boss_core.ode.schedule import Schedule
from flows import paths
from flows.config import Params
from flows.measure.usage import amounts, read_usage
from flows.records.json_files import Json, read_json
from flows.records.judges import best, judges, read_estimates, remark
from flows.records.variants import read_schedules, recorded
from flows.strict_yaml import shown
from flows.tracking.connection import connected, find_experiment, sqlite_file, tracking_uri
from flows.tracking.links import note_link, record_hash, without_password
from flows.tracking.methods import BUDGET_RUN_TAG, delete_methods, log_methods, method_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD_TAG = "boss.record"
PIPELINE_TAG = "boss.pipeline"
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
_IN_RECORD = ("nfe", "samples", "teacher_hash", "extractor_hash", "extractor", "student_hash")
NOT_LOGGED = {"tracking"}  # where the log is; its address may hold a password


def track_budget(params: Params, budget: int) -> str:
    """Project the record of one budget; says in a few words what was done.

    Raises InputError when the record is not whole, and when MLflow cannot be reached or refuses:
    the record is kept all the same.
    """
    uri = tracking_uri(params)
    record = _read_record(params, budget)  # before, so that MLflow is not blamed for it
    try:
        return _project(uri, params, record)
    except InputError:
        raise
    # Stores of MLflow and drivers of databases raise what they like, down to ImportError.
    except Exception as error:
        lines = str(error).splitlines() or [""]
        message = without_password(f"MLflow at {uri}: {type(error).__name__}: {lines[0]}")
        message += f"; metrics are safe in {paths.metrics(budget)}, `boss track` logs them later"
        if database := sqlite_file(uri):
            message += f" (into a new database, if {database} is moved away)"
        raise InputError(message) from error


@dataclass(frozen=True)
class _Record:
    """All that is shown of one budget.

    source: of the data, which names the experiment. digest: see `record_hash`. metrics: what is in
    ``metrics/K.json``. schedules: by their names. curves: the training's, (step, its values).
    decided: tags that say what is best, and by whom."""

    budget: int
    source: str
    digest: str
    metrics: Json
    schedules: dict[str, Schedule]
    curves: list[tuple[int, dict[str, float]]]
    decided: dict[str, str]


def _read_record(params: Params, budget: int) -> _Record:
    """InputError with the file that is not there, or that has not in it what its stage writes."""
    path, mend = paths.metrics(budget), "remove it, and `dvc repro` brings it back"
    metrics = read_json(path)
    variants = recorded(metrics)
    lacks = [key for key in _IN_RECORD if key not in metrics] + ["a method"] * (not variants)
    if lacks:
        raise InputError(f"{path}: without {', '.join(lacks)}; {mend}")
    if metrics["nfe"] != budget:
        raise InputError(f"{path}: nfe: {shown(metrics['nfe'])}; {budget} needed; {mend}")
    if not isinstance(metrics["student_hash"], dict):
        raise InputError(f"{path}: student_hash: a JSON object needed; {mend}")
    for name in variants:
        of_name = metrics[name]
        if not isinstance(of_name, dict) or not all(map(_is_number, of_name.values())):
            raise InputError(f"{path}: {name}: {shown(of_name)}; numbers by name needed; {mend}")
    if not _is_number(metrics["samples"]):
        raise InputError(f"{path}: samples: {shown(metrics['samples'])}; a number needed; {mend}")

    source = _source(mend)
    schedules = read_schedules().get(budget, {})
    for variant in variants.values():
        if variant.schedule not in schedules:
            raise InputError(f"{paths.SCHEDULES}: no {variant.schedule} of budget {budget}; {mend}")
    try:
        rows = pd.read_csv(paths.curves(budget)).to_dict("records")
        curves = [
            (int(row.pop("step")), {str(k): float(v) for k, v in row.items()}) for row in rows
        ]
    except FileNotFoundError as error:
        raise InputError(f"{paths.curves(budget)}: no such file; `dvc repro` makes it") from error
    except (ValueError, KeyError) as error:
        raise InputError(f"{paths.curves(budget)}: no training's curve; {mend}") from error
    if not paths.samples(budget).is_dir():
        raise InputError(f"{paths.samples(budget)}: no such folder; `dvc repro` makes it")
    decided = _decided(params, budget, metrics)
    return _Record(budget, source, record_hash(budget), metrics, schedules, curves, decided)


def _decided(params: Params, budget: int, metrics: Json) -> dict[str, str]:
    """What is best of a budget by the judge that decides, or level, by variants' names; whether it
    is ahead by more than chance; and the same in words, as the run's description."""
    variants, found = recorded(metrics), judges(metrics, params.schedule)
    judge, titles = found[0], {name: variant.title for name, variant in variants.items()}
    of_best = best(judge, variants, read_estimates(budget, metrics, judge.metric))
    tags = {"judge": judge.name}
    words = f"{judge.metric} ranks nothing here."
    if of_best is not None:
        tags["best"] = ",".join(of_best.level)
        tags["best.ahead_by_more_than_chance"] = str(len(of_best.level) == 1).lower()
        names = "; ".join(titles[name] for name in of_best.level)
        words = (
            f"By {judge.metric} the best is {names}, ahead of every other by more than chance."
            if len(of_best.level) == 1
            else f"By {judge.metric} these are level, not told apart: {names}."
        )
    tags[NOTE_TAG] = " ".join(filter(None, (words, remark(found, variants))))
    return tags


def _source(mend: str) -> str:
    """What names the experiment: the data, or a pipeline that is compared with nothing else."""
    card = paths.DATA / "card.json"
    source = read_json(card).get("source")
    if source == "none":
        asked = read_json(paths.TEACHER / "card.json").get("asked")
        source = asked.get("source") if isinstance(asked, dict) else None
    if not isinstance(source, str):
        raise InputError(f"{card}: source: {shown(source)}; a name needed; {mend}")
    return source


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _project(uri: str, params: Params, record: _Record) -> str:
    budget, digest = record.budget, record.digest
    with connected(uri) as client:
        experiment = find_experiment(client, record.source, uri)
        known = client.search_runs([experiment], f"tags.`{RECORD_TAG}` = '{digest}'", max_results=1)
        if known:
            note_link(uri, digest, experiment, known[0].info.run_id)
            return f"K={budget}: in MLflow"
        parent = _parent(client, experiment, params, record.metrics, budget)
        run = client.create_run(
            experiment, run_name=f"K={budget}", tags={PARENT_TAG: parent}
        ).info.run_id
        _log(client, run, params, record)
        found = method_runs(params, budget, record.metrics, record.schedules)
        shared = {PARENT_TAG: parent, BUDGET_RUN_TAG: run, **_tags(record.metrics)}
        log_methods(client, experiment, shared, found)
        _describe_best(client, experiment, parent)
        client.set_terminated(run)
        client.set_terminated(parent)
        # Last, so that a run that was cut short is not taken for the whole of its record.
        client.set_tag(run, RECORD_TAG, digest)
        note_link(uri, digest, experiment, run)
        return f"K={budget}: logged to MLflow"


def _describe_best(client: "MlflowClient", experiment: str, parent: str) -> None:
    """The descriptions of all budgets' runs, as the parent's own."""
    found = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{parent}'")
    words = {
        int(run.data.params["nfe"]): run.data.tags[NOTE_TAG]
        for run in found
        if NOTE_TAG in run.data.tags and "nfe" in run.data.params
    }
    text = "\n".join(f"- **K={budget}**: {words[budget]}" for budget in sorted(words))
    client.set_tag(parent, NOTE_TAG, text)


def _log(client: "MlflowClient", run: str, params: Params, of_budget: _Record) -> None:
    from mlflow.entities import Metric, Param, RunTag

    budget, record, found = of_budget.budget, of_budget.metrics, of_budget.schedules
    schedules = {k: v.model_dump(mode="json") for k, v in found.items()}
    variants = recorded(record)
    now = int(1000 * time.time())
    intensity = params.tracking.grid_intensity
    metrics = [
        Metric("nfe", budget, now, budget),
        Metric("samples", record["samples"], now, budget),
    ]
    metrics += [
        Metric(f"usage/{part}_{key}", found, now, budget)
        for part, taken in _parts(budget).items()
        for key, found in amounts(taken, intensity).items()
    ]
    for step, values in of_budget.curves:
        metrics += [Metric(f"training/{k}", v, now, step) for k, v in values.items()]
    for start in range(0, len(metrics), 1000):  # the most that one call takes
        client.log_batch(run, metrics=metrics[start : start + 1000])
    tags = {
        **_tags(record),
        **of_budget.decided,
        "variant": ",".join(variants),
        **{f"student_hash.{k}": str(v) for k, v in record["student_hash"].items()},
        **{f"schedule_hash.{v.schedule}": _hash(schedules[v.schedule]) for v in variants.values()},
    }
    if "chosen" in found:
        tags["chosen.objective"] = found["chosen"].objective
    settings = {"nfe": budget, **_flatten(params.model_dump(mode="json", exclude=NOT_LOGGED))}
    settings["tracking.grid_intensity"] = intensity
    client.log_batch(
        run,
        params=[Param(k, str(v)) for k, v in settings.items()],
        tags=[RunTag(k, v) for k, v in tags.items()],
    )
    client.log_dict(run, schedules, "schedules.json")
    client.log_artifact(run, str(paths.metrics(budget)))
    client.log_artifacts(run, str(paths.samples(budget)), "samples")
    for name, variant in variants.items():
        folder = paths.student(budget) / name
        if variant.adapter and folder.is_dir():
            client.log_artifacts(run, str(folder), f"students/{name}")


def _parts(budget: int) -> dict[str, Json]:
    """What was measured of the work behind one budget, that of all budgets included."""
    shared = {"cost": "search", "schedule": "search", "trajectories": "generation"}
    found = {f"{stage}/{of}": read_usage(stage).get(of) for stage, of in shared.items()}
    for stage, of in (("finetune", "training"), ("evaluate", "sampling")):
        for variant, taken in read_usage(f"{stage}-{budget}").items():
            found[f"{variant}/{of}"] = taken
    return {part: taken for part, taken in found.items() if taken is not None}


def _parent(
    client: "MlflowClient", experiment: str, params: Params, record: Json, budget: int
) -> str:
    """The run of the pipeline run that a record belongs to: the one with the same settings and
    the same teacher that has no other record of this budget, else a new one. What was left of
    this budget by a projection that was cut short is deleted."""
    settings = params.model_dump(mode="json", exclude={"budgets", "device", "tracking"})
    key = _hash(settings, record["teacher_hash"], record["extractor_hash"])
    for run in client.search_runs([experiment], f"tags.`{PIPELINE_TAG}` = '{key}'"):
        parent = str(run.info.run_id)
        of_parent = f"tags.`{PARENT_TAG}` = '{parent}' and attributes.run_name = 'K={budget}'"
        found = client.search_runs([experiment], of_parent)
        if any(RECORD_TAG in child.data.tags for child in found):
            continue
        for child in found:
            delete_methods(client, experiment, child.info.run_id)
            client.delete_run(child.info.run_id)
        if not run.data.params:
            _describe(client, parent, params)
        return parent
    tags = {**_tags(record), PIPELINE_TAG: key}
    name = tags.get("dvc_experiment") or f"pipeline {key[:8]}"
    run_id = str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)
    _describe(client, run_id, params)
    return run_id


def _describe(client: "MlflowClient", parent: str, params: Params) -> None:
    from mlflow.entities import Param

    values = _flatten(params.model_dump(mode="json", exclude={"budgets", *NOT_LOGGED}))
    client.log_batch(parent, params=[Param(k, str(v)) for k, v in values.items()])


def _tags(record: Json) -> dict[str, str]:
    """What ties a run to its data, networks, code and experiment."""
    tags = {k: str(v) for k, v in record.items() if k.endswith("_hash") and isinstance(v, str)}
    tags["extractor"] = str(record["extractor"])
    commit, experiment = _git_commit(), os.environ.get("DVC_EXP_NAME")
    if commit:
        tags["git_commit"] = commit
    if experiment:
        tags["dvc_experiment"] = experiment
    return tags


def _hash(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
