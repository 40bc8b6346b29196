"""A run for each budget and method, with few metrics under the same names in all of them: so that
"group by method" and a scatter of ``nfe`` against ``frechet`` answer what wins at which NFE."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from boss_core.ode.schedule import Schedule
from flows.config import Params
from flows.measure.usage import read_usage
from flows.records.json_files import Json
from flows.records.judges import best, judges, read_estimates
from flows.records.variants import recorded

if TYPE_CHECKING:
    from mlflow import MlflowClient

BUDGET_RUN_TAG = "boss.budget_run"  # of a method's run: the run of its budget


@dataclass(frozen=True)
class MethodRun:
    """What is shown of one method at one budget. metrics: ``frechet`` of the judge that decides,
    with ``frechet_se``, and its ``kid``, other judges' distances by their own names, ``nfe``,
    ``samples`` and, where it was measured, the ``seconds`` that sampling took."""

    name: str
    metrics: dict[str, float]
    tags: dict[str, str]


def method_runs(
    params: Params, budget: int, record: Json, schedules: Mapping[str, Schedule]
) -> list[MethodRun]:
    """Of every method in the record of one budget. The tag ``rank``: ``best`` where it is ahead of
    all others by more than chance, ``level`` where it cannot be told from the nearest, ``behind``,
    or ``not ranked`` by a judge by whose features its steps were searched."""
    variants, found = recorded(record), judges(record, params.schedule)
    judge, others = found[0], {each.metric for each in found[1:]}
    estimates = read_estimates(budget, record, judge.metric)
    of_best = best(judge, variants, estimates)
    level = () if of_best is None else of_best.level
    usage = read_usage(f"evaluate-{budget}")
    runs = []
    for name, variant in variants.items():
        schedule, of_method = schedules[variant.schedule], record[name]
        metrics = {"nfe": float(schedule.nfe), "samples": float(record["samples"])}
        if judge.metric in of_method:
            metrics["frechet"] = float(of_method[judge.metric])
        if name in estimates:
            metrics["frechet_se"] = estimates[name].standard_error
        if (kid := f"kid_{judge.name}") in of_method:
            metrics["kid"] = float(of_method[kid])
        metrics |= {k: float(of_method[k]) for k in sorted(others) if k in of_method}
        if (seconds := usage.get(name, {}).get("sampling", {}).get("seconds")) is not None:
            metrics["seconds"] = float(seconds)
        rank = "not ranked"
        if judge.ranks(variant):
            rank = ("best" if len(level) == 1 else "level") if name in level else "behind"
        tags = {
            "method": name,
            "title": variant.title,
            "solver": schedule.solver,
            "steps": variant.schedule,
            "judge": judge.name,
            "budget": str(budget),
            "samples": str(record["samples"]),
            "rank": rank,
        }
        runs.append(MethodRun(f"{name} K={budget}", metrics, tags))
    return runs


def log_methods(
    client: "MlflowClient", experiment: str, shared: Mapping[str, str], found: list[MethodRun]
) -> None:
    """shared: tags of all, which name the runs of the pipeline, above them, and of the budget."""
    from mlflow.entities import Metric, Param
    from mlflow.utils.time import get_current_time_millis

    for each in found:
        tags = {**shared, **each.tags}
        run = client.create_run(experiment, run_name=each.name, tags=tags).info.run_id
        now = get_current_time_millis()
        nfe, samples = each.metrics["nfe"], each.metrics["samples"]
        client.log_batch(
            run,
            metrics=[Metric(k, v, now, 0) for k, v in each.metrics.items()],
            params=[
                Param("method", each.tags["method"]),
                Param("nfe", f"{nfe:g}"),
                Param("samples", f"{samples:.0f}"),
            ],
        )
        client.set_terminated(run)


def delete_methods(client: "MlflowClient", experiment: str, budget_run: str) -> None:
    """Those of a budget's run that was cut short."""
    for run in client.search_runs([experiment], f"tags.`{BUDGET_RUN_TAG}` = '{budget_run}'"):
        client.delete_run(run.info.run_id)
