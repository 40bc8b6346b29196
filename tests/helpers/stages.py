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
    check.main(params)
    with mock.patch.object(evaluate, "track_budget"):
        for stage in (prepare, features, teacher, cost, schedule, trajectories, floor):
            stage.main(params)
        for budget in params.budgets:
            finetune.main(params, budget)
            evaluate.main(params, budget)
    report.main(params)
