"""Every variant of one budget: teacher and students on uniform, Bellman and chosen steps."""

import sys
from pathlib import Path

from boss_core.checkpoints.folder import Card, Network, load_checkpoint
from boss_core.checkpoints.lora import AdapterCard, load_adapter
from boss_core.errors import InputError
from boss_core.networks.threads import is_small
from flows import paths
from flows.config import Params
from flows.measure.usage import write_usage
from flows.records.extractor import only_classifiers
from flows.records.json_files import Json
from flows.records.judges import write_replicates
from flows.records.record import write_record
from flows.records.teachers import is_pipeline
from flows.records.variants import Variant, chosen_solver, read_schedules, students, variants
from flows.stages.evaluation import Evaluation, Found
from flows.stages.runner import device, run_stage
from flows.tracking.runs import track_budget


def main(params: Params, budget: int) -> None:
    if is_pipeline():
        from flows.stages.pipelines.variants import evaluate_pipeline

        about, found = evaluate_pipeline(params, budget)
    else:
        about, found = _evaluate(params, budget)
    write_replicates(budget, {name: of.estimates for name, of in found.items()})
    write_record(budget, about, {name: of.metrics for name, of in found.items()})
    write_usage(f"evaluate-{budget}", {name: of.usage for name, of in found.items()})
    try:
        track_budget(params, budget)
    except InputError as error:  # the record is written: the work is not lost with the server
        print(f"warning: {error}", file=sys.stderr)


def _evaluate(params: Params, budget: int) -> tuple[Json, dict[str, Found]]:
    """What the record of a budget is of, and what was measured of every variant."""
    teacher, teacher_card = load_checkpoint(paths.TEACHER)
    small = only_classifiers(params) and is_small(teacher)
    evaluation = Evaluation(params, device(params, small=small))
    schedules = read_schedules()[budget]
    methods = params.finetune.methods
    trained = {
        name: _student(paths.student(budget) / name, variant)
        for name, variant in students(schedules, methods).items()
    }
    about: Json = {
        "nfe": budget,
        "chosen_solver": chosen_solver(schedules),
        **evaluation.provenance,
        "teacher_hash": teacher_card.weights_sha256,
        "student_hash": {name: card.weights_sha256 for name, (_, card) in trained.items()},
    }
    found: dict[str, Found] = {}
    for name, variant in variants(schedules, methods).items():
        network = trained[name][0] if variant.trained else teacher
        steps = schedules[variant.schedule]
        label = f"evaluate@{budget} {name}"
        found[name] = evaluation.of(
            network,
            steps.timesteps,
            label,
            budget,
            name,
            solver=steps.solver,
            weights=steps.weights,
        )
    return about, found


def _student(folder: Path, variant: Variant) -> tuple[Network, Card | AdapterCard]:
    """The network of a student, an adapter's merged into the teacher's weights."""
    return load_adapter(folder, paths.TEACHER) if variant.adapter else load_checkpoint(folder)


if __name__ == "__main__":
    run_stage(lambda params: main(params, int(sys.argv[1])))
