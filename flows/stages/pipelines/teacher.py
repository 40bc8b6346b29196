"""A diffusers pipeline becomes the teacher: what it is called with is copied, what it is, written
down, and what it cannot do, refused, before any work."""

import hashlib
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boss_core.errors import InputError
from boss_core.interop.pipeline_sampling import sample_pipeline
from boss_core.io.files import replacing_folder, sha256
from boss_core.ode.timesteps import uniform
from flows import paths
from flows.config import Params
from flows.config import Teacher as Parameters
from flows.records.json_files import write_json
from flows.records.teachers import CARD
from flows.search.refusals import pipeline_refusals
from flows.stages.pipelines.files import adapters, prompts_file
from flows.stages.pipelines.opened import LORA, PROMPTS, as_parameters, call_texts, load, request
from flows.stages.pipelines.pictures import length, pictures
from flows.stages.pipelines.revision import read_revision
from flows.straighten.request import Teacher
from flows.straighten.teacher import PipelineTeacher


def write_teacher(params: Params) -> None:
    """models/teacher of the pipeline that the parameters name."""
    of = params.teacher
    asked = replace(asked_for(of), revision=read_revision(params))
    teacher = load(
        params,
        request(
            params, asked, batch_size=1, rank=None,
            checkpointing=of.pipeline.gradient_checkpointing,
        ),
    )  # fmt: skip
    picture, frames = first_picture(teacher, params.seed)
    kind = type(teacher.pipeline).__name__
    with replacing_folder(paths.TEACHER) as folder:
        # As the stages after this one will find them.
        there = replace(
            asked,
            prompts=paths.TEACHER / copied(Path(of.pipeline.prompts), folder / PROMPTS, asked),
            lora=tuple(str(paths.TEACHER / LORA / Path(path).name) for path in asked.lora),
        )
        for path in asked.lora:
            (folder / LORA).mkdir(exist_ok=True)
            shutil.copy(path, folder / LORA)
        write_json(
            folder / CARD.name,
            {
                "pipeline": kind,
                "asked": asdict(there) | {"prompts": str(there.prompts)},
                "gradient_checkpointing": of.pipeline.gradient_checkpointing,
                "weights_sha256": teacher.hash,
                # The encoders, the autoencoder and all settings, which that is not of.
                "files_sha256": _files_hash(Path(asked.source)) if asked.revision is None else None,
                "conditions": teacher.conditions,
                "training_prompts": len(teacher.training.rows),
                "held_out_prompts": len(teacher.held_out.rows),
                "without_guidance": dict(teacher.without),
                "student_nfe": teacher.student_nfe,
                "image_shape": list(picture.shape),
                "frames": frames,
            },
        )
    said = ", ".join(f"{name}={value}" for name, value in teacher.without.items())
    print(f"teacher: {kind} {teacher.hash[:12]}; without guidance: {said or 'as it is'}")


def asked_for(of: Parameters) -> Teacher:
    """The pipeline of the parameters, as ``boss straighten`` is asked for it."""
    pipeline = of.pipeline
    return Teacher(
        source=pipeline.hub or of.path,
        prompts=prompts_file(Path(pipeline.prompts)),
        guidance=pipeline.guidance,
        size=pipeline.size,
        call=call_texts(pipeline.call),
        dtype=pipeline.dtype,
        lora=tuple(map(str, adapters(Path(pipeline.lora)))),
    )


def _files_hash(folder: Path) -> str:
    """Of names and contents of a pipeline's files, but for texts about it and what is hidden."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if path.suffix != ".md" and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def copied(source: Path, folder: Path, asked: Teacher) -> Path:
    """Copy a file of prompts, or a folder of one and its images; the place of the file, relative
    to the teacher's folder."""
    assert asked.prompts is not None
    if source.is_dir():
        shutil.copytree(source, folder)
    else:
        folder.mkdir()
        shutil.copy(source, folder)
    return Path(folder.name) / asked.prompts.name


def first_picture(teacher: PipelineTeacher, seed: int) -> tuple[NDArray[np.uint8], int]:
    """One sample of a step, as the judge will see it, and the frames of a film, 1 of an image.
    InputError for a pipeline without any."""
    pipeline = teacher.pipeline
    if getattr(pipeline, "vae", True) is None:
        raise InputError(
            f"params.yaml: teacher.path: this {type(pipeline).__name__} has no vae, and so makes no"
            " images to compare; one that does needed"
        )
    call = teacher.held_out.call(range(1), seed=seed)
    with as_parameters(), pipeline_refusals(pipeline):
        output = sample_pipeline(pipeline, uniform(1), call).output
    return pictures(output)[0], length(output)
