"""What a pipeline encodes is encoded once."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from diffusers import StableDiffusion3Pipeline
from PIL import Image

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import sample_generators
from boss_core.interop.pipeline_encodings import free_encoders, remember_encodings
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.text_pipelines import TEXTS
from tests.helpers.video_pipelines import OF_WAN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd3") / "pipeline"
    tiny.sd3_with_text(path)
    return path


def latents(pipeline: Any, prompts: list[str]) -> torch.Tensor:
    rows = range(len(prompts))
    return pipeline(
        prompts, generator=sample_generators(rows, 3), guidance_scale=4.0, num_inference_steps=2,
        height=16, width=16, output_type="latent",
    ).images  # fmt: skip


def test_encoders_are_asked_once_and_may_go(folder: Path) -> None:
    pipeline = tiny.quiet(StableDiffusion3Pipeline.from_pretrained(folder))
    expected = latents(pipeline, ["a fox", "a cat"])
    asked: list[str] = []
    pipeline.text_encoder_3.register_forward_hook(lambda *_: asked.append("t5"))
    remember_encodings(pipeline)
    assert torch.equal(latents(pipeline, ["a fox", "a cat"]), expected)
    count = len(asked)
    assert count > 0
    assert torch.equal(latents(pipeline, ["a fox", "a cat"]), expected)
    assert len(asked) == count
    assert not torch.equal(latents(pipeline, ["a fox", "a dog"]), expected)
    assert len(asked) > count
    taken = sum(
        p.numel() * p.element_size()
        for part in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3)
        for p in part.parameters()
    )
    assert free_encoders(pipeline) == taken
    assert torch.equal(latents(pipeline, ["a fox", "a cat"]), expected)
    with pytest.raises(InputError, match="for a prompt that was not encoded before"):
        latents(pipeline, ["a bird", "a cat"])


def test_pictures_are_known_by_what_is_in_them() -> None:
    class Pipeline:
        calls = 0

        def encode_prompt(self, prompt: str, image: Any) -> torch.Tensor:
            self.calls += 1
            return torch.tensor([float(sum(image.tobytes()))])

    pipeline = Pipeline()
    remember_encodings(pipeline)
    red, blue = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
    first = pipeline.encode_prompt("a", image=red)
    assert torch.equal(pipeline.encode_prompt("a", image=red.copy()), first)
    assert pipeline.calls == 1
    pipeline.encode_prompt("a", image=blue)
    pipeline.encode_prompt("b", image=red)
    pipeline.encode_prompt("a", image=Image.new("RGB", (1, 4), "red"))
    assert pipeline.calls == 4


def test_image_encoders_are_asked_once_too() -> None:
    """Wan 2.1 asks its own for the first frame, outside `encode_prompt`."""
    family = OF_WAN["WanImageToVideoPipeline (2.1)"]
    pipeline, rows = family.make(), range(2)

    def video() -> torch.Tensor:
        call = family.prompts(rows) | {"generator": sample_generators(rows, 3)}
        return pipeline(**call, num_inference_steps=2, output_type="latent").frames

    expected = video()
    remember_encodings(pipeline)
    assert torch.equal(video(), expected)
    assert free_encoders(pipeline) > 0
    assert torch.equal(video(), expected)


@pytest.mark.parametrize("name", TEXTS)
def test_text_encoders_of_every_kind_may_go(name: str) -> None:
    """T5, CLIP, Gemma, Qwen, each as its pipelines ask it."""
    family, rows = TEXTS[name], range(2)
    pipeline = family.make()

    def found() -> torch.Tensor:
        call = family.prompts(rows) | {"generator": sample_generators(rows, 3)}
        latents = pipeline(**call, num_inference_steps=2, output_type="latent", return_dict=False)
        return latents[0]

    expected = found()
    remember_encodings(pipeline)
    assert torch.equal(found(), expected)
    assert free_encoders(pipeline) > 0
    encoders = [part for name, part in pipeline.components.items() if "text_encoder" in name]
    assert not any(list(part.parameters()) for part in encoders)
    assert torch.equal(found(), expected)


def test_an_encoder_that_is_asked_otherwise_stays() -> None:
    """By a method that nobody knows to remember."""

    class Pipeline:
        def __init__(self) -> None:
            self.text_encoder = torch.nn.Sequential(torch.nn.Linear(2, 2))
            self.image_encoder = torch.nn.Linear(2, 2)

        @property
        def components(self) -> dict[str, torch.nn.Module]:
            return {"text_encoder": self.text_encoder, "image_encoder": self.image_encoder}

        def encode_image(self, image: torch.Tensor) -> torch.Tensor:
            return self.image_encoder(image)

        def __call__(self) -> torch.Tensor:
            return self.encode_image(torch.ones(2)) + self.text_encoder[0](torch.ones(2))

    pipeline = Pipeline()
    remember_encodings(pipeline)
    expected = pipeline()
    assert free_encoders(pipeline) == 4 * (4 + 2)
    assert torch.equal(pipeline(), expected)
