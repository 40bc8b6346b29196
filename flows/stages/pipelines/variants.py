"""Every variant of a diffusers pipeline at one budget: guided and not, and its students."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from boss_core.interop.pipeline_checks import silent
from boss_core.interop.pipeline_lora import denoisers, load_lora
from boss_core.io.files import sha256
from flows import paths
from flows.config import Params
from flows.records.json_files import Json, read_json
from flows.records.teachers import CARD, STUDENT_CARD
from flows.records.variants import chosen_solver, read_schedules, students, variants
from flows.search.pipeline_loading import dtype_argument
from flows.stages.evaluation import Found
from flows.stages.pipelines.evaluation import PipelineEvaluation
from flows.stages.pipelines.opened import as_parameters, open_teacher
from flows.straighten.teacher import PipelineTeacher

SAMPLED = "sampled"  # the name of a student's adapter while it is


def evaluate_pipeline(params: Params, budget: int) -> tuple[Json, dict[str, Found]]:
    """What the record of a budget is of, as `flows.stages.evaluate` has it, and what was measured
    of every variant."""
    teacher, _ = open_teacher(params, batch_size=params.evaluate.batch_size)
    evaluation = PipelineEvaluation(params, teacher, paths.samples("teacher"))
    schedules, methods = read_schedules()[budget], params.finetune.methods
    unguided = bool(read_json(CARD)["without_guidance"])
    wanted = variants(schedules, methods, unguided=unguided)
    folder = paths.student(budget)
    hashes = {name: student_hash(folder / name) for name in students(schedules, methods)}
    about: Json = {
        "nfe": budget,
        "chosen_solver": chosen_solver(schedules),
        **evaluation.provenance,
        "teacher_hash": teacher.hash,
        "student_hash": hashes,
    }
    found: dict[str, Found] = {}
    for name, variant in wanted.items():
        student = as_student(teacher, folder / name, adapter=variant.adapter)
        with student if variant.trained else nullcontext():
            found[name] = evaluation.of(
                schedules[variant.schedule],
                f"evaluate@{budget} {name}",
                paths.samples(budget) / f"{name}.png",
                guided=variant.guided and not variant.trained,
            )
    return about, found


def student_hash(folder: Path) -> str:
    """Of all that a student is: its card has the hashes of its files."""
    return sha256(folder / STUDENT_CARD)


@contextmanager
def as_student(teacher: PipelineTeacher, folder: Path, *, adapter: bool) -> Iterator[None]:
    """Inside, the pipeline has the weights of a student."""
    pipeline = teacher.pipeline
    read_json(folder / STUDENT_CARD)
    if not adapter:
        with _with_networks(pipeline, folder):
            yield
        return
    others = _adapters(pipeline)
    with as_parameters(), silent():  # of parts that it has nothing for
        load_lora(pipeline, folder, adapter_name=SAMPLED)
    pipeline.set_adapters([*others, SAMPLED])
    try:
        yield
    finally:
        pipeline.delete_adapters(SAMPLED)
        if others:
            pipeline.set_adapters(others)


@contextmanager
def _with_networks(pipeline: Any, folder: Path) -> Iterator[None]:
    """Those of a student whose weights were all trained."""
    own = denoisers(pipeline)
    for name, network in own.items():
        there = type(network).from_pretrained(folder / name, **{dtype_argument(): network.dtype})
        setattr(pipeline, name, there.to(network.device).requires_grad_(False))
    try:
        yield
    finally:
        for name, network in own.items():
            setattr(pipeline, name, network)


def _adapters(pipeline: Any) -> list[str]:
    """Those that are part of the teacher, in the order in which they were loaded."""
    found = [
        n for network in denoisers(pipeline).values() for n in getattr(network, "peft_config", {})
    ]
    return list(dict.fromkeys(found))
