"""More small random pipelines, one or two of a network. Prompts are embedded already, or drawn for
each text where a pipeline takes nothing else."""

from collections.abc import Callable
from typing import Any

import diffusers as d
import torch

from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.families import Family
from tests.helpers.image_pipelines import (
    SIDE,
    Parts,
    adding,
    mask,
    masked_prompts,
    network,
    photos,
    picture,
    pipeline,
    sana_parts,
    scheduler,
    text_encoder,
)
from tests.helpers.tiny_pipelines import WIDTH, WORDS, embeds
from tests.helpers.told_pipelines import told
from tests.helpers.video_pipelines import WAN, kandinsky_prompts, of_kandinsky, of_ltx2


def texts(samples: range) -> list[str]:
    return [f"text {k}" for k in samples]


def both(samples: range, *shape: int) -> Parts:
    """Of prompts, and of others that are not wanted."""
    return {
        "prompt_embeds": embeds(samples, *shape),
        "negative_prompt_embeds": 0.3 * embeds(samples, *shape, seed=800),
    }


def krea2() -> Any:
    transformer = network(
        d.Krea2Transformer2DModel,
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=WIDTH,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return pipeline(d.Krea2Pipeline, transformer=transformer, scheduler=scheduler())


def krea2_prompts(samples: range) -> Parts:
    ones = torch.ones(len(samples), WORDS, dtype=torch.bool)
    masks = {"prompt_embeds_mask": ones, "negative_prompt_embeds_mask": ones}
    return both(samples, WORDS, 2, WIDTH) | masks | {"height": 64, "width": 64}


def ernie() -> Any:
    transformer = network(
        d.ErnieImageTransformer2DModel,
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=WIDTH,
        rope_axes_dim=(4, 6, 6),
    )
    return pipeline(d.ErnieImagePipeline, transformer=transformer, scheduler=scheduler())


def ernie_prompts(samples: range) -> Parts:
    found = {name: list(value) for name, value in both(samples, WORDS, WIDTH).items()}
    return found | {"height": 64, "width": 64}


def of_flux2(kind: Any, **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        transformer = network(
            d.Flux2Transformer2DModel,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=kind is d.Flux2Pipeline,
        )
        vae = network(
            d.AutoencoderKLFlux2,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(4, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=1,
        )
        parts = {"transformer": transformer, "vae": vae, "scheduler": scheduler()}
        return pipeline(kind, **parts, **more)

    return make


def flux2_prompts(samples: range) -> Parts:
    return {"prompt_embeds": embeds(samples, WORDS, WIDTH), "height": SIDE, "width": SIDE}


def flux2_guided(samples: range) -> Parts:
    return both(samples, WORDS, WIDTH) | {"height": SIDE, "width": SIDE}


class _AceStep(d.AceStepPipeline):
    def encode_prompt(self, prompt: Any, lyrics: Any, *args: Any, **more: Any) -> Any:
        ones = torch.ones(len(prompt), WORDS, dtype=torch.bool)
        return told(prompt, WORDS, 16), ones, told(prompt, WORDS, 16), ones


def ace_step() -> Any:
    """It makes music."""
    of_both: Parts = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    transformer = network(
        d.AceStepTransformer1DModel,
        num_hidden_layers=2,
        in_channels=24,
        audio_acoustic_hidden_dim=8,
        **of_both,
    )
    from diffusers.pipelines.ace_step import AceStepConditionEncoder

    condition = network(
        AceStepConditionEncoder,
        text_hidden_dim=16,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        **of_both,
    )
    return pipeline(
        _AceStep,
        transformer=transformer,
        condition_encoder=condition,
        scheduler=scheduler(num_train_timesteps=1),
    )


def ace_step_prompts(samples: range) -> Parts:
    words = texts(samples)
    return {"prompt": words, "lyrics": words, "audio_duration": 1.0, "guidance_scale": 3.0}


class FiboTexts:
    """In the place of its encoder."""

    def get_prompt_embeds(self, prompt: Any, *args: Any, **more: Any) -> Any:
        layers = [told([f"{text} {k}" for text in prompt], WORDS, 16) for k in range(2)]
        return told(prompt, WORDS, WIDTH), layers, torch.ones(len(prompt), WORDS)


class _Fibo(FiboTexts, d.BriaFiboPipeline):
    pass


def bria_fibo() -> Any:
    transformer = network(
        d.BriaFiboTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=16,
    )
    return pipeline(
        _Fibo,
        transformer=transformer,
        scheduler=scheduler(),
        vae=odd.wan_i2v().vae,
        text_encoder=text_encoder(),
    )


def sana_sprint_from_image() -> Any:
    parts = sana_parts(guidance_embeds=True) | {"scheduler": d.SCMScheduler()}
    return pipeline(d.SanaSprintImg2ImgPipeline, **parts)


def helios() -> Any:
    transformer = network(
        d.HeliosTransformer3DModel,
        **{k: v for k, v in WAN.items() if k != "rope_max_seq_len"},
        rope_dim=(4, 4, 4),
    )
    parts = {"transformer": transformer, "vae": odd.wan_i2v().vae}
    return pipeline(
        d.HeliosPipeline,
        **parts,
        scheduler=d.HeliosScheduler(stages=1),
        text_encoder=text_encoder(),
    )


def anyflow_far() -> Any:
    transformer = network(d.AnyFlowFARTransformer3DModel, **WAN)
    return pipeline(
        d.AnyFlowFARPipeline, transformer=transformer, scheduler=d.FlowMapEulerDiscreteScheduler()
    )


def eighth() -> Any:
    """An autoencoder of an eighth of the side."""
    settings = dict(tiny.sd3().vae.config) | {"block_out_channels": (4,) * 4}
    settings |= {"down_block_types": ("DownEncoderBlock2D",) * 4}
    settings |= {"up_block_types": ("UpDecoderBlock2D",) * 4}
    return network(d.AutoencoderKL, **settings)


def _with_image(kind: Any, vae: Callable[[], Any], **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        made = of_kandinsky(kind, **settings)()
        parts = {k: v for k, v in made.components.items() if v is not None}
        return pipeline(kind, **parts | {"vae": vae()})

    return make


SINGLE = {
    "Krea2Pipeline": Family(krea2, krea2_prompts),
    "ErnieImagePipeline": Family(ernie, ernie_prompts),
    "Flux2Pipeline": Family(of_flux2(d.Flux2Pipeline), flux2_prompts),
    "Flux2Pipeline (with an image)": Family(
        of_flux2(d.Flux2Pipeline), adding(flux2_prompts, image=photos(side=64)[0])
    ),
    "Flux2KleinPipeline": Family(of_flux2(d.Flux2KleinPipeline), flux2_guided),
    "Flux2KleinKVPipeline": Family(
        of_flux2(d.Flux2KleinKVPipeline), adding(flux2_prompts, image=photos(side=64)[0])
    ),
    "Flux2KleinInpaintPipeline": Family(
        of_flux2(d.Flux2KleinInpaintPipeline),
        adding(flux2_guided, image=picture(range(2)), mask_image=mask()),
    ),
    "AceStepPipeline": Family(ace_step, ace_step_prompts),
    "BriaFiboPipeline": Family(
        bria_fibo, lambda rows: {"prompt": texts(rows), "height": 64, "width": 64}
    ),
    "SanaSprintImg2ImgPipeline": Family(
        sana_sprint_from_image, adding(masked_prompts, image=picture())
    ),
    "HeliosPipeline": Family(helios, tiny.wan_prompts),
    "AnyFlowFARPipeline": Family(anyflow_far, tiny.wan_prompts),
    "Kandinsky5I2IPipeline": Family(
        _with_image(d.Kandinsky5I2IPipeline, eighth, visual_cond=True),
        adding(kandinsky_prompts, image=photos()[0]),
        samples=1,
    ),
    "Kandinsky5I2VPipeline": Family(
        _with_image(d.Kandinsky5I2VPipeline, lambda: odd.framepack().vae, visual_cond=True),
        adding(kandinsky_prompts, image=photos()[0], num_frames=5),
        samples=1,
    ),
    "LTX2InContextPipeline": Family(
        of_ltx2(d.LTX2InContextPipeline), odd.ltx2_prompts
    ),
    "LTX2HDRPipeline": Family(
        of_ltx2(d.LTX2HDRPipeline),
        adding(
            odd.ltx2_prompts, audio_guidance_scale=None, audio_stg_scale=None,
            audio_modality_scale=None,
        ),
    ),
}  # fmt: skip
