"""diffusers pipelines with small random networks that take prompts as text: an embedding is drawn
for each text in the place of its encoders."""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FluxKontextPipeline,
    QwenImageEditPipeline,
    QwenImagePipeline,
    WanImageToVideoPipeline,
)
from torch import Tensor

from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.tiny_pipelines import WIDTH, WORDS, quiet


def told(texts: str | Sequence[str], *shape: int) -> Tensor:
    """One draw for each text."""
    each = [texts] if isinstance(texts, str) else texts
    generators = [torch.Generator().manual_seed(zlib.crc32(text.encode())) for text in each]
    return torch.stack([torch.randn(shape, generator=g) for g in generators])


def _qwen_embeds(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    return told(texts, WORDS, WIDTH), torch.ones(len(texts), WORDS, dtype=torch.long)


class _QwenImage(QwenImagePipeline):
    def _get_qwen_prompt_embeds(self, prompt=None, device=None, dtype=None):  # type: ignore[no-untyped-def]
        return _qwen_embeds(prompt)


def qwen_image() -> QwenImagePipeline:
    """Its guidance is ``true_cfg_scale`` with a negative prompt; ``guidance_scale`` it ignores."""
    return quiet(_QwenImage(**tiny.qwen_image().components))


class _QwenImageEdit(QwenImageEditPipeline):
    def _get_qwen_prompt_embeds(self, prompt=None, image=None, device=None, dtype=None):  # type: ignore[no-untyped-def]
        images = image if isinstance(image, list) else [image]
        if len(images) != len(prompt):  # each text has a place for one: so Qwen2.5-VL's processor
            raise ValueError("as many images as image tokens in the prompts needed")
        embeds, mask = _qwen_embeds(prompt)
        seen = [images[k].resize((1, 1)).getpixel((0, 0))[0] / 255 for k in range(len(prompt))]
        return embeds * (1.0 + torch.tensor(seen))[:, None, None], mask


def qwen_image_edit() -> QwenImageEditPipeline:
    """It wants an image for each prompt."""
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    parts = tiny.qwen_image().components | {"vae": vae}
    return quiet(_QwenImageEdit(**parts, processor=None))


class _Kontext(FluxKontextPipeline):
    def encode_prompt(self, prompt, *args: Any, **more: Any):  # type: ignore[no-untyped-def]
        return told(prompt, WORDS, WIDTH), told(prompt, 32), torch.zeros(WORDS, 3)


def flux_kontext() -> FluxKontextPipeline:
    """One image goes to all prompts."""
    torch.manual_seed(0)
    parts = tiny.flux().components | {"vae": tiny.sd3().vae}
    parts["transformer"] = type(parts["transformer"])(
        **{**parts["transformer"].config, "in_channels": 16}
    ).eval()
    return quiet(_Kontext(**parts))


class _WanI2V(WanImageToVideoPipeline):
    def encode_prompt(self, prompt, *args: Any, **more: Any):  # type: ignore[no-untyped-def]
        found = told(prompt, WORDS, WIDTH)
        return found, torch.zeros_like(found)


def wan_i2v() -> WanImageToVideoPipeline:
    """One image goes to all prompts; a list it refuses."""
    parts = odd.wan_i2v().components
    return quiet(_WanI2V(**parts, expand_timesteps=True))
