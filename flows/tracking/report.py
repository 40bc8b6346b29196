"""The run of a pipeline run has its report: the page, the plots, and the table as MLflow shows
tables."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from boss_core.io.files import sha256
from flows import paths
from flows.config import Params
from flows.tracking.links import lacking
from flows.tracking.methods import method_runs, teacher_run
from flows.tracking.record import Record, whole_record

if TYPE_CHECKING:
    from mlflow import MlflowClient

REPORT_TAG = "boss.report"  # the hash of the page that is there, once all is
BUDGETS_TAG = "report.budgets"
TABLE = "table.json"


@dataclass(frozen=True)
class Report:
    """source: of the data, which names the experiment. budgets: that it is of. digests: of their
    records, see `flows.tracking.links.record_hash`. page: the hash of the page. table: a row for
    each budget and method, the best of a budget first, and one for the teacher."""

    source: str
    budgets: frozenset[int]
    digests: dict[int, str]
    page: str
    table: pd.DataFrame


def read_report(params: Params) -> Report | None:
    """None where there is none, or it is not of the records as they are now; InputError where a
    record is not whole."""
    budgets = sorted(params.budgets)
    if not paths.REPORT.is_file() or not paths.PLOTS.is_dir() or any(map(lacking, budgets)):
        return None
    records = [whole_record(params, k) for k in budgets]
    if not _is_of(records):
        return None
    return Report(
        records[0].source,
        frozenset(budgets),
        {record.budget: record.digest for record in records},
        sha256(paths.REPORT),
        _table(params, records),
    )


def _is_of(records: list[Record]) -> bool:
    """Whether the values in `paths.FRECHET`, which is written with the page, are the records'."""
    try:
        shown = pd.read_csv(paths.FRECHET, float_precision="round_trip").set_index("nfe")
    except (OSError, ValueError, KeyError):
        return False
    return set(shown.index) == {record.budget for record in records} and all(
        shown.at[record.budget, name] in record.metrics.get(name, {}).values()
        for record in records
        for name in shown.columns
    )


def _table(params: Params, records: list[Record]) -> pd.DataFrame:
    rows = []
    for record in records:
        of_budget = method_runs(params, record)
        rows += sorted(of_budget, key=lambda each: each.metrics.get("frechet", float("inf")))
    rows.append(teacher_run(params, records[0].floor))
    tags = ("method", "title", "solver", "steps", "rank", "judge")
    values = ("nfe", "frechet", "frechet_se", "kid", "samples", "reference_samples", "seconds")
    return pd.DataFrame(
        [
            {"K": each.step}
            | {key: each.tags[key] for key in tags}
            | {key: each.metrics.get(key) for key in values}
            for each in rows
        ]
    )


def log_report(client: "MlflowClient", parent: str, report: Report) -> bool:
    """Whether anything was logged: not where it is there already, nor where that of more budgets
    is, as beside an experiment of some of them."""
    tags = client.get_run(parent).data.tags
    there = {int(k) for k in tags.get(BUDGETS_TAG, "").split(",") if k}
    if tags.get(REPORT_TAG) == report.page or there > report.budgets:
        return False
    client.log_artifact(parent, str(paths.REPORT))
    client.log_artifacts(parent, str(paths.PLOTS), "plots")
    if any(each.path == TABLE for each in client.list_artifacts(parent)):
        # `log_table` would put the rows below those that are there.
        shown = report.table.astype(object).where(report.table.notna(), None)
        client.log_dict(parent, shown.to_dict("split", index=False), TABLE)
    else:
        client.log_table(parent, report.table, TABLE)
    client.set_tag(parent, BUDGETS_TAG, ",".join(map(str, sorted(report.budgets))))
    client.set_tag(parent, REPORT_TAG, report.page)
    return True
