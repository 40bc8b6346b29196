"""Every variant of one budget: teacher and students on uniform, Bellman and chosen steps."""

import sys

from boss_core.checkpoints import load_checkpoint
from boss_core.errors import InputError
from flows import paths
from flows.config import Params
from flows.evaluation import Evaluation
from flows.records import write_json
from flows.runtime import device, run_stage
from flows.tracking import track_budget
from flows.variants import chosen_solver, read_schedules, trained, variants


def main(params: Params, budget: int) -> None:
    evaluation = Evaluation(params, device(params))
    schedules = read_schedules()[budget]
    teacher, teacher_card = load_checkpoint(paths.TEACHER)
    students = {name: load_checkpoint(paths.student(budget) / name) for name in trained(schedules)}
    record: dict[str, object] = {
        "nfe": budget,
        "chosen_solver": chosen_solver(schedules),
        **evaluation.provenance,
        "teacher_hash": teacher_card.weights_sha256,
        "student_hash": {name: card.weights_sha256 for name, (_, card) in students.items()},
    }
    for name, variant in variants(schedules).items():
        network = students[variant.schedule][0] if variant.trained else teacher
        steps = schedules[variant.schedule]
        label = f"evaluate@{budget} {name}"
        record[name] = evaluation.of(
            network, steps.timesteps, label, budget, name, solver=steps.solver
        )
    write_json(paths.metrics(budget), record)
    try:
        track_budget(params, budget)
    except InputError as error:  # the record is written: the work is not lost with the server
        print(f"warning: {error}", file=sys.stderr)


if __name__ == "__main__":
    run_stage(lambda params: main(params, int(sys.argv[1])))
