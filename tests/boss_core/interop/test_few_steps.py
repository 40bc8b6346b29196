"""Networks for few steps are known by their files, or by what they make of noise alone."""

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    StableDiffusion3Pipeline,
)

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import estimate_pipeline_cost
from boss_core.interop.few_steps import chosen_at_start, refuse_distilled
from boss_core.ode.timesteps import uniform
from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.flow_pipelines import flow_sd3
from tests.helpers.single_pipelines import ace_step


def call(seed: int) -> dict[str, Any]:
    return tiny.sd3_prompts(range(1)) | {"generator": torch.Generator().manual_seed(seed)}


# In steps of the distillation: none is the flow itself. The shares of networks that were trained
# are alike: students of a flow to digits have 57, 17 and 4 %, that flow 2 %.
SHARES = {None: (0.0, 1e-9), 1: (0.6, 0.9), 2: (0.1, 0.3), 4: (0.01, 0.06)}


@pytest.mark.parametrize("parts", SHARES)
def test_what_is_distilled_has_chosen_at_the_first_evaluation(parts: int | None) -> None:
    least, most = SHARES[parts]
    pipeline = flow_sd3(parts)
    for k in range(2):
        assert least <= chosen_at_start(pipeline, call(2 * k), call(2 * k + 1)) <= most
    assert type(pipeline.scheduler) is FlowMatchEulerDiscreteScheduler


def test_by_hand_it_is_the_distance_of_single_steps() -> None:
    """From the pipeline's own images in one step and in eight."""
    pipeline = flow_sd3(1)

    def latents(seed: int, steps: int) -> torch.Tensor:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
        sigmas = [1.0 - k / steps for k in range(steps)]
        return pipeline(**call(seed), sigmas=sigmas, output_type="latent").images

    one, many = (latents(0, k) - latents(1, k) for k in (1, 8))
    expected = float(one.square().sum() / many.square().sum())
    assert chosen_at_start(pipeline, call(0), call(1)) == pytest.approx(expected, rel=1e-3)


def test_samples_that_are_given_tell_nothing() -> None:
    """The same noise twice, as where an image says all."""
    assert chosen_at_start(flow_sd3(1), call(3), call(3)) == 0.0


def test_sound_beside_images_and_frames_that_are_given() -> None:
    """Every state counts, and nothing that the pipeline discards: at most what is drawn."""
    for make, prompts in ((odd.ltx2, odd.ltx2_prompts), (odd.wan_i2v, odd.wan_i2v_prompts)):
        one, other = (
            prompts(range(1)) | {"generator": torch.Generator().manual_seed(k)} for k in range(2)
        )
        assert 0.0 < chosen_at_start(make(), one, other) < 3.0


MARKS = {
    "its index": (Flux2KleinPipeline, FlowMatchEulerDiscreteScheduler, {"is_distilled": True}),
    "its class": (Flux2KleinKVPipeline, FlowMatchEulerDiscreteScheduler, {}),
    "its scheduler": (StableDiffusion3Pipeline, FlowMatchLCMScheduler, {}),
}


@pytest.mark.parametrize("mark", MARKS)
def test_what_says_so_is_refused(mark: str) -> None:
    kind, scheduler, config = MARKS[mark]
    with pytest.raises(InputError, match="distilled for a few steps of its own"):
        refuse_distilled(kind, scheduler.__name__, config)


def test_what_does_not_say_so_is_taken() -> None:
    euler = FlowMatchEulerDiscreteScheduler.__name__
    refuse_distilled(Flux2KleinPipeline, euler, {})
    refuse_distilled(Flux2KleinKVPipeline, euler, {"is_distilled": False})
    refuse_distilled(StableDiffusion3Pipeline, euler, {"is_distilled": None})


def test_the_library_refuses_it_too() -> None:
    pipeline = tiny.sd3()
    pipeline.scheduler = FlowMatchLCMScheduler()
    with pytest.raises(InputError, match="FlowMatchLCMScheduler, which is for a network distilled"):
        estimate_pipeline_cost(pipeline, uniform(2), [call(0)])
    pipeline = tiny.sd3()
    pipeline.register_to_config(is_distilled=True)
    with pytest.raises(InputError, match="says is_distilled"):
        estimate_pipeline_cost(pipeline, uniform(2), [call(0)])
    music = ace_step()
    music.transformer.register_to_config(is_turbo=True)
    with pytest.raises(InputError, match=r"of the transformer of this .* has is_turbo=True: it is"):
        estimate_pipeline_cost(music, uniform(2), [call(0)])
