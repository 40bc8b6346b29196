"""More small random pipelines of images: the families of Flux, SD3, Qwen-Image and Z-Image, and
single ones. Prompts are embedded already."""

import inspect
from collections.abc import Callable
from typing import Any

import diffusers as d
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers import told_pipelines as told
from tests.helpers.families import Family
from tests.helpers.tiny_pipelines import WIDTH, WORDS, embeds, quiet

SIDE = 32  # pixels
Parts = dict[str, Any]


def network(kind: Any, **settings: Any) -> nn.Module:
    """The same weights each time, and none of those 0 that training starts from."""
    torch.manual_seed(0)
    made = kind(**settings).eval()
    for weight in made.parameters():
        if weight.dim() > 1 and not weight.any():
            nn.init.normal_(weight, std=0.1)
    return made


def pipeline(kind: Any, **parts: Any) -> Any:
    """A pipeline of these components, and None for the others that it has to be given."""
    known = inspect.signature(kind.__init__).parameters
    needed = {
        name: None
        for name, p in known.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name != "self"
    }
    given = {name: part for name, part in parts.items() if name in known}
    return quiet(kind(**needed | given))


def text_encoder() -> T5EncoderModel:
    """For pipelines that ask for its dtype."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=32, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def scheduler(**settings: Any) -> d.FlowMatchEulerDiscreteScheduler:
    return d.FlowMatchEulerDiscreteScheduler(**settings)


def picture(samples: range | None = None, channels: int = 3, side: int = SIDE) -> Tensor:
    """One for all samples, or one for each."""
    count = 1 if samples is None else len(samples)
    torch.manual_seed(11)
    return torch.rand(count, channels, side, side)


def photos(count: int = 1, side: int = SIDE) -> list[Image.Image]:
    values = (255 * picture(range(count), side=side)).byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in values]


def mask(side: int = SIDE) -> Tensor:
    found = torch.zeros(1, 1, side, side)
    found[..., : side // 2] = 1.0
    return found


def adding(shown: Callable[[range], Parts], **more: Any) -> Callable[[range], Parts]:
    """The call of another pipeline with more arguments, and without those that are None."""

    def prompts(samples: range) -> Parts:
        return {k: v for k, v in (shown(samples) | more).items() if v is not None}

    return prompts


def of_flux(kind: Any, channels: int = 16, **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        parts = tiny.flux().components | {"vae": tiny.sd3().vae}
        settings = {**parts["transformer"].config, "in_channels": channels, "out_channels": 16}
        parts["transformer"] = network(d.FluxTransformer2DModel, **settings)
        if "controlnet" in inspect.signature(kind.__init__).parameters:
            control = {k: v for k, v in settings.items() if k != "out_channels"}
            parts["controlnet"] = network(d.FluxControlNetModel, **control)
        return pipeline(kind, **{k: v for k, v in parts.items() if v is not None}, **more)

    return make


_flux = adding(tiny.flux_prompts, height=SIDE, width=SIDE)
_from_image = {"image": picture(), "strength": 0.6}
_inpaint = _from_image | {"mask_image": mask()}

FLUX = {
    "FluxFillPipeline": Family(
        of_flux(d.FluxFillPipeline, 48), adding(_flux, image=picture(), mask_image=mask())
    ),
    "FluxControlPipeline": Family(
        of_flux(d.FluxControlPipeline, 32), adding(_flux, control_image=picture())
    ),
    "FluxKontextPipeline": Family(
        of_flux(d.FluxKontextPipeline),
        adding(_flux, image=picture(), max_area=SIDE * SIDE, _auto_resize=False),
    ),
    "FluxControlNetPipeline": Family(
        of_flux(d.FluxControlNetPipeline), adding(_flux, control_image=picture())
    ),
    "FluxImg2ImgPipeline": Family(of_flux(d.FluxImg2ImgPipeline), adding(_flux, **_from_image)),
    "FluxInpaintPipeline": Family(of_flux(d.FluxInpaintPipeline), adding(_flux, **_inpaint)),
    "FluxControlImg2ImgPipeline": Family(
        of_flux(d.FluxControlImg2ImgPipeline, 32),
        adding(_flux, control_image=picture(), **_from_image),
    ),
    "FluxControlInpaintPipeline": Family(
        of_flux(d.FluxControlInpaintPipeline, 32),
        adding(_flux, control_image=picture(), **_inpaint),
    ),
    "FluxControlNetImg2ImgPipeline": Family(
        of_flux(d.FluxControlNetImg2ImgPipeline),
        adding(_flux, control_image=picture(), **_from_image),
    ),
    "FluxControlNetInpaintPipeline": Family(
        of_flux(d.FluxControlNetInpaintPipeline),
        adding(_flux, control_image=picture(), **_inpaint),
    ),
    "FluxKontextInpaintPipeline": Family(
        of_flux(d.FluxKontextInpaintPipeline), adding(_flux, **_inpaint, _auto_resize=False)
    ),
}


def of_chroma(kind: Any) -> Callable[[], Any]:
    def make() -> Any:
        transformer = network(
            d.ChromaTransformer2DModel,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        )
        vae = tiny.sd3().vae
        return pipeline(kind, transformer=transformer, vae=vae, scheduler=scheduler())

    return make


def masked_prompts(samples: range, **more: Any) -> Parts:
    """With a mask of the words."""
    ones = torch.ones(len(samples), WORDS, dtype=torch.bool)
    return {
        "prompt_embeds": embeds(samples, WORDS, WIDTH),
        "prompt_attention_mask": ones,
        "negative_prompt_embeds": 0.3 * embeds(samples, WORDS, WIDTH, seed=800),
        "negative_prompt_attention_mask": ones,
        "height": SIDE,
        "width": SIDE,
    } | more


CHROMA = {
    "ChromaPipeline": Family(of_chroma(d.ChromaPipeline), masked_prompts),
    "ChromaImg2ImgPipeline": Family(
        of_chroma(d.ChromaImg2ImgPipeline), adding(masked_prompts, **_from_image)
    ),
    "ChromaInpaintPipeline": Family(
        of_chroma(d.ChromaInpaintPipeline), adding(masked_prompts, **_inpaint)
    ),
}


def of_sd3(kind: Any, channels: int = 4) -> Callable[[], Any]:
    def make() -> Any:
        parts = odd.sd3_controlnet().components
        settings = {**parts["transformer"].config, "in_channels": channels}
        settings |= {"out_channels": channels, "num_layers": 2}
        parts["transformer"] = network(d.SD3Transformer2DModel, **settings)
        vae = {**parts["vae"].config, "latent_channels": channels}
        parts["vae"] = network(d.AutoencoderKL, **vae)
        control = {**parts["controlnet"].config, "extra_conditioning_channels": 1}
        parts["controlnet"] = network(d.SD3ControlNetModel, **control)
        return pipeline(kind, **{k: v for k, v in parts.items() if v is not None})

    return make


def _sd3(samples: range) -> Parts:
    return tiny.sd3_prompts(samples, 4.0)


_sd3_image = picture(range(2), side=tiny.SIZE)
_sd3_mask = mask(tiny.SIZE)

SD3 = {
    "StableDiffusion3Img2ImgPipeline": Family(
        of_sd3(d.StableDiffusion3Img2ImgPipeline), adding(_sd3, image=_sd3_image, strength=0.6)
    ),
    "StableDiffusion3InpaintPipeline": Family(
        of_sd3(d.StableDiffusion3InpaintPipeline, 16),
        adding(_sd3, image=_sd3_image, mask_image=_sd3_mask, strength=0.6),
    ),
    "StableDiffusion3ControlNetInpaintingPipeline": Family(
        of_sd3(d.StableDiffusion3ControlNetInpaintingPipeline),
        adding(_sd3, control_image=_sd3_image, control_mask=_sd3_mask.repeat(2, 1, 1, 1)),
    ),
    "StableDiffusion3PAGPipeline": Family(of_sd3(d.StableDiffusion3PAGPipeline), _sd3),
    "StableDiffusion3PAGImg2ImgPipeline": Family(
        of_sd3(d.StableDiffusion3PAGImg2ImgPipeline), adding(_sd3, image=_sd3_image, strength=0.6)
    ),
}


def of_qwen(kind: Any, extra: int = 0, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        parts = told.qwen_image_edit().components
        config = {**parts["transformer"].config, **settings}
        parts["transformer"] = network(d.QwenImageTransformer2DModel, **config)
        known = inspect.signature(d.QwenImageControlNetModel.__init__).parameters
        control = {k: v for k, v in config.items() if k in known}
        control["extra_condition_channels"] = extra
        parts["controlnet"] = network(d.QwenImageControlNetModel, **control)
        parts["text_encoder"] = text_encoder()
        return pipeline(kind, **{k: v for k, v in parts.items() if v is not None})

    return make


class _Layered(d.QwenImageLayeredPipeline):
    def get_image_caption(self, *_: Any, **__: Any) -> str:
        return "a"


_qwen = adding(tiny.qwen_image_prompts, height=SIDE, width=SIDE)

QWEN = {
    "QwenImageEditPipeline": Family(
        of_qwen(d.QwenImageEditPipeline), adding(_qwen, image=photos(2))
    ),
    "QwenImageEditPlusPipeline": Family(
        of_qwen(d.QwenImageEditPlusPipeline), adding(_qwen, image=photos()), samples=1
    ),
    "QwenImageControlNetPipeline": Family(
        of_qwen(d.QwenImageControlNetPipeline), adding(_qwen, control_image=picture())
    ),
    "QwenImageControlNetInpaintPipeline": Family(
        of_qwen(d.QwenImageControlNetInpaintPipeline, extra=4),
        adding(_qwen, control_image=picture(), control_mask=mask()),
    ),
    "QwenImageImg2ImgPipeline": Family(
        of_qwen(d.QwenImageImg2ImgPipeline), adding(_qwen, **_from_image)
    ),
    "QwenImageInpaintPipeline": Family(
        of_qwen(d.QwenImageInpaintPipeline), adding(_qwen, **_inpaint)
    ),
    "QwenImageEditInpaintPipeline": Family(
        of_qwen(d.QwenImageEditInpaintPipeline), adding(_qwen, **_inpaint | {"image": photos()})
    ),
    "QwenImageLayeredPipeline": Family(
        of_qwen(_Layered, use_additional_t_cond=True, use_layer3d_rope=True),
        adding(_qwen, image=photos(), layers=2, height=None, width=None),
        samples=1,
    ),
}


def of_z_image(kind: Any) -> Callable[[], Any]:
    def make() -> Any:
        parts = odd.z_image().components | {"vae": tiny.sd3().vae}
        known = inspect.signature(d.ZImageControlNetModel.__init__).parameters
        control = {k: v for k, v in parts["transformer"].config.items() if k in known}
        places = {"control_layers_places": [0], "control_refiner_layers_places": [0]}
        if "controlnet" in inspect.signature(kind.__init__).parameters:
            channels = 4 if "Inpaint" not in kind.__name__ else 9
            control |= places | {
                "control_in_dim": channels,
                "add_control_noise_refiner": "control_noise_refiner",
            }
            made = network(d.ZImageControlNetModel, **control)
            parts["controlnet"] = d.ZImageControlNetModel.from_transformer(
                made, parts["transformer"]
            )
        return pipeline(kind, **{k: v for k, v in parts.items() if v is not None})

    return make


_z_image = adding(odd.z_image_prompts, height=SIDE, width=SIDE)

Z_IMAGE = {
    "ZImageImg2ImgPipeline": Family(
        of_z_image(d.ZImageImg2ImgPipeline), adding(_z_image, **_from_image)
    ),
    "ZImageInpaintPipeline": Family(
        of_z_image(d.ZImageInpaintPipeline), adding(_z_image, **_inpaint)
    ),
    "ZImageControlNetPipeline": Family(
        of_z_image(d.ZImageControlNetPipeline), adding(_z_image, control_image=picture())
    ),
    "ZImageControlNetInpaintPipeline": Family(
        of_z_image(d.ZImageControlNetInpaintPipeline),
        adding(
            _z_image, control_image=picture(), image=picture(), mask_image=mask().repeat(2, 1, 1, 1)
        ),
    ),
}


def aura_flow() -> Any:
    transformer = network(
        d.AuraFlowTransformer2DModel,
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    return pipeline(d.AuraFlowPipeline, transformer=transformer, scheduler=scheduler())


def hidream() -> Any:
    transformer = network(
        d.HiDreamImageTransformer2DModel,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[WIDTH, 16],
        text_emb_dim=64,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
        force_inference_output=True,
    )
    return pipeline(d.HiDreamImagePipeline, transformer=transformer, scheduler=scheduler())


def hidream_prompts(samples: range) -> Parts:
    found: Parts = {"height": 128, "width": 128}
    for prefix, share in (("", 1.0), ("negative_", 0.3)):
        found[f"{prefix}prompt_embeds_t5"] = share * embeds(samples, WORDS, WIDTH)
        llama = embeds(samples, 2, WORDS, 16)
        found[f"{prefix}prompt_embeds_llama3"] = share * llama.transpose(0, 1)
        found[f"{prefix}pooled_prompt_embeds"] = share * embeds(samples, 64)
    return found


def sana_parts(channels: int = 4, **settings: Any) -> Parts:
    config = {**tiny.sana().transformer.config} | settings
    return {
        "transformer": network(d.SanaTransformer2DModel, **config),
        "scheduler": tiny.sana().scheduler,
    }


def sana_sprint() -> Any:
    """Distilled for steps of its own: with the scheduler of the published model."""
    parts = sana_parts(guidance_embeds=True) | {"scheduler": d.SCMScheduler()}
    return pipeline(d.SanaSprintPipeline, **parts)


def sana_controlnet() -> Any:
    parts = sana_parts(num_layers=2)
    known = inspect.signature(d.SanaControlNetModel.__init__).parameters
    config = {k: v for k, v in parts["transformer"].config.items() if k in known}
    parts["controlnet"] = network(d.SanaControlNetModel, **config | {"num_layers": 1})
    parts["vae"] = network(
        d.AutoencoderDC,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        upsample_block_type="interpolate",
        downsample_block_type="conv",
    )
    return pipeline(d.SanaControlNetPipeline, **parts)


def _sprint_prompts(samples: range) -> Parts:
    return {k: v for k, v in tiny.sana_prompts(samples).items() if "negative" not in k}


ONES = {
    "AuraFlowPipeline": Family(aura_flow, adding(masked_prompts, height=64, width=64)),
    "HiDreamImagePipeline": Family(hidream, hidream_prompts),
    "SanaSprintPipeline": Family(sana_sprint, _sprint_prompts),
    "SanaPAGPipeline": Family(
        lambda: pipeline(d.SanaPAGPipeline, **sana_parts()), tiny.sana_prompts
    ),
    "SanaControlNetPipeline": Family(
        sana_controlnet,
        lambda rows: (
            tiny.sana_prompts(rows) | {"control_image": picture(), "height": SIDE, "width": SIDE}
        ),
    ),
}

IMAGES = FLUX | CHROMA | SD3 | QWEN | Z_IMAGE | ONES
