"""A run for each budget and method, and one for the teacher on its whole grid, with few metrics
under the same names in all of them: so that "group by method" and a scatter of ``nfe`` against
``frechet`` answer what wins at which NFE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from boss_core.evaluation.comparison import Estimate
from flows.config import Params
from flows.measure.usage import amounts, read_usage
from flows.records.json_files import Json
from flows.records.judges import Judge, best, judges, read_estimates
from flows.records.variants import recorded
from flows.tracking.data_sets import log_references, references
from flows.tracking.record import Curve, Record, read_curve
from flows.tracking.work import Work, of_sampling

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

BUDGET_RUN_TAG = "boss.budget_run"  # of a method's run: the run of its budget
TEACHER = "teacher"  # the method of the run of the teacher


@dataclass(frozen=True)
class MethodRun:
    """What is shown of one method at one budget.

    step: of its metrics, the budget. metrics: ``frechet`` of the judge that decides, with
    ``frechet_se``, and its ``kid``, other judges' distances by their own names, ``nfe``,
    ``samples``, ``reference_samples`` and, where it was measured, the ``seconds`` that sampling
    took. details: what else was measured of its training and sampling. curve: of its training.
    record: where all that stands."""

    name: str
    step: int
    metrics: dict[str, float]
    tags: dict[str, str]
    work: Work
    data: "Sequence[DatasetInput]"
    details: dict[str, float] = field(default_factory=dict)
    curve: Curve = field(default_factory=list)


def method_runs(params: Params, of_budget: Record) -> list[MethodRun]:
    """Of every method in the record of one budget. The tag ``rank``: ``best`` where it is ahead of
    all others by more than chance, ``level`` where it cannot be told from the nearest, ``behind``,
    or ``not ranked`` by a judge by whose features its steps were searched."""
    budget, record = of_budget.budget, of_budget.metrics
    variants, found = recorded(record), judges(record, params.schedule)
    estimates = read_estimates(budget, record, found[0].metric)
    of_best = best(found[0], variants, estimates)
    level = () if of_best is None else of_best.level
    stage = f"evaluate-{budget}"
    usage, trained = read_usage(stage), read_usage(f"finetune-{budget}")
    data, runs = references(params, record), []
    for name, variant in variants.items():
        schedule = of_budget.schedules[variant.schedule]
        rank = "not ranked"
        if found[0].ranks(variant):
            rank = ("best" if len(level) == 1 else "level") if name in level else "behind"
        tags = {
            "method": name,
            "title": variant.title,
            "solver": schedule.solver,
            "steps": variant.schedule,
            "budget": str(budget),
            "rank": rank,
        }
        runs.append(
            MethodRun(
                f"{name} K={budget}",
                budget,
                _metrics(record, name, found, estimates, schedule.nfe, usage.get(name)),
                tags | _of_all(found[0], record),
                of_sampling(stage, name),
                data,
                _details(params, trained.get(name), usage.get(name)),
                _curve_of(name, of_budget.curves, list(variants)) if variant.trained else [],
            )
        )
    return runs


def teacher_run(params: Params, floor: Json) -> MethodRun:
    """Of the teacher on its whole grid, whose ``rank`` is ``reference``. Its training's curve is
    there where it was trained here."""
    found, grid = judges(floor, params.schedule), int(floor["nfe"])
    estimates = read_estimates("teacher", floor, found[0].metric)
    sampling = read_usage("floor").get("fine")
    training = read_usage("teacher").get("training")
    tags = {
        "method": TEACHER,
        "title": "the teacher on its whole grid",
        "solver": "euler",
        "steps": "uniform",
        "budget": str(grid),
        "rank": "reference",
    }
    return MethodRun(
        f"{TEACHER} K={grid}",
        grid,
        _metrics(floor, "fine", found, estimates, grid, sampling),
        tags | _of_all(found[0], floor),
        of_sampling("floor", "fine"),
        references(params, floor),
        _details(params, training, sampling),
        read_curve("teacher") if params.teacher.source == "train" else [],
    )


def _metrics(
    record: Json,
    name: str,
    found: list[Judge],
    estimates: Mapping[str, Estimate],
    steps: float,
    sampling: Json | None,
) -> dict[str, float]:
    """steps: the evaluations of one sample, where the record of a pipeline does not count them."""
    judge, of_method = found[0], record[name]
    metrics = {
        "nfe": float(of_method.get("evaluations", steps)),
        "samples": float(record["samples"]),
        "reference_samples": float(record["reference_samples"]),
    }
    shown = {"frechet": judge.metric, "kid": f"kid_{judge.name}"}
    # Of a pipeline with real images beside its own.
    shown |= {"real_frechet": f"real_{judge.metric}", "latent_distance": "latent_distance"}
    shown |= {each.metric: each.metric for each in found[1:]}
    metrics |= {key: float(of_method[of]) for key, of in shown.items() if of in of_method}
    if name in estimates:
        metrics["frechet_se"] = estimates[name].standard_error
    if sampling is not None:
        metrics["seconds"] = float(sampling["seconds"])
    return metrics


def _of_all(judge: Judge, record: Json) -> dict[str, str]:
    return {"judge": judge.name, "samples": str(record["samples"])}


def _details(params: Params, training: Json | None, sampling: Json | None) -> dict[str, float]:
    """What training and sampling took, but for the ``seconds`` of sampling."""
    return {
        f"usage/{part}_{key}": value
        for part, taken in (("training", training), ("sampling", sampling))
        if taken is not None
        for key, value in amounts(taken, params.tracking.grid_intensity).items()
        if (part, key) != ("sampling", "seconds")
    }


def _curve_of(name: str, curves: Curve, names: list[str]) -> Curve:
    """A student's own columns. One name may begin with another: the longest is meant."""

    def own(column: str) -> bool:
        of = [each for each in names if column.startswith(f"{each}_")]
        return bool(of) and max(of, key=len) == name

    return [
        (step, {key.removeprefix(f"{name}_"): value for key, value in row.items() if own(key)})
        for step, row in curves
    ]


def log_method(
    client: "MlflowClient", experiment: str, shared: Mapping[str, str], each: MethodRun
) -> str:
    """The id of its run, which has not ended: `MlflowClient.set_terminated` with its work's end.
    shared: tags of all, which name the runs of the pipeline, above them, and of the budget."""
    from mlflow.entities import Metric, Param

    work = each.work
    run = client.create_run(
        experiment,
        start_time=work.start,
        run_name=each.name,
        tags={**shared, **each.tags, **work.tags},
    ).info.run_id
    found = {**each.metrics, **each.details}
    metrics = [Metric(key, value, work.end, each.step) for key, value in found.items()]
    for step, values in each.curve:
        metrics += [Metric(f"training/{key}", v, work.end, step) for key, v in values.items()]
    params = [
        Param("method", each.tags["method"]),
        Param("nfe", f"{each.metrics['nfe']:g}"),
        Param("samples", each.tags["samples"]),
    ]
    client.log_batch(run, metrics=metrics[:900], params=params)  # one call takes 1,000 of both
    for start in range(900, len(metrics), 1000):
        client.log_batch(run, metrics=metrics[start : start + 1000])
    log_references(client, run, each.data)
    return str(run)


def delete_methods(client: "MlflowClient", experiment: str, budget_run: str) -> None:
    """Those of a budget's run that was cut short, with their models."""
    for run in client.search_runs([experiment], f"tags.`{BUDGET_RUN_TAG}` = '{budget_run}'"):
        found = f"source_run_id = '{run.info.run_id}'"
        for model in client.search_logged_models([experiment], found):
            client.delete_logged_model(model.model_id)
        client.delete_run(run.info.run_id)
