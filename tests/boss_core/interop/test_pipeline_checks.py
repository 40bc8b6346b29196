"""Pipelines whose velocity is of more than state and time are refused, and those that step in ways
of their own have the costs of the steps that they take."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    HeliosPyramidPipeline,
    LTX2DFRPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance

from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import (
    PipelineCost,
    estimate_pipeline_cost,
    sample_latents,
)
from boss_core.interop.diffusers_schedulers import fixed_scheduler
from boss_core.interop.pipeline_checks import check_told_steps, probe_steps
from boss_core.ode.timesteps import uniform
from tests.helpers import odd_pipelines as odd
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.pipeline_costs import assert_same_costs, call, noise

GRID = uniform(16)


def search(
    pipeline: Any, prompts: dict[str, Any], samples: int = 2, grid: Any = GRID
) -> PipelineCost:
    return estimate_pipeline_cost(pipeline, grid, [call(prompts, range(samples))])


def times_told(pipeline: Any, run: Any) -> list[float]:
    """The times that the network is told in a call, one for each evaluation."""
    told: list[float] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        told.append(float(kwargs["timestep"].flatten()[0]))

    handle = pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
    run()
    handle.remove()
    return told


@pytest.mark.parametrize(
    "scheduler",
    [{}, {"time_shift_type": "exponential"}, {"use_dynamic_shifting": False, "shift": 3.0}],
)
def test_cogview4_is_told_the_times_of_its_own_shift(scheduler: dict[str, Any]) -> None:
    """It shifts the sigmas and not the times that it tells its network: at the levels of its own
    6 steps, our steps tell the same times and end in the same latents."""
    samples = range(1)
    pipeline = odd.cogview4(**scheduler)
    own = pipeline.scheduler
    asked = odd.cogview4_prompts(samples) | {"output_type": "latent"}
    wanted: list[Tensor] = []
    told = times_told(
        pipeline,
        lambda: wanted.append(pipeline(**call(asked, samples), num_inference_steps=6).images),
    )
    assert told[::2] == [1000.0, 800.0, 600.0, 400.0, 200.0, 1.0]
    times = 1.0 - own.sigmas.double().numpy()
    if not scheduler:  # mu = 0.75 sqrt(576 / 256) + 0.25; mu / (mu + 1 / s - 1) at s = 0.8
        assert own.sigmas[1] == pytest.approx(1.375 / (1.375 + 1 / 0.8 - 1))
    times[0] = 0.0
    pipeline.scheduler = fixed_scheduler(own, times)
    found: list[Tensor] = []
    told_by_ours = times_told(
        pipeline,
        lambda: found.append(pipeline(**call(asked, samples), num_inference_steps=6).images),
    )
    np.testing.assert_allclose(told_by_ours, told, atol=2e-3)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
    pipeline.scheduler = own
    del asked["output_type"]
    carried = sample_latents(pipeline, times, [call(asked, samples)])
    torch.testing.assert_close(carried, wanted[0], rtol=1e-4, atol=1e-4)
    searched = times_told(
        pipeline,
        lambda: estimate_pipeline_cost(pipeline, times, [call(asked, samples)], check=False),
    )
    np.testing.assert_allclose(searched, told, atol=2e-3)


def test_times_that_do_not_follow_from_the_sigmas_are_refused() -> None:
    pipeline = odd.cogview4(shift_terminal=0.1)
    with pytest.raises(InputError, match="moves the sigmas by more than a shift"):
        search(pipeline, odd.cogview4_prompts(range(2)))
    asked = call(odd.cogview4_prompts(range(2)), range(2))
    with pytest.raises(InputError, match="moves the sigmas by more than a shift"):
        sample_latents(pipeline, [0.0, 0.5, 1.0], [asked])
    scheduler = fixed_scheduler(FlowMatchEulerDiscreteScheduler(), [0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match="timesteps that do not follow from its sigmas"):
        scheduler.set_timesteps(2, sigmas=[1.0, 0.5], timesteps=[999.0, 100.0])


def test_a_network_that_works_in_place_is_named() -> None:
    pipeline, samples = tiny.sd3(), range(2)
    asked = call(tiny.sd3_prompts(samples, 1.0), samples)

    def halve(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        kwargs["hidden_states"].mul_(0.5)

    hook = pipeline.transformer.register_forward_pre_hook(halve, with_kwargs=True)
    says = "changes the states between steps 0 and 1 .*networks that work in place"
    with pytest.raises(InputError, match=says):
        estimate_pipeline_cost(pipeline, uniform(4), [asked], check=False)
    asked = call(tiny.sd3_prompts(samples, 1.0), samples)
    for solver in ("euler", "ab2"):
        with pytest.raises(InputError, match=says):
            sample_latents(pipeline, uniform(4), [asked], solver=solver)
    hook.remove()


@pytest.mark.parametrize(
    ("make", "prompts", "more", "reason"),
    [
        (
            tiny.sd3,
            lambda samples: tiny.sd3_prompts(samples, 4.0),
            {
                "skip_guidance_layers": [0],
                "skip_layer_guidance_start": 0.01,
                "skip_layer_guidance_stop": 0.2,
            },
            "3 network evaluations for a sample|network evaluations for a sample, not 3",
        ),
        (odd.lumina2, odd.lumina2_prompts, {"cfg_trunc_ratio": 0.25}, "for a share of the steps"),
        (odd.lumina2, odd.lumina2_prompts, {"cfg_trunc_ratio": 0.94}, "for a share of the steps"),
        (
            lambda: odd.hunyuan_image(
                guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5, start=0.1, stop=0.6)
            ),
            odd.hunyuan_image_prompts,
            {},
            "for a share of the steps",
        ),
        # Its momentum, and a start at step 5.
        (
            lambda: odd.hunyuan_image(guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5)),
            odd.hunyuan_image_prompts,
            {},
            "the number of the step, or on the steps before",
        ),
        (
            lambda: odd.hunyuan_image(use_meanflow=True),
            odd.hunyuan_image_prompts,
            {},
            "told another transformer.timestep_r, as where its step ends",
        ),
        (
            odd.sd3_controlnet,
            odd.sd3_controlnet_prompts,
            {"control_guidance_end": 0.5},
            "depends on the number of the step|told another controlnet.conditioning_scale",
        ),
    ],
)
def test_a_velocity_of_more_than_state_and_time_is_refused(
    make: Any, prompts: Any, more: dict[str, Any], reason: str
) -> None:
    pipeline = make()
    own = pipeline.scheduler
    with pytest.raises(InputError, match=reason) as refused:
        search(pipeline, prompts(range(2)) | more)
    assert type(pipeline).__name__ in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert pipeline.scheduler is own
    assert not pipeline.transformer._forward_hooks


@pytest.mark.parametrize("count", [2, 3, 5, 8, 16, 20, 100, 1000])
def test_probes_have_every_bound_between_their_share_of_steps_and_the_grids(count: int) -> None:
    """A bound at a share b of the steps: for some point, one of i / n and k / K is below it and the
    other above, for all b from the second step of the grid to the last but one."""
    probes = probe_steps(count)
    for steps in probes:
        assert steps[0] == 0
        assert steps[-1] == count
        assert all(a < b for a, b in itertools.pairwise(steps))
        assert len(steps) <= 9
    if count < 16:  # all points there are
        return
    between = [
        sorted((i / count, k / (len(steps) - 1))) for steps in probes for k, i in enumerate(steps)
    ]
    for bound in np.linspace(1.5 / count, 1.0 - 1.5 / count, 997):
        assert any(low < bound < high for low, high in between), bound


def test_guidance_by_time_counts_where_it_is() -> None:
    """Z-Image's `cfg_truncation` ends guidance at a time: the same at every number of steps."""
    prompts = odd.z_image_prompts(range(2)) | {"cfg_truncation": 0.5}
    found = search(odd.z_image(), prompts)
    np.testing.assert_array_equal(found.nfe, np.where(GRID[:-1] <= 0.5, 2.0, 1.0))
    assert found.nfe_per_step == (2 * 9 + 7) / 16


@pytest.mark.parametrize(
    ("make", "prompts", "nfe"),
    [
        (odd.ideogram4, odd.ideogram4_prompts, 2.0),  # by a network of its own
        (odd.sd3_controlnet, odd.sd3_controlnet_prompts, 4.0),
        (
            lambda: odd.sd3_controlnet(several=True),
            lambda samples: odd.sd3_controlnet_prompts(samples, several=True),
            6.0,
        ),
        (odd.bria, odd.bria_prompts, 2.0),
    ],
)
def test_all_networks_are_counted(make: Any, prompts: Any, nfe: float) -> None:
    assert search(make(), prompts(range(2)), grid=uniform(4)).nfe_per_step == nfe


def test_a_frame_that_the_pipeline_puts_in_is_not_in_the_costs() -> None:
    pipeline, samples = odd.wan_i2v(), range(2)
    prompts = odd.wan_i2v_prompts(samples)
    given: list[Tensor] = []
    pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["hidden_states"]), with_kwargs=True
    )
    found = search(pipeline, prompts)
    assert found.discarded == 0.5  # one latent frame of two
    frame = given[0][:, :, :1]

    def velocity(x: Tensor, t: Tensor, /) -> Tensor:
        seen = torch.cat([frame, x[:, :, 1:]], dim=2)
        of_patches = torch.zeros(len(x), 2, 4)
        of_patches[:, 1] = 1000.0 * (1.0 - t[:, None])
        said = pipeline.transformer(
            hidden_states=seen,
            timestep=of_patches.flatten(1),
            encoder_hidden_states=prompts["prompt_embeds"],
        ).sample
        return -torch.cat([torch.zeros_like(frame), said[:, :, 1:]], dim=2)

    wanted = estimate_cost_matrix(velocity, noise(samples, 16, 2, 4, 4), GRID, batch_size=2)
    assert_same_costs(found.matrix, wanted, rtol=1e-4)


def test_copies_of_the_scheduler_are_steps_of_one_state() -> None:
    """SkyReels steps each frame by a copy: in step with each other they are one velocity."""
    pipeline, samples = odd.skyreels(), range(2)
    prompts = odd.skyreels_prompts(samples)
    told: list[int] = []
    found = estimate_pipeline_cost(pipeline, GRID, [call(prompts, samples)], on_step=told.append)
    assert told == [2] * 16

    def velocity(x: Tensor, t: Tensor, /) -> Tensor:
        return -pipeline.transformer(
            hidden_states=x,
            # It makes whole numbers of them, which is a function of the time as any other.
            timestep=(1000.0 * (1.0 - t[:, None].expand(-1, x.shape[2]))).long(),
            encoder_hidden_states=prompts["prompt_embeds"],
            enable_diffusion_forcing=True,
        ).sample

    wanted = estimate_cost_matrix(velocity, noise(samples, 16, 3, 4, 4), GRID, batch_size=2)
    assert_same_costs(found.matrix, wanted, rtol=1e-4)
    with pytest.raises(InputError, match="copies of its scheduler apart from each other"):
        search(pipeline, odd.skyreels_prompts(samples, ar_step=2, base_num_frames=9))


def test_sound_is_a_part_of_the_state() -> None:
    """LTX-2 steps its sound by a copy of the scheduler: one evaluation moves both."""
    pipeline, samples = odd.ltx2(), range(2)
    prompts = odd.ltx2_prompts(samples)
    told: list[int] = []
    held: list[int] = []
    found = estimate_pipeline_cost(
        pipeline, GRID, [call(prompts, samples)], on_step=told.append, on_memory=held.append
    )
    assert told == [2] * 16
    assert found.nfe_per_step == 2.0  # its connectors, evaluated once, are not in it
    elements = [size // (16 * 2 * 4) for size in held]
    assert elements == [3 * 16 * 16 * 4, 5 * 4]
    # As the pipeline does by itself at the levels of its own scheduler.
    own = pipeline.scheduler
    wanted = pipeline(
        **call(prompts, samples), num_inference_steps=6, output_type="latent", return_dict=False
    )[0]
    times = 1.0 - own.sigmas.double().numpy()
    times[0] = 0.0
    ends = sample_latents(pipeline, times, [call(prompts, samples)])
    torch.testing.assert_close(ends, wanted, rtol=1e-4, atol=1e-4)


class SetsItsStepsAgain(StableDiffusion3Pipeline):
    """As Wan-Animate does for a section that does not come."""

    def __call__(self, **kwargs: Any) -> Any:
        found = super().__call__(**kwargs)
        self.scheduler.set_timesteps(kwargs["num_inference_steps"])
        return found


class Inexact(StableDiffusion3Pipeline):
    """As kernels do that add up in any order: each evaluation is off by another 1 %."""

    def __call__(self, **kwargs: Any) -> Any:
        handle = self.transformer.register_forward_hook(
            lambda module, args, output: (output[0] + 0.01 * torch.randn(output[0].shape),)
        )
        try:
            with torch.random.fork_rng():
                torch.seed()
                return super().__call__(**kwargs)
        finally:
            handle.remove()


class Grows(StableDiffusion3Pipeline):
    """As ChronoEdit, which leaves frames out after some steps."""

    def __call__(self, **kwargs: Any) -> Any:
        def more(pipeline: Any, step: int, t: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"latents": state["latents"].repeat(1, 1, 2, 1)} if step == 3 else {}

        return super().__call__(**kwargs, callback_on_step_end=more)


def test_inexact_kernels_are_no_reason_and_states_of_another_shape_are() -> None:
    parts, prompts = tiny.sd3().components, tiny.sd3_prompts(range(2))
    assert search(Inexact(**parts), prompts).nfe_per_step == 1.0
    with pytest.raises(InputError, match="changes the shape of its states at step 4"):
        search(Grows(**parts), prompts)


def test_several_sections_are_refused_and_one_is_not() -> None:
    samples = range(2)
    with pytest.raises(InputError, match="in several sections, each from noise of its own"):
        search(odd.framepack(), odd.framepack_prompts(samples, sections=2))
    assert search(odd.framepack(), odd.framepack_prompts(samples, sections=1)).nfe_per_step == 1.0
    prompts = tiny.sd3_prompts(samples)
    found = search(SetsItsStepsAgain(**tiny.sd3().components), prompts).matrix
    assert_same_costs(found, search(tiny.sd3(), prompts).matrix, rtol=1e-6)


def test_a_pipeline_within_a_pipeline_is_named() -> None:
    with pytest.raises(InputError, match=r"its generation_pipe \(VisualClozeGenerationPipeline\)"):
        search(odd.visualcloze(), {"task_prompt": "a"})


@pytest.mark.parametrize("given", [{"guidance_scale": 4.0}, {"true_cfg_scale": 4.0}])
def test_guidance_that_the_pipeline_ignores_is_refused(given: dict[str, float]) -> None:
    """Qwen-Image wants `true_cfg_scale` and a negative prompt."""
    pipeline = tiny.qwen_image()
    with_negative = tiny.qwen_image_prompts(range(2))
    prompts = {k: v for k, v in with_negative.items() if "negative" not in k}
    del prompts["true_cfg_scale"]
    (name,) = given
    with pytest.raises(InputError, match=f"calls: {name}=4.0, but the velocity of this Qwen"):
        search(pipeline, prompts | given)
    assert search(pipeline, with_negative | {"true_cfg_scale": 4.0}).nfe_per_step == 2.0


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_no_guidance_may_be_asked_for(scale: float) -> None:
    """As distilled models do, whose pipelines would take a default of theirs otherwise."""
    assert search(tiny.sd3(), tiny.sd3_prompts(range(2), scale)).nfe_per_step == 1.0
    prompts = {k: v for k, v in tiny.qwen_image_prompts(range(2)).items() if "negative" not in k}
    prompts["true_cfg_scale"] = scale
    assert search(tiny.qwen_image(), prompts).nfe_per_step == 1.0


def test_a_pipeline_that_is_not_told_its_steps_is_refused() -> None:
    check_told_steps(FluxPipeline)
    for kind, own in (
        (LTX2DFRPipeline, "sigmas"), (HeliosPyramidPipeline, "pyramid_num_inference_steps_list")
    ):  # fmt: skip
        with pytest.raises(InputError) as refused:
            check_told_steps(kind)
        assert str(refused.value) == (
            f"pipeline: {kind.__name__} takes no num_inference_steps, but {own}, steps of its own;"
            " one that takes as many steps as it is told needed"
        )
