"""More small random pipelines: those that edit, animate or fill in a grid of pictures, and one that
writes a film in windows."""

from typing import Any

import diffusers as d
import torch

from tests.helpers import tiny_pipelines as tiny
from tests.helpers.families import Family
from tests.helpers.image_pipelines import Parts, network, photos, pipeline, scheduler
from tests.helpers.single_pipelines import FiboTexts, bria_fibo, texts
from tests.helpers.text_pipelines import clip_and_t5, t5
from tests.helpers.tiny_pipelines import WIDTH, WORDS, embeds
from tests.helpers.video_pipelines import SEEN, WAN, ltx_vae, of_wan


def bria_fibo2() -> Any:
    transformer = network(
        d.BriaFibo2Transformer2DModel,
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=WIDTH,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=2,
        max_num_gist_tokens=4,
        gist_step=1,
        gist_min_text_len=2,
        gist_max_text_len=8,
        axes_dims=(8, 4, 4),
        axes_lens=(64, 32, 32),
    )
    return pipeline(d.BriaFibo2Pipeline, transformer=transformer, scheduler=scheduler())


def bria_fibo2_prompts(samples: range) -> Parts:
    """Of two layers of the encoder: one for its gist, one for the block that it comes into."""
    layers = [embeds(samples, WORDS, WIDTH), embeds(samples, WORDS, WIDTH, seed=800)]
    ones = torch.ones(len(samples), WORDS, dtype=torch.bool)
    return {
        "prompt_embeds": torch.stack(layers, 1),
        "prompt_embeds_mask": ones,
        "negative_prompt_embeds": torch.zeros(len(samples), 2, WORDS, WIDTH),
        "negative_prompt_embeds_mask": ones,
        "height": 64,
        "width": 64,
    }


class _FiboEdit(FiboTexts, d.BriaFiboEditPipeline):
    pass


def bria_fibo_edit() -> Any:
    parts = {k: v for k, v in bria_fibo().components.items() if v is not None}
    return pipeline(_FiboEdit, **parts)


def bria_fibo_edit_prompts(samples: range) -> Parts:
    edits = [f'{{"edit_instruction": "{text}"}}' for text in texts(samples)]
    return {"prompt": edits, "image": photos(side=64)[0], "height": 64, "width": 64}


def visualcloze_generation() -> Any:
    own = {k: v for k, v in tiny.flux().components.items() if k in ("transformer", "scheduler")}
    # Latents, those of the pictures that are there, and where there are none.
    settings = {**own["transformer"].config, "in_channels": 48, "out_channels": 16}
    parts = clip_and_t5() | {
        "transformer": network(d.FluxTransformer2DModel, **settings),
        "scheduler": own["scheduler"],
        "vae": tiny.sd3().vae,
    }
    return pipeline(d.VisualClozeGenerationPipeline, **parts, resolution=32)


def visualcloze_generation_prompts(samples: range) -> Parts:
    """An example of the task, and a picture to do it with."""
    photo, (text,) = photos(side=32)[0], texts(samples)
    told = {"task_prompt": text, "content_prompt": text, "max_sequence_length": 8}
    return told | {"image": [[photo, photo], [photo, None]]}


def wan_animate() -> Any:
    """Its network has one of the face within it."""
    transformer = network(
        d.WanAnimateTransformer3DModel,
        in_channels=36,
        latent_channels=16,
        out_channels=16,
        image_dim=16,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=8,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
        **WAN,
    )
    seeing = of_wan(d.WanImageToVideoPipeline, channels=36, **SEEN)().components
    names = ("vae", "image_encoder", "image_processor", "scheduler")
    parts = {name: seeing[name] for name in names}
    return pipeline(d.WanAnimatePipeline, transformer=transformer, **parts)


def wan_animate_prompts(samples: range) -> Parts:
    call = {k: v for k, v in tiny.wan_prompts(samples).items() if k != "num_frames"}
    video = [photos()[0]] * 5
    seen = {"image": video[0], "pose_video": video, "face_video": photos(5, side=16)}
    return call | seen | {"segment_frame_length": 5}


def ltx_in_windows(**scheduler: Any) -> Any:
    parts = tiny.ltx().components | {"vae": ltx_vae()} | t5() | scheduler
    return pipeline(d.LTXI2VLongMultiPromptPipeline, **parts)


def ltx_in_windows_prompts(samples: range) -> Parts:
    (text,) = texts(samples)
    call = {"prompt": text, "negative_prompt": "blurred", "guidance_scale": 3.0}
    return call | {"max_sequence_length": 16, "height": 64, "width": 64, "num_frames": 9}


LAST = {
    "BriaFibo2Pipeline": Family(bria_fibo2, bria_fibo2_prompts),
    "BriaFiboEditPipeline": Family(bria_fibo_edit, bria_fibo_edit_prompts, samples=1),
    "VisualClozeGenerationPipeline": Family(
        visualcloze_generation, visualcloze_generation_prompts, samples=1
    ),
    "WanAnimatePipeline": Family(wan_animate, wan_animate_prompts),
    "LTXI2VLongMultiPromptPipeline": Family(ltx_in_windows, ltx_in_windows_prompts, samples=1),
    "LTXI2VLongMultiPromptPipeline (its own scheduler)": Family(
        lambda: ltx_in_windows(scheduler=d.LTXEulerAncestralRFScheduler()),
        ltx_in_windows_prompts,
        samples=1,
    ),
}
