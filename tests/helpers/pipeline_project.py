"""A small project whose teacher is a diffusers pipeline: SD3 with text encoders, tiny."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline, WanPipeline
from transformers import UMT5Config, UMT5EncoderModel

from boss_core.interop.pipeline_lora import WEIGHTS, add_lora, save_lora
from tests.helpers.image_pipelines import pipeline
from tests.helpers.text_pipelines import t5
from tests.helpers.tiny_pipelines import sd3_with_text
from tests.helpers.video_pipelines import of_wan

PROMPTS = [f"{colour} {thing}" for colour in ("red", "blue", "old") for thing in
           ("fox", "house", "tree", "boat")]  # fmt: skip

PIPELINE: dict[str, Any] = {
    "budgets": [1, 3],
    "data.source": "none",
    "features.extractor": "imagenet",
    "teacher.source": "diffusers",
    "teacher.pipeline.guidance": 4.0,
    "teacher.pipeline.size": "16x16",
    "teacher.pipeline.dtype": "float32",
    "cost.grid": 8,
    "cost.samples": 8,
    "cost.batch_size": 4,
    "schedule.objective": "l2_squared",
    "schedule.batch_size": 8,
    "trajectories.samples": 20,
    "trajectories.batch_size": 4,
    "trajectories.validation_fraction": 0.2,
    "finetune.methods": ["boss_lora"],
    "finetune.lora_rank": 4,
    "finetune.training.iterations": 20,
    "finetune.training.batch_size": 8,
    "evaluate.samples": 24,
    "evaluate.reference_samples": 24,
    "evaluate.batch_size": 12,
    "evaluate.kid_subset_size": 12,
    "evaluate.judges": [],
}


def write_pipeline(folder: Path) -> None:
    """The teacher and its prompts, into ``inputs`` of a project."""
    sd3_with_text(folder / "teacher")
    (folder / "prompts").mkdir(exist_ok=True)
    (folder / "prompts" / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (folder / "lora").mkdir(exist_ok=True)


def write_film_pipeline(folder: Path) -> None:
    """A Wan that reads letters, and makes films, as the teacher of a project."""
    made = of_wan(WanPipeline)()
    own = {name: part for name, part in made.components.items() if part is not None}
    pipeline(WanPipeline, **own | t5(UMT5EncoderModel, UMT5Config)).save_pretrained(
        folder / "teacher"
    )
    (folder / "prompts" / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")


def write_adapter(pipeline: Path, path: Path) -> None:
    """A LoRA of a pipeline, as a user may have trained one: it changes every layer."""
    teacher = StableDiffusion3Pipeline.from_pretrained(pipeline)
    weights = add_lora(teacher, 2, seed=1)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in weights.weights:
            weight.add_(0.05 * torch.randn(weight.shape, generator=draw))
    weights.push()
    save_lora(teacher, path.parent)
    (path.parent / WEIGHTS).rename(path)
