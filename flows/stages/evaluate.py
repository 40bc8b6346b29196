"""Every variant of one budget: pretrained and straightened, on uniform and Bellman steps."""

import sys

from boss_core.checkpoints import load_checkpoint
from boss_core.errors import InputError
from flows import paths
from flows.config import Params
from flows.evaluation import Evaluation
from flows.records import write_json
from flows.runtime import device, run_stage
from flows.tracking import track_budget
from flows.variants import VARIANTS, read_schedules


def main(params: Params, budget: int) -> None:
    evaluation = Evaluation(params, device(params))
    schedules = read_schedules()[budget]
    teacher, teacher_card = load_checkpoint(paths.TEACHER)
    students = {
        name: load_checkpoint(paths.student(budget) / name) for name in ("uniform", "bellman")
    }
    plan = {
        "pretrained_uniform": (teacher, schedules["uniform"]),
        "pretrained_bellman": (teacher, schedules["bellman"]),
        "straightened_uniform": (students["uniform"][0], students["uniform"][1].schedule),
        "boss": (students["bellman"][0], students["bellman"][1].schedule),
    }
    assert plan.keys() == VARIANTS.keys()
    record: dict[str, object] = {
        "nfe": budget,
        **evaluation.provenance,
        "teacher_hash": teacher_card.weights_sha256,
        "student_hash": {name: card.weights_sha256 for name, (_, card) in students.items()},
    }
    for variant, (network, schedule) in plan.items():
        assert schedule is not None  # a student's card always has one
        label = f"evaluate@{budget} {variant}"
        record[variant] = evaluation.of(network, schedule.timesteps, label, budget, variant)
    write_json(paths.metrics(budget), record)
    try:
        track_budget(params, budget)
    except InputError as error:  # the record is written: the work is not lost with the server
        print(f"warning: {error}", file=sys.stderr)


if __name__ == "__main__":
    run_stage(lambda params: main(params, int(sys.argv[1])))
