"""A diffusers pipeline as the teacher: what `check` refuses, and what each stage makes of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from boss_core.bellman.recursion import optimal_paths
from boss_core.errors import InputError
from boss_core.interop.diffusers_schedulers import fixed_scheduler
from boss_core.interop.pipeline_lora import load_lora
from boss_core.ode.noise import COSTS, EVALUATION, TRAJECTORIES, seed_for
from flows import paths
from flows.config import Params, load_params
from flows.records.json_files import read_json
from flows.records.variants import read_schedules
from flows.search.pipeline_loading import load_pipeline
from flows.stages import check, cost, finetune, prepare, schedule, teacher, trajectories
from flows.stages.pictures import pictures, thumbnails
from flows.stages.pipelines import as_parameters, open_teacher
from tests.helpers.pipeline_project import PIPELINE, PROMPTS, write_pipeline
from tests.helpers.project import Project

HELD_OUT, GUIDANCE = PROMPTS[-3:], 4.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    write_pipeline(folder)
    return folder


@pytest.fixture
def project(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The parameters and inputs of a project whose teacher is a pipeline, to work in."""
    project = Project.bare(tmp_path)
    shutil.copytree(inputs, tmp_path / "inputs", dirs_exist_ok=True)
    project.set(PIPELINE)
    monkeypatch.chdir(tmp_path)
    return project


def refusal(project: Project, change: dict[str, Any]) -> str:
    """What `boss check` says to a change of the parameters: one line."""
    project.set(change)
    with pytest.raises(InputError) as caught:
        check.check(load_params())
    said = str(caught.value)
    assert "\n" not in said and "--" not in said
    return said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features.extractor": "classifier"}, "features.extractor: classifier with teacher.source"
         ": diffusers (the judge of a pipeline needs no labels); imagenet or inception needed"),
        ({"cost.reference": "heun"}, "cost.reference: heun with teacher.source: diffusers"),
        ({"schedule.objective": "oss"}, "schedule.objective: oss with teacher.source: diffusers"),
        ({"schedule.objective": "auto"}, "schedule.distance: features with teacher.source:"),
        ({"compute.processes": 2, "finetune.training.batch_size": 8},
         "compute.processes: 2 with teacher.source: diffusers"),
        ({"compute.compile": True}, "compute.compile: true with teacher.source: diffusers"),
        ({"finetune.methods": ["boss_lora", "reflow_uniform"]},
         "finetune.methods: reflow_uniform with teacher.source: diffusers"),
        ({"finetune.training.batch_size": 6}, "finetune.training.batch_size: 6 with"
         " trajectories.batch_size: 4"),
        ({"teacher.source": "train", "features.extractor": "classifier"},
         "data.source: none with teacher.source: train; images, or diffusers, which needs none,"),
        ({"teacher.pipeline.size": "16"}, "teacher.pipeline.size: '16' found; string should match"),
        ({"teacher.pipeline.guidence": 4.0}, "teacher.pipeline.guidence: no such parameter; known"
         " here: hub, prompts, lora, guidance, size, call, dtype, gradient_checkpointing"),
        ({"teacher.path": "inputs/lora"}, "teacher.path: inputs/lora: no model_index.json that"
         " names a pipeline; a folder as a pipeline's save_pretrained writes it needed"),
        ({"teacher.pipeline.call": {"true_cfg_scale": 4.0}}, "teacher.pipeline.call:"
         " StableDiffusion3Pipeline takes no true_cfg_scale"),
        ({"teacher.pipeline.call": {"num_inference_steps": 4}}, "teacher.pipeline.call:"
         " num_inference_steps is set by the command; leave it out"),
        ({"teacher.pipeline.prompts": "inputs/lora"}, "teacher.pipeline.prompts: inputs/lora: 0"
         " files of .txt or .jsonl in it; exactly one, with a prompt a line, needed"),
        ({"teacher.pipeline.prompts": "inputs/none"}, "inputs/none"),
        ({"teacher.pipeline.lora": "inputs/prompts/prompts.txt"}, "teacher.pipeline.lora:"
         " inputs/prompts/prompts.txt: no folder; one of .safetensors files, or of none, needed"),
        ({"teacher.pipeline.prompts": "models/teacher/prompts"}, "teacher.pipeline.prompts:"
         " models/teacher/prompts: what the pipeline makes itself, in models/"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_a_pipeline_cannot_have_is_refused_before_any_work(
    change: dict[str, Any], says: str, project: Project
) -> None:
    if "compute.processes" not in change:
        assert says in refusal(project, change)
        return
    project.set(change)
    with pytest.raises(InputError, match=says.replace(".", r"\.")):
        load_params()


def test_images_have_to_lie_where_dvc_sees_them_change(project: Project) -> None:
    Image.new("RGB", (8, 8)).save("inputs/one.png")
    rows = Path("inputs/prompts/prompts.txt")
    rows.write_text(json.dumps({"prompt": "a fox", "image": "../one.png"}) + "\n")
    assert "not in the folder of teacher.pipeline.prompts, inputs/prompts" in refusal(project, {})
    shutil.move("inputs/one.png", "inputs/prompts/one.png")
    rows.write_text(json.dumps({"prompt": "a fox", "image": "one.png"}) + "\n")
    # Found, and then no argument of this pipeline.
    assert "line 1: StableDiffusion3Pipeline takes no image" in refusal(project, {})


def test_parameters_hold_what_the_options_hold(project: Project) -> None:
    check.main(load_params())
    assert paths.CHECKED.read_text() == "params.yaml is valid\n"


def made(project: Project, *stages: Any, **change: Any) -> Params:
    """The parameters, after these stages."""
    project.set(change)
    params = load_params()
    for stage in stages:
        stage.main(params)
    return params


def pipeline_of(project: Project) -> Any:
    """The pipeline as a user has it, and not as the stages do."""
    return load_pipeline("inputs/teacher", "float32", torch.device("cpu"))[0]


def latents(pipeline: Any, prompts: list[str], first: int, seed: int, times: Any,
            **call: Any) -> torch.Tensor:  # fmt: skip
    """The last state of a plain call of the pipeline, on the steps of a scheduler."""
    own = pipeline.scheduler
    pipeline.scheduler = fixed_scheduler(own, times)
    generators = [torch.Generator().manual_seed(seed + first + k) for k in range(len(prompts))]
    try:
        return pipeline(
            prompts, generator=generators, num_inference_steps=len(times) - 1, height=16, width=16,
            output_type="latent", **call,
        ).images  # fmt: skip
    finally:
        pipeline.scheduler = own
