"""More small pipelines: of families that have members elsewhere, and Qwen-Image 2.1."""

from typing import Any

import diffusers as d
import torch

from tests.helpers import odd_pipelines as odd
from tests.helpers.families import Family
from tests.helpers.image_pipelines import Parts, network, photos, pipeline, scheduler
from tests.helpers.tiny_pipelines import WIDTH, WORDS, embeds
from tests.helpers.video_pipelines import sana_video, sana_video_prompts


def sana_image_to_video() -> Any:
    return pipeline(
        d.SanaImageToVideoPipeline,
        transformer=sana_video().transformer,
        scheduler=scheduler(shift=3.0),
        vae=odd.wan_i2v().vae,
    )


def z_image_omni() -> Any:
    small = odd.z_image()
    return pipeline(d.ZImageOmniPipeline, transformer=small.transformer, scheduler=small.scheduler)


def z_image_omni_prompts(samples: range) -> Parts:
    """Its texts are in parts, between its images."""
    call = odd.z_image_prompts(samples)
    names = ("prompt_embeds", "negative_prompt_embeds")
    return call | {name: [[each] for each in call[name]] for name in names}


class _Processor:
    """What Qwen-Image 2.1 asks of its own when it is made."""

    @property
    def tokenizer(self) -> "_Processor":
        return self

    def apply_chat_template(self, *args: Any, **more: Any) -> list[list[int]]:
        return [[0]]

    def encode(self, text: str) -> list[int]:
        return [1]


class _QwenImage21(d.QwenImage21Pipeline):
    def __init__(
        self, scheduler: Any, vae: Any, text_encoder: Any, processor: Any, transformer: Any,
        sample_sigmas: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(scheduler, vae, text_encoder, _Processor(), transformer, sample_sigmas)


def qwen_image_21() -> Any:
    """It keeps keys and values of its conditions from one step to the next, unless told not to."""
    transformer = network(
        d.QwenImage21Transformer2DModel, in_channels=64, out_channels=64, num_layers=1,
        attention_head_dim=16, num_attention_heads=2, context_in_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return pipeline(_QwenImage21, transformer=transformer, scheduler=scheduler(shift=3.0))


def qwen_image_21_prompts(samples: range, **more: Any) -> Parts:
    ones = torch.ones(len(samples), WORDS, dtype=torch.long)
    call: Parts = {
        "prompt_embeds": embeds(samples, WORDS, WIDTH),
        "prompt_embeds_mask": ones,
        "negative_prompt_embeds": torch.zeros(len(samples), WORDS, WIDTH),
        "negative_prompt_embeds_mask": ones,
        "true_cfg_scale": 4.0,
        "height": 64,
        "width": 64,
    }
    return call | more


FURTHER = {
    "SanaImageToVideoPipeline": Family(
        sana_image_to_video, lambda rows: sana_video_prompts(rows) | {"image": photos(1, 32)[0]}
    ),
    "ZImageOmniPipeline": Family(z_image_omni, z_image_omni_prompts),
    "QwenImage21Pipeline": Family(qwen_image_21, qwen_image_21_prompts),
    "QwenImage21Pipeline (use_kv_cache=False)": Family(
        qwen_image_21, lambda rows: qwen_image_21_prompts(rows, use_kv_cache=False)
    ),
}
