"""All stages in this process, for tests of what they make and not of who calls them."""

from unittest import mock

from flows.config import Params
from flows.stages import (
    check,
    cost,
    evaluate,
    features,
    finetune,
    floor,
    prepare,
    report,
    schedule,
    teacher,
    trajectories,
)


def run_all(params: Params) -> None:
    """Every stage in this folder, but for the records of MLflow, which have tests of their own and
    take longer than all of the stages."""
    run_until_evaluated(params)
    report.main(params)


def run_after_teacher(params: Params) -> None:
    """Those that come after the teacher's, which is there."""
    _after_teacher(params)
    report.main(params)


def run_until_evaluated(params: Params) -> None:
    """The same as `run_all` without the report."""
    check.main(params)
    for stage in (prepare, features, teacher):
        stage.main(params)
    _after_teacher(params)


def _after_teacher(params: Params) -> None:
    with mock.patch.object(evaluate, "track_budget"):
        for stage in (cost, schedule, trajectories, floor):
            stage.main(params)
        for budget in params.budgets:
            finetune.main(params, budget)
            evaluate.main(params, budget)
