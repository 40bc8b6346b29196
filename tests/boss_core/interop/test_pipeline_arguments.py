"""Arguments that a pipeline ignores are refused, and only those."""

from typing import Any

import pytest
import torch
from PIL import Image

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import prompt_calls
from boss_core.interop.pipeline_arguments import refuse_ignored
from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers import told_pipelines as told
from tests.helpers.memory_errors import MEMORY

SIZE = {"height": 64, "width": 64}


def tried(pipeline: Any, given: dict[str, Any], **others: Any) -> None:
    """As what a search does with these arguments of a call, whose others it does not try."""
    if "prompt_embeds" in others:
        call = {**others, **given, "generator": torch.Generator().manual_seed(0)}
    else:
        (call,) = prompt_calls(["a cat"], batch_size=1, **given, **others)
    state = call["generator"].get_state()
    scheduler = pipeline.scheduler
    try:
        refuse_ignored(pipeline, call, dict.fromkeys(given, "--call"))
    finally:
        assert pipeline.scheduler is scheduler
        assert torch.equal(call["generator"].get_state(), state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance_scale": 4.0}, "or true_cfg_scale above 1 and negative_prompt in its place,"),
        # The default of its call, which its own guidance needs a negative prompt for.
        ({"true_cfg_scale": 4}, "true_cfg_scale=4 changes .*; none, or negative_prompt with it,"),
        (
            {"negative_prompt": "dull", "true_cfg_scale": 1.0},
            "negative_prompt='dull' .* or true_cfg_scale above 1 with it, needed",
        ),
    ],
)
def test_guidance_that_qwen_image_ignores_is_named_with_what_it_heeds(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        tried(told.qwen_image(), given, **SIZE)
    assert len(str(error.value).splitlines()) == 1


def test_what_qwen_image_heeds_and_what_need_not_matter_is_taken() -> None:
    pipeline = told.qwen_image()
    tried(pipeline, {"true_cfg_scale": 4, "negative_prompt": "dull", **SIZE})
    # A limit that cuts nothing, no guidance asked for, a switch, and the default.
    tried(pipeline, {"max_sequence_length": 64, "guidance_scale": 1.0}, **SIZE)
    tried(pipeline, {"attention_kwargs": {"scale": 1.0}, "guidance_scale": None}, **SIZE)


def test_numbers_texts_and_images_are_tried_on_other_pipelines() -> None:
    one = range(1)
    # Of decoding: nothing in the latents. Of the positions of frames: something.
    video = tiny.video_prompts(one)
    tried(tiny.ltx(), {"decode_timestep": 0.05, "frame_rate": 24}, **video)
    tried(tiny.ltx(), {"num_frames": 17}, **{k: v for k, v in video.items() if k != "num_frames"})
    tried(odd.z_image(), {"cfg_truncation": 0.9, "guidance_scale": 3.0}, **{
        k: v for k, v in odd.z_image_prompts(one).items() if k != "guidance_scale"
    })  # fmt: skip
    image = Image.new("RGB", (16, 16), "red")
    tried(told.wan_i2v(), {"image": image}, height=32, width=32, num_frames=5, guidance_scale=1.0)
    shared = {"height": 32, "width": 32, "max_area": 1024, "_auto_resize": False}
    tried(told.flux_kontext(), {"image": image}, **shared)
    with pytest.raises(InputError, match="--call: negative_prompt_2='dull' changes nothing"):
        tried(told.flux_kontext(), {"negative_prompt_2": "dull"}, image=image, **shared)


@pytest.mark.parametrize(
    ("make", "prompts"),
    [
        *tiny.PIPELINES,
        (odd.cogview4, odd.cogview4_prompts),
        (odd.ideogram4, odd.ideogram4_prompts),
        (odd.sd3_controlnet, odd.sd3_controlnet_prompts),
        (odd.lumina2, odd.lumina2_prompts),
        (odd.wan_i2v, odd.wan_i2v_prompts),
        (odd.bria, odd.bria_prompts),
        (odd.skyreels, odd.skyreels_prompts),
    ],
)
def test_nothing_that_the_pipelines_of_the_tests_are_called_with_is_refused(make, prompts) -> None:
    call = prompts(range(1))
    given = dict.fromkeys(call.keys() - {"prompt"}, "--call")
    refuse_ignored(make(), call | {"generator": torch.Generator().manual_seed(0)}, given)


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_a_lack_of_memory_is_no_sign_that_a_value_is_read(error: Exception) -> None:
    """What trying another value raised for want of memory comes out: nothing is known by it."""
    pipeline = tiny.sd3()
    evaluated = []

    def fail(*_: Any) -> None:
        evaluated.append(1)
        if len(evaluated) > 4:  # once the call as it is has taken its steps
            raise error

    pipeline.transformer.register_forward_pre_hook(fail)
    call = {k: v for k, v in tiny.sd3_prompts(range(1), 4.0).items() if k != "guidance_scale"}
    with pytest.raises(type(error)) as raised:
        tried(pipeline, {"guidance_scale": 4.0}, **call)
    assert raised.value is error
