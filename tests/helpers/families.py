"""Kinds of pipelines that a student is trained of, small and random."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import WanPipeline

from tests.helpers import tiny_pipelines as tiny


@dataclass(frozen=True)
class Family:
    """make: the pipeline, the same one each time. prompts: the call of samples, guidance on.
    samples: the most that a call takes, of two."""

    make: Callable[[], Any]
    prompts: Callable[[range], dict[str, Any]]
    samples: int = 2


def wan_two() -> WanPipeline:
    """As Wan 2.2: a second network takes the low noise levels."""
    pipeline = tiny.wan()
    torch.manual_seed(9)
    second = tiny.wan_network()
    return tiny.quiet(
        WanPipeline(
            tokenizer=None, text_encoder=None, vae=pipeline.vae, scheduler=pipeline.scheduler,
            transformer=pipeline.transformer, transformer_2=second, boundary_ratio=0.5,
        )
    )  # fmt: skip


FAMILIES = {
    "sd3": Family(tiny.sd3, lambda rows: tiny.sd3_prompts(rows, 4.0)),
    "flux": Family(tiny.flux, tiny.flux_prompts),
    "wan": Family(tiny.wan, tiny.wan_prompts),
    "wan 2.2": Family(wan_two, tiny.wan_prompts),
    "qwen-image": Family(tiny.qwen_image, tiny.qwen_image_prompts),
    "ltx": Family(tiny.ltx, tiny.video_prompts),
}
