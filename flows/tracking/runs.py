"""MLflow shows what the files record: one run for each budget and one for each method
at it (`flows.tracking.methods`), under one for the pipeline run.

``metrics/K.json``, ``samples/K/made_of.json`` and the curves are the record; a run is a
projection of them and carries the hash of its record, so projecting twice adds nothing and a lost
database loses nothing.

The parent says in words what is best at each budget, has each method's distance against the budget,
so that pipeline runs can be laid over each other, and the report (`flows.tracking.report`).
"""

import hashlib
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from boss_core.errors import InputError
from flows import paths
from flows.config import Params
from flows.measure.usage import amounts, read_usage
from flows.records.json_files import Json
from flows.records.judges import judges
from flows.records.passwords import without_password
from flows.records.variants import recorded
from flows.tracking.connection import LATER, connected, find_experiment, sqlite_file, tracking_uri
from flows.tracking.data_sets import log_references, references
from flows.tracking.links import note_link
from flows.tracking.methods import (
    BUDGET_RUN_TAG,
    delete_methods,
    log_method,
    method_runs,
    teacher_run,
)
from flows.tracking.models import log_student, register_students
from flows.tracking.record import NOTE_TAG, Record, whole_record
from flows.tracking.report import Report, log_report, read_report
from flows.tracking.work import Work, of_budget

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD_TAG = "boss.record"
PIPELINE_TAG = "boss.pipeline"
TEACHER_TAG = "boss.teacher_run"  # of the teacher's run: the hash of its record, once it is whole
PARENT_TAG = "mlflow.parentRunId"
NOT_LOGGED = {"tracking"}  # where the log is; its address may hold a password


def track_budget(params: Params, budget: int) -> str:
    """Project the record of one budget; says in a few words what was done.

    Raises InputError when the record is not whole, and when MLflow cannot be reached or refuses:
    the record is kept all the same.
    """
    if os.environ.get(LATER):
        return f"K={budget}: logged by the run that this stage is part of"
    record = whole_record(params, budget)  # before, so that MLflow is not blamed for it
    return _blamed(
        tracking_uri(params),
        f"metrics are safe in {paths.metrics(budget)}",
        lambda uri: _project(uri, params, record),
    )


def track_report(params: Params) -> str:
    """Log table, page and plots to the run of the pipeline run whose records they show; says in a
    few words what was done, nothing where there was nothing to do. Raises InputError as
    `track_budget`."""
    report = read_report(params)
    if report is None:
        return ""
    return _blamed(
        tracking_uri(params),
        f"the report is safe in {paths.REPORT}",
        lambda uri: _project_report(uri, report),
    )


def _blamed(uri: str, safe: str, project: Callable[[str], str]) -> str:
    """What a projection says; InputError of one line for whatever MLflow raises."""
    try:
        return project(uri)
    except InputError:
        raise
    # Stores of MLflow and drivers of databases raise what they like, down to ImportError.
    except Exception as error:
        lines = str(error).splitlines() or [""]
        message = without_password(f"MLflow at {uri}: {type(error).__name__}: {lines[0]}")
        message += f"; {safe}, `boss track` logs them later"
        if database := sqlite_file(uri):
            message += f" (into a new database, if {database} is moved away)"
        raise InputError(message) from error


def _project(uri: str, params: Params, record: Record) -> str:
    budget, digest, wanted = record.budget, record.digest, params.tracking.registered_model
    with connected(uri) as client:
        experiment = find_experiment(client, record.source, uri)
        if known := _keep_one(client, experiment, digest):
            note_link(uri, digest, experiment, known)
            register_students(client, experiment, known, wanted)
            return f"K={budget}: in MLflow"
        work = of_budget(budget)
        parent = _parent(client, experiment, params, record, work)
        run = client.create_run(
            experiment,
            start_time=work.start,
            run_name=f"K={budget}",
            tags={PARENT_TAG: parent.info.run_id, **work.tags},
        ).info.run_id
        _log(client, run, params, record, work)
        of_parent = {
            PARENT_TAG: parent.info.run_id,
            "pipeline": str(parent.info.run_name),
            **_tags(record.metrics),
        }
        _log_methods(client, uri, experiment, params, record, of_parent | {BUDGET_RUN_TAG: run})
        _log_teacher(client, experiment, params, record, of_parent)
        _log_to_parent(client, parent.info.run_id, params, record, work)
        _describe_best(client, experiment, parent.info.run_id)
        client.set_terminated(run, end_time=work.end)
        client.set_terminated(parent.info.run_id, end_time=max(work.end, parent.info.end_time or 0))
        # Last, so that a run that was cut short is not taken for the whole of its record.
        client.set_tag(run, RECORD_TAG, digest)
        kept = _keep_one(client, experiment, digest) or run
        register_students(client, experiment, kept, wanted)
        note_link(uri, digest, experiment, kept)
        return f"K={budget}: logged to MLflow"


def _keep_one(client: "MlflowClient", experiment: str, digest: str) -> str | None:
    """The run of a record; None where there is none. Two machines that log the same record at once
    each make one, as MLflow's server has no lock for them: whoever is later sees both, and both
    keep the one whose parent has the first id. The other goes, with all that is of it alone."""
    found = client.search_runs([experiment], f"tags.`{RECORD_TAG}` = '{digest}'")
    of_parents = sorted((run.data.tags[PARENT_TAG], str(run.info.run_id)) for run in found)
    for parent, run in of_parents[1:]:
        delete_methods(client, experiment, run)
        client.delete_run(run)
        if client.search_runs([experiment], _budgets_below(parent), max_results=1):
            continue
        for left in client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{parent}'"):
            client.delete_run(left.info.run_id)  # the teacher's
        client.delete_run(parent)
    if not of_parents:
        return None
    parent, kept = of_parents[0]
    _delete_orphans(client, experiment, parent, str(found[0].info.run_name))
    return kept


def _delete_orphans(client: "MlflowClient", experiment: str, parent: str, budget: str) -> None:
    """Methods below a parent whose budget's run is gone: another machine took it for one that was
    cut short, while they were being made. budget: the name of its run, with which theirs end."""
    below = f"tags.`{PARENT_TAG}` = '{parent}' and attributes.run_name"
    there = {run.info.run_id for run in client.search_runs([experiment], f"{below} = '{budget}'")}
    methods = client.search_runs([experiment], f"{below} LIKE '% {budget}'")
    for gone in {run.data.tags.get(BUDGET_RUN_TAG) for run in methods} - there - {None}:
        delete_methods(client, experiment, str(gone))


def _project_report(uri: str, report: Report) -> str:
    """To the parent of its budgets' runs; of several, as of budgets that were measured again, to
    none that has another record of one of them."""
    done = False
    with connected(uri) as client:
        experiment = find_experiment(client, report.source, uri)
        parents = set()
        for digest in report.digests.values():
            found = client.search_runs([experiment], f"tags.`{RECORD_TAG}` = '{digest}'")
            parents |= {run.data.tags[PARENT_TAG] for run in found}
        own = {f"K={budget}": digest for budget, digest in report.digests.items()}
        for parent in sorted(parents):
            below = client.search_runs([experiment], _budgets_below(parent))
            there = {run.info.run_name: run.data.tags.get(RECORD_TAG) for run in below}
            if all(there.get(name, digest) in (digest, None) for name, digest in own.items()):
                done |= log_report(client, parent, report)
    return "report: logged to MLflow" if done else ""


def _budgets_below(parent: str) -> str:
    """A search for the runs of a parent's budgets: of its methods, too, there may be thousands, and
    one search finds 1,000."""
    return f"tags.`{PARENT_TAG}` = '{parent}' and attributes.run_name LIKE 'K=%'"


def _log_methods(
    client: "MlflowClient",
    uri: str,
    experiment: str,
    params: Params,
    record: Record,
    shared: dict[str, str],
) -> None:
    variants = recorded(record.metrics)
    for each in method_runs(params, record):
        run = log_method(client, experiment, shared, each)
        if variants[each.tags["method"]].trained:
            log_student(client, uri, experiment, run, record.budget, each.tags["method"])
        client.set_terminated(run, end_time=each.work.end)


def _log_teacher(
    client: "MlflowClient",
    experiment: str,
    params: Params,
    record: Record,
    of_parent: dict[str, str],
) -> None:
    """The teacher's own run, once for a parent; what is left of one that was cut short is
    deleted."""
    digest = _hash(record.floor)
    there = f"tags.`{PARENT_TAG}` = '{of_parent[PARENT_TAG]}' and tags.method = 'teacher'"
    whole = f"{there} and tags.`{TEACHER_TAG}` = '{digest}'"
    if not _keep_first(client, experiment, whole):
        for run in client.search_runs([experiment], there):
            client.delete_run(run.info.run_id)
        found = teacher_run(params, record.floor)
        teacher = log_method(client, experiment, of_parent, found)
        client.set_terminated(teacher, end_time=found.work.end)
        client.set_tag(teacher, TEACHER_TAG, digest)
        _keep_first(client, experiment, whole)  # another machine may have made one meanwhile


def _keep_first(client: "MlflowClient", experiment: str, query: str) -> bool:
    """Whether there is any such run; of several the one with the first id is kept."""
    found = sorted(str(run.info.run_id) for run in client.search_runs([experiment], query))
    for run in found[1:]:
        client.delete_run(run)
    return bool(found)


def _log_to_parent(
    client: "MlflowClient", parent: str, params: Params, record: Record, work: Work
) -> None:
    """Each method's distance at step = K, unless a run that was cut short right after has logged
    them."""
    from mlflow.entities import Metric

    metric = judges(record.metrics, params.schedule)[0].metric
    metrics = [
        Metric(f"frechet/{name}", record.metrics[name][metric], work.end, record.budget)
        for name in recorded(record.metrics)
        if metric in record.metrics[name]
    ]
    if not metrics:
        return
    history = client.get_metric_history(parent, metrics[0].key)
    if (metrics[0].step, metrics[0].value) not in {(m.step, m.value) for m in history}:
        client.log_batch(parent, metrics=metrics)


def _describe_best(client: "MlflowClient", experiment: str, parent: str) -> None:
    """The descriptions of all budgets' runs, as the parent's own."""
    found = client.search_runs([experiment], _budgets_below(parent))
    words = {
        int(run.data.params["nfe"]): run.data.tags[NOTE_TAG]
        for run in found
        if NOTE_TAG in run.data.tags and "nfe" in run.data.params
    }
    text = "\n".join(f"- **K={budget}**: {words[budget]}" for budget in sorted(words))
    client.set_tag(parent, NOTE_TAG, text)


def _log(client: "MlflowClient", run: str, params: Params, of_budget: Record, work: Work) -> None:
    from mlflow.entities import Metric, Param, RunTag

    budget, record, found = of_budget.budget, of_budget.metrics, of_budget.schedules
    schedules = {k: v.model_dump(mode="json") for k, v in found.items()}
    variants = recorded(record)
    intensity = params.tracking.grid_intensity
    metrics = [
        Metric(key, record[key], work.end, budget)
        for key in ("nfe", "samples", "reference_samples")
    ]
    metrics += [
        Metric(f"usage/{part}_{key}", value, work.end, budget)
        for part, taken in _parts().items()
        for key, value in amounts(taken, intensity).items()
    ]
    client.log_batch(run, metrics=metrics)
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
    log_references(client, run, references(params, record))
    client.log_dict(run, schedules, "schedules.json")
    client.log_artifact(run, str(paths.metrics(budget)))
    client.log_artifacts(run, str(paths.samples(budget)), "samples")
    for name, variant in variants.items():
        folder = paths.student(budget) / name
        if variant.adapter and folder.is_dir():
            client.log_artifacts(run, str(folder), f"students/{name}")


def _parts() -> dict[str, Json]:
    """What was measured of the work for all budgets, which stands with each."""
    shared = {"cost": "search", "schedule": "search", "trajectories": "generation"}
    found = {f"{stage}/{of}": read_usage(stage).get(of) for stage, of in shared.items()}
    return {part: taken for part, taken in found.items() if taken is not None}


def _parent(
    client: "MlflowClient", experiment: str, params: Params, of_budget: Record, work: Work
) -> Any:
    """The run of the pipeline run that a record belongs to: the one with the same settings and
    the same teacher that has no other record of this budget, else a new one. What was left of
    this budget by a projection that was cut short is deleted."""
    record = of_budget.metrics
    settings = params.model_dump(mode="json", exclude={"budgets", "device", "tracking"})
    key = _hash(settings, record["teacher_hash"], record["extractor_hash"])
    for run in client.search_runs([experiment], f"tags.`{PIPELINE_TAG}` = '{key}'"):
        parent = str(run.info.run_id)
        named = f"attributes.run_name = 'K={of_budget.budget}'"
        found = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{parent}' and {named}")
        if any(RECORD_TAG in child.data.tags for child in found):
            continue
        for child in found:
            delete_methods(client, experiment, child.info.run_id)
            client.delete_run(child.info.run_id)
        if not run.data.params:
            _describe(client, parent, params)
        return run
    tags = {**_tags(record), **work.tags, PIPELINE_TAG: key}
    name = tags.get("dvc_experiment") or f"pipeline {key[:8]}"
    began = min(work.start, int(1000 * (work.called.since or work.began)))
    run = client.create_run(experiment, start_time=began, run_name=name, tags=tags)
    _describe(client, run.info.run_id, params)
    return run


def _describe(client: "MlflowClient", parent: str, params: Params) -> None:
    from mlflow.entities import Param

    values = _flatten(params.model_dump(mode="json", exclude={"budgets", *NOT_LOGGED}))
    client.log_batch(parent, params=[Param(k, str(v)) for k, v in values.items()])


def _tags(record: Json) -> dict[str, str]:
    """What ties a run to its data, networks and experiment; `Work.tags` to its code."""
    tags = {k: str(v) for k, v in record.items() if k.endswith("_hash") and isinstance(v, str)}
    tags["extractor"] = str(record["extractor"])
    if "compared" in record:  # of films one frame
        tags["compared"] = str(record["compared"])
    if experiment := os.environ.get("DVC_EXP_NAME"):
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
