"""More small random pipelines of videos. Prompts are embedded already."""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers as d
import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.families import Family
from tests.helpers.image_pipelines import (
    Parts,
    adding,
    network,
    photos,
    picture,
    pipeline,
    scheduler,
)
from tests.helpers.tiny_pipelines import WIDTH, WORDS, embeds

WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": WIDTH,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def of_wan(
    kind: Any, of: Any = d.WanTransformer3DModel, channels: int = 16, two: bool = False, **more: Any
) -> Callable[[], Any]:
    def make() -> Any:
        names = ("expand_timesteps",)
        of_pipeline = {k: v for k, v in more.items() if k in names}
        settings = {k: v for k, v in more.items() if k not in names}
        parts: Parts = {
            "transformer": network(of, in_channels=channels, out_channels=16, **WAN | settings),
            "vae": odd.wan_i2v().vae,
            "scheduler": scheduler(shift=3.0),
            **of_pipeline,
        }
        if two:
            parts["transformer_2"] = network(of, in_channels=channels, out_channels=16, **WAN)
            parts["boundary_ratio"] = 0.5
        if "image_dim" in settings:
            torch.manual_seed(0)
            config = CLIPVisionConfig(
                hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                num_attention_heads=2, image_size=16, patch_size=8,
            )  # fmt: skip
            parts["image_encoder"] = CLIPVisionModel(config).eval()
            parts["image_processor"] = CLIPImageProcessor(
                size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
            )
        return pipeline(kind, **parts)

    return make


def _video(frames: int = 5) -> list[Any]:
    return photos(frames)


SEEN = {"image_dim": 16, "added_kv_proj_dim": 24}
_skyreels = partial(of_wan, of=d.SkyReelsV2Transformer3DModel)
_plain = adding(odd.skyreels_prompts, prompt=None, num_frames=5, guidance_scale=5.0)

OF_WAN = {
    "WanImageToVideoPipeline (2.1)": Family(
        of_wan(d.WanImageToVideoPipeline, channels=36, **SEEN),
        adding(tiny.wan_prompts, image=photos()[0]),
    ),
    "WanImageToVideoPipeline (2.2 14B, two networks)": Family(
        of_wan(d.WanImageToVideoPipeline, channels=36, two=True),
        adding(tiny.wan_prompts, image=photos()[0]),
    ),
    "WanVACEPipeline": Family(
        of_wan(
            d.WanVACEPipeline, d.WanVACETransformer3DModel, vace_layers=[0], vace_in_channels=96
        ),
        adding(tiny.wan_prompts, video=_video(), mask=_video()),
        samples=1,
    ),
    "WanVideoToVideoPipeline": Family(
        of_wan(d.WanVideoToVideoPipeline),
        adding(tiny.wan_prompts, video=_video(), num_frames=None, strength=0.8),
    ),
    "LucyEditPipeline": Family(
        of_wan(d.LucyEditPipeline, channels=32),
        adding(tiny.wan_prompts, video=_video()),
        samples=1,
    ),
    "ChronoEditPipeline": Family(
        of_wan(d.ChronoEditPipeline, d.ChronoEditTransformer3DModel, channels=36, **SEEN),
        adding(tiny.wan_prompts, image=photos()[0]),
    ),
    "SkyReelsV2Pipeline": Family(_skyreels(d.SkyReelsV2Pipeline), _plain),
    "SkyReelsV2ImageToVideoPipeline": Family(
        _skyreels(d.SkyReelsV2ImageToVideoPipeline, channels=36, **SEEN),
        adding(_plain, image=photos()[0]),
    ),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": Family(
        _skyreels(d.SkyReelsV2DiffusionForcingImageToVideoPipeline),
        adding(_plain, image=photos()[0], num_frames=9),
    ),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": Family(
        _skyreels(d.SkyReelsV2DiffusionForcingVideoToVideoPipeline),
        adding(_plain, video=_video(), num_frames=13, overlap_history=5),
    ),
    "AnyFlowPipeline": Family(
        lambda: pipeline(
            d.AnyFlowPipeline,
            transformer=network(d.AnyFlowTransformer3DModel, **WAN),
            scheduler=d.FlowMapEulerDiscreteScheduler(),
        ),
        tiny.wan_prompts,
    ),
}


def ltx_vae() -> Any:
    return network(
        d.AutoencoderKLLTXVideo,
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )


def of_ltx(kind: Any, **more: Any) -> Callable[[], Any]:
    return lambda: pipeline(kind, **tiny.ltx().components | {"vae": ltx_vae()} | more)


def of_ltx2(kind: Any) -> Callable[[], Any]:
    return lambda: pipeline(
        kind, **{k: v for k, v in odd.ltx2().components.items() if v is not None}
    )


LTX = {
    "LTXImageToVideoPipeline": Family(
        of_ltx(d.LTXImageToVideoPipeline),
        adding(tiny.video_prompts, image=picture(range(2), side=64)),
    ),
    "LTXConditionPipeline": Family(
        of_ltx(d.LTXConditionPipeline, scheduler=scheduler()),
        adding(tiny.video_prompts, image=photos()[0]),
        samples=1,
    ),
    "LTXPipeline (distilled)": Family(
        of_ltx(d.LTXPipeline, scheduler=scheduler(stochastic_sampling=True)),
        tiny.video_prompts,
    ),
    "LTX2Pipeline (its defaults)": Family(
        odd.ltx2,
        adding(
            odd.ltx2_prompts, guidance_scale=None, audio_guidance_scale=None, stg_scale=None,
            audio_stg_scale=None, modality_scale=None, audio_modality_scale=None,
            spatio_temporal_guidance_blocks=[0],
        ),
    ),
    "LTX2ImageToVideoPipeline": Family(
        of_ltx2(d.LTX2ImageToVideoPipeline),
        adding(odd.ltx2_prompts, image=photos()[0], image_crf=0),
        samples=1,
    ),
    "LTX2ConditionPipeline": Family(of_ltx2(d.LTX2ConditionPipeline), odd.ltx2_prompts),
}  # fmt: skip


def of_hunyuan(kind: Any, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        transformer = network(
            d.HunyuanVideoTransformer3DModel,
            **{
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 10,
                "num_layers": 1,
                "num_single_layers": 1,
                "num_refiner_layers": 1,
                "text_embed_dim": 16,
                "pooled_projection_dim": 8,
                "rope_axes_dim": (2, 4, 4),
            }
            | settings,
        )
        vae = odd.framepack().vae
        return pipeline(kind, transformer=transformer, vae=vae, scheduler=scheduler(shift=7.0))

    return make


def hunyuan_prompts(samples: range, **more: Any) -> Parts:
    found: Parts = {"height": 32, "width": 32, "num_frames": 5, "true_cfg_scale": 3.0}
    for prefix, share in (("", 1.0), ("negative_", 0.3)):
        found[f"{prefix}prompt_embeds"] = share * embeds(samples, WORDS, 16)
        found[f"{prefix}pooled_prompt_embeds"] = share * embeds(samples, 8)
        found[f"{prefix}prompt_attention_mask"] = torch.ones(len(samples), WORDS)
    return found | more


HUNYUAN = {
    "HunyuanVideoPipeline": Family(of_hunyuan(d.HunyuanVideoPipeline), hunyuan_prompts),
    "HunyuanSkyreelsImageToVideoPipeline": Family(
        of_hunyuan(d.HunyuanSkyreelsImageToVideoPipeline, in_channels=8, guidance_embeds=False),
        adding(hunyuan_prompts, image=picture()),
        samples=1,
    ),
    "HunyuanVideoImageToVideoPipeline": Family(
        of_hunyuan(
            d.HunyuanVideoImageToVideoPipeline, in_channels=9, guidance_embeds=False,
            image_condition_type="latent_concat",
        ),
        adding(hunyuan_prompts, image=picture()),
        samples=1,
    ),
}  # fmt: skip

COSMOS = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": WIDTH,
    "adaln_lora_dim": 4,
    "max_size": (4, 32, 32),
    "crossattn_proj_in_channels": WIDTH,
    "encoder_hidden_states_channels": WIDTH,
    "extra_pos_embed_type": None,
}


class _Unchecked:
    """In the place of the checker of prompts and videos, which is a package of its own."""

    def to(self, device: Any) -> "_Unchecked":
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True


def of_cosmos(kind: Any, channels: int, **more: Any) -> Callable[[], Any]:
    def make() -> Any:
        transformer = network(
            d.CosmosTransformer3DModel, in_channels=channels, out_channels=16, **COSMOS
        )
        vae = odd.wan_i2v().vae
        parts = {"transformer": transformer, "vae": vae, "scheduler": scheduler(), **more}
        return pipeline(kind, **parts, safety_checker=_Unchecked())

    return make


_cosmos = adding(tiny.wan_prompts, num_frames=None)

MORE = {
    "Cosmos2TextToImagePipeline": Family(of_cosmos(d.Cosmos2TextToImagePipeline, 16), _cosmos),
    "Cosmos2VideoToWorldPipeline": Family(
        of_cosmos(d.Cosmos2VideoToWorldPipeline, 17), adding(tiny.wan_prompts, image=photos()[0])
    ),
    "Cosmos2_5_PredictBasePipeline": Family(
        of_cosmos(
            d.Cosmos2_5_PredictBasePipeline, 17,
            scheduler=d.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True
            ),
        ),
        tiny.wan_prompts,
    ),
}  # fmt: skip


def sana_video() -> Any:
    transformer = network(
        d.SanaVideoTransformer3DModel,
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        sample_size=4,
        rope_max_seq_len=32,
    )
    return pipeline(d.SanaVideoPipeline, transformer=transformer, scheduler=tiny.sana().scheduler)


def sana_video_prompts(samples: range) -> Parts:
    return tiny.sana_prompts(samples) | {"height": 32, "width": 32, "frames": 5}


def of_kandinsky(kind: Any, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        transformer = network(
            d.Kandinsky5Transformer3DModel,
            **{
                "in_visual_dim": 4,
                "out_visual_dim": 4,
                "in_text_dim": WIDTH,
                "in_text_dim2": 8,
                "time_dim": 16,
                "model_dim": 32,
                "ff_dim": 32,
                "num_text_blocks": 1,
                "num_visual_blocks": 1,
                "axes_dims": (4, 6, 6),
            }
            | settings,
        )
        return pipeline(kind, transformer=transformer, scheduler=scheduler())

    return make


def kandinsky_prompts(samples: range) -> Parts:
    found: Parts = {"height": 64, "width": 64}
    ends = torch.arange(len(samples) + 1, dtype=torch.int32) * WORDS
    for prefix, share in (("", 1.0), ("negative_", 0.3)):
        found[f"{prefix}prompt_embeds_qwen"] = share * embeds(samples, WORDS, WIDTH)
        found[f"{prefix}prompt_embeds_clip"] = share * embeds(samples, 8)
        found[f"{prefix}prompt_cu_seqlens"] = ends
    return found


MORE |= {
    "SanaVideoPipeline": Family(sana_video, sana_video_prompts),
    "Kandinsky5T2IPipeline": Family(of_kandinsky(d.Kandinsky5T2IPipeline), kandinsky_prompts),
    "Kandinsky5T2VPipeline": Family(
        of_kandinsky(d.Kandinsky5T2VPipeline), adding(kandinsky_prompts, num_frames=5)
    ),
}

VIDEOS = OF_WAN | LTX | HUNYUAN | MORE
