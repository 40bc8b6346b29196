"""diffusers pipelines with small random networks and prompts that are embedded already."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

SIZE = 16  # pixels, of images whose autoencoder halves the side
WORDS, WIDTH = 5, 32


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def embeds(samples: range, *shape: int, seed: int = 700) -> Tensor:
    """One draw for each index, whatever the others are: (len(samples), *shape)."""
    prompts = [torch.Generator().manual_seed(seed + i) for i in samples]
    return torch.stack([torch.randn(shape, generator=g) for g in prompts])


def sd3(**scheduler: Any) -> StableDiffusion3Pipeline:
    """Its scheduler has shift 3, as that of the published model."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    ).eval()
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    ).eval()
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    return quiet(pipeline)


def sd3_with_text(folder: Path) -> None:
    """Written to a folder as published pipelines are: with text encoders that read letters."""
    letters = string.ascii_lowercase
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "words").mkdir(parents=True)
    (folder / "words/vocab.json").write_text(json.dumps({w: k for k, w in enumerate(words)}))
    (folder / "words/merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(folder / "words/vocab.json"), str(folder / "words/merges.txt"), model_max_length=8
    )
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -5.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in letters]
    pipeline = sd3()
    encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=WIDTH // 2,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=8,
            projection_dim=32,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()
    StableDiffusion3Pipeline(
        transformer=pipeline.transformer,
        scheduler=pipeline.scheduler,
        vae=pipeline.vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_encoder_2=encoder,
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(
            T5Config(
                vocab_size=len(pieces), d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2
            )
        ).eval(),
        tokenizer_3=T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=8),
    ).save_pretrained(folder)


def sd3_prompts(samples: range, guidance_scale: float = 1.0) -> dict[str, Any]:
    """What the pipeline takes for these prompts: one embedding for each index."""
    prompts = [torch.Generator().manual_seed(100 + i) for i in samples]

    def draw(*shape: int) -> Tensor:
        return torch.stack([torch.randn(shape, generator=g) for g in prompts])

    call = {
        "prompt_embeds": draw(WORDS, WIDTH),
        "pooled_prompt_embeds": draw(64),
        "negative_prompt_embeds": torch.zeros(len(samples), WORDS, WIDTH),
        "negative_pooled_prompt_embeds": torch.zeros(len(samples), 64),
    }
    return call | {"guidance_scale": guidance_scale, "height": SIZE, "width": SIZE}


def sd3_velocity(transformer: torch.nn.Module, call: dict[str, Any]) -> Any:
    """dx/dt with guidance, written from the network alone: v = -(u + g (c - u))."""

    def half(x: Tensor, t: Tensor, prefix: str) -> Tensor:
        return transformer(
            hidden_states=x,
            timestep=1000.0 * (1.0 - t),
            encoder_hidden_states=call[f"{prefix}prompt_embeds"],
            pooled_projections=call[f"{prefix}pooled_prompt_embeds"],
        ).sample

    def velocity(x: Tensor, t: Tensor, /) -> Tensor:
        conditional = half(x, t, "")
        if call["guidance_scale"] <= 1.0:
            return -conditional
        unconditional = half(x, t, "negative_")
        return -(unconditional + call["guidance_scale"] * (conditional - unconditional))

    return velocity


def flux() -> FluxPipeline:
    """Its scheduler shifts by the number of image tokens, as that of FLUX.1-dev."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipeline = FluxPipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    return quiet(pipeline)


def flux_prompts(samples: range) -> dict[str, Any]:
    prompts = [torch.Generator().manual_seed(200 + i) for i in samples]
    return {
        "prompt_embeds": torch.stack([torch.randn(WORDS, WIDTH, generator=g) for g in prompts]),
        "pooled_prompt_embeds": torch.stack([torch.randn(32, generator=g) for g in prompts]),
        "height": 64,
        "width": 64,
    }


def sana() -> SanaPipeline:
    """With a DPM-Solver that is told to serve a flow, as in the published model."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=WIDTH,
        sample_size=4,
    ).eval()
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = SanaPipeline(
        transformer=transformer, scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None
    )
    return quiet(pipeline)


def sana_prompts(samples: range) -> dict[str, Any]:
    mask = torch.ones(len(samples), WORDS)
    return {
        "prompt_embeds": embeds(samples, WORDS, WIDTH, seed=300),
        "prompt_attention_mask": mask,
        "negative_prompt": None,
        "negative_prompt_embeds": torch.zeros(len(samples), WORDS, WIDTH),
        "negative_prompt_attention_mask": mask,
        "guidance_scale": 4.5,
        "height": 128,
        "width": 128,
        "use_resolution_binning": False,
    }


def wan_network(kind: Any = WanTransformer3DModel, channels: int = 4) -> torch.nn.Module:
    torch.manual_seed(0)
    return kind(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=channels,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    ).eval()


def wan() -> WanPipeline:
    """With UniPC, as in the published model; its call takes no ``sigmas``."""
    transformer = wan_network()
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = WanPipeline(
        transformer=transformer, scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None
    )
    return quiet(pipeline)


def wan_prompts(samples: range, guidance_scale: float = 5.0) -> dict[str, Any]:
    return {
        "prompt_embeds": embeds(samples, WORDS, WIDTH, seed=400),
        "negative_prompt_embeds": torch.zeros(len(samples), WORDS, WIDTH),
        "guidance_scale": guidance_scale,
        "height": 32,
        "width": 32,
        "num_frames": 5,
    }


def qwen_image() -> QwenImagePipeline:
    """Its scheduler shifts by the number of tokens and stretches to a terminal value."""
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    pipeline = QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    return quiet(pipeline)


def qwen_image_prompts(samples: range) -> dict[str, Any]:
    mask = torch.ones(len(samples), WORDS, dtype=torch.int64)
    return {
        "prompt_embeds": embeds(samples, WORDS, WIDTH, seed=500),
        "prompt_embeds_mask": mask,
        "negative_prompt_embeds": torch.zeros(len(samples), WORDS, WIDTH),
        "negative_prompt_embeds_mask": mask,
        "true_cfg_scale": 2.0,
        "height": 64,
        "width": 64,
    }


def ltx() -> LTXPipeline:
    """As Qwen-Image, but its call takes no ``sigmas``."""
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=WIDTH,
    ).eval()
    pipeline = LTXPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    return quiet(pipeline)


def mochi() -> MochiPipeline:
    """Its noise levels run from 0 to 1, and its call takes no ``sigmas``."""
    torch.manual_seed(0)
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        pooled_projection_dim=16,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=WORDS,
    ).eval()
    pipeline = MochiPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    return quiet(pipeline)


def video_prompts(samples: range) -> dict[str, Any]:
    """For LTX and Mochi."""
    mask = torch.ones(len(samples), WORDS, dtype=torch.bool)
    return {
        "prompt_embeds": embeds(samples, WORDS, WIDTH, seed=600),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": torch.zeros(len(samples), WORDS, WIDTH),
        "negative_prompt_attention_mask": mask,
        "height": 64,
        "width": 64,
        "num_frames": 9,
    }


# How each is made, and what it is called with for the prompts of a range.
PIPELINES = [
    (sd3, sd3_prompts),
    (flux, flux_prompts),
    (qwen_image, qwen_image_prompts),
    (sana, sana_prompts),
    (wan, wan_prompts),
    (ltx, video_prompts),
    (mochi, video_prompts),
]
