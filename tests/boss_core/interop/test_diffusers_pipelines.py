"""The cost of steps, measured on diffusers pipelines with small random networks."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)

from boss_core.costs.matrix import estimate_cost_matrix
from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import (
    estimate_pipeline_cost,
    prompt_calls,
    sample_generators,
    sample_latents,
)
from boss_core.interop.diffusers_schedulers import fixed_scheduler
from boss_core.interop.pipeline_rounding import without_rounding
from boss_core.ode.solvers import ab2, euler
from boss_core.ode.timesteps import quadratic, uniform
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.checkout import ROOT
from tests.helpers.pipeline_costs import assert_same_costs, call, noise

# Times that float32 holds, so that the networks see the same ones by either way: the sinusoids of
# their time, up to 1000, turn a rounding of it into 1e-5 of the velocity.
GRID = uniform(16)


@pytest.mark.parametrize(("guidance_scale", "nfe"), [(1.0, 1.0), (4.0, 2.0)])
@pytest.mark.parametrize("grid", [GRID, quadratic(8)])
def test_sd3_costs_are_those_of_its_network_with_guidance(
    guidance_scale: float, nfe: float, grid: Any
) -> None:
    pipeline, samples = tiny.sd3(), range(3)
    prompts = tiny.sd3_prompts(samples, guidance_scale)
    found = estimate_pipeline_cost(pipeline, grid, [call(prompts, samples)])
    velocity = tiny.sd3_velocity(pipeline.transformer, prompts)
    wanted = estimate_cost_matrix(velocity, noise(samples, 4, 8, 8), grid, batch_size=3)
    assert_same_costs(found.matrix, wanted, rtol=1e-5)
    np.testing.assert_allclose(
        found.matrix.standard_error[0, 2:], wanted.standard_error[0, 2:], rtol=1e-4
    )
    assert found.matrix.samples == 3
    assert found.nfe_per_step == nfe


def test_wan_costs_are_those_of_its_network_though_it_takes_no_sigmas() -> None:
    pipeline, samples = tiny.wan(), range(2)
    prompts = tiny.wan_prompts(samples)
    found = estimate_pipeline_cost(pipeline, GRID, [call(prompts, samples)])

    def velocity(x: Tensor, t: Tensor, /) -> Tensor:
        conditional, unconditional = (
            pipeline.transformer(
                hidden_states=x,
                timestep=1000.0 * (1.0 - t),
                encoder_hidden_states=prompts[name],
            ).sample
            for name in ("prompt_embeds", "negative_prompt_embeds")
        )
        return -(unconditional + 5.0 * (conditional - unconditional))

    wanted = estimate_cost_matrix(velocity, noise(samples, 4, 2, 4, 4), GRID, batch_size=2)
    assert_same_costs(found.matrix, wanted, rtol=1e-5)
    assert found.nfe_per_step == 2.0  # two calls of the network, not one of both halves


@pytest.mark.parametrize(("make", "prompts"), tiny.PIPELINES)
def test_batches_do_not_change_the_costs(make: Any, prompts: Any) -> None:
    pipeline = make()
    own = pipeline.scheduler
    batches = {size: [range(i, min(i + size, 5)) for i in range(0, 5, size)] for size in (1, 2, 5)}
    found = {}
    for size, ranges in batches.items():
        seen: list[int] = []
        calls = (call(prompts(samples), samples) for samples in ranges)
        found[size] = estimate_pipeline_cost(
            pipeline, GRID, calls, check=size == 5, on_step=seen.append
        )
        assert seen == [len(samples) for samples in ranges for _ in range(16)]
        assert found[size].matrix.samples == 5
    for size in (2, 5):
        assert_same_costs(found[size].matrix, found[1].matrix, rtol=1e-4)
        assert found[size].nfe_per_step == found[1].nfe_per_step
    assert pipeline.scheduler is own


def test_states_are_carried_in_float32() -> None:
    """Only what the network sees and says is rounded to bfloat16, and this cost is 0.3 % off; with
    states that are rounded at each of the 100 steps it is 4 % off."""
    samples, grid = range(8), uniform(100)
    # Torch 2.11 draws other noise in bfloat16 than in float32.
    exact = tiny.sd3_prompts(samples) | {"latents": noise(samples, 4, 8, 8)}
    wanted = estimate_pipeline_cost(tiny.sd3(), grid, [exact]).matrix
    rounded = {k: v.bfloat16() if isinstance(v, Tensor) else v for k, v in exact.items()}
    found = estimate_pipeline_cost(tiny.sd3().to(torch.bfloat16), grid, [rounded]).matrix
    assert found.cost[0, 100] == pytest.approx(wanted.cost[0, 100], rel=0.01)


def test_what_a_network_rounds_is_measured() -> None:
    """With guidance a third of the cost of a middle step in bfloat16 is rounding. What is left
    without it is float32's within the variance of a measurement at 8 points; the paths too."""
    samples, grid = range(8), uniform(100)
    steps = [(0, 100), (45, 55), (50, 52), (20, 40), (0, 10)]
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pipeline = tiny.sd3().to(dtype)
        prompts = {
            name: value.to(dtype) if isinstance(value, Tensor) else value
            for name, value in tiny.sd3_prompts(samples, 4.0).items()
        }
        weights = {k: v.clone() for k, v in pipeline.transformer.state_dict().items()}
        found[dtype] = estimate_pipeline_cost(
            pipeline, grid, [call(prompts, samples)], check=False, rounding=True
        )
        after = pipeline.transformer.state_dict()
        assert all(torch.equal(after[k], v) and after[k].dtype == dtype for k, v in weights.items())
        assert not pipeline.transformer._forward_pre_hooks
    exact = found[torch.float32]
    assert (exact.rounding == 0).all()
    half = found[torch.bfloat16]
    raw = [half.matrix.cost[step] / exact.matrix.cost[step] - 1 for step in steps]
    assert max(raw) > 0.25
    clean = without_rounding(half.matrix, half.rounding)
    left = [clean.cost[step] / exact.matrix.cost[step] - 1 for step in steps]
    assert max(map(abs, left)) < 0.15
    assert all(abs(b) < abs(a) / 2 for a, b in zip(raw[1:], left[1:], strict=True))
    far = clean.cost > 1e-3  # next to nothing is cut off at 0, in each group
    np.testing.assert_allclose(clean.group_cost.mean(axis=0)[far], clean.cost[far], rtol=1e-9)
    # 2^-11 in place of 2^-8: 64 times less.
    assert 32 < np.median(half.rounding / found[torch.float16].rounding) < 128


def test_rounding_that_cannot_be_measured_is_none() -> None:
    pipeline = tiny.sd3().to(torch.bfloat16)
    layer = pipeline.transformer.proj_out
    layer.forward = lambda x: torch.nn.functional.linear(
        x.bfloat16() if x.dtype == torch.bfloat16 else x, layer.weight.bfloat16(), layer.bias
    )
    prompts = {
        name: value.bfloat16() if isinstance(value, Tensor) else value
        for name, value in tiny.sd3_prompts(range(1), 4.0).items()
    }
    found = estimate_pipeline_cost(pipeline, uniform(4), [call(prompts, range(1))], rounding=True)
    assert found.rounding is None
    assert all(weight.dtype == torch.bfloat16 for weight in pipeline.transformer.parameters())


def test_prompts_become_calls_with_a_generator_each() -> None:
    found = list(
        prompt_calls(
            ["a", "b", "c"], batch_size=2, seed=7, negative_prompt="ugly", guidance_scale=3.0
        )
    )
    assert [c["prompt"] for c in found] == [["a", "b"], "c"]
    assert [c["negative_prompt"] for c in found] == [["ugly", "ugly"], "ugly"]
    assert [c["guidance_scale"] for c in found] == [3.0, 3.0]
    several, alone = (c["generator"] for c in found)
    drawn = [torch.randn(4, generator=g) for g in [*several, alone]]
    wanted = [torch.randn(4, generator=g) for g in sample_generators(range(3), 7)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, wanted, strict=True))
    assert not torch.equal(drawn[0], drawn[1])
    other = torch.randn(4, generator=sample_generators(range(1), 8)[0])
    assert not any(torch.equal(other, draw) for draw in drawn)
    with pytest.raises(InputError, match="batch_size: 0"):
        list(prompt_calls(["a"], batch_size=0))


@pytest.mark.parametrize("inverted", [False, True])
def test_a_fixed_scheduler_walks_its_times_whatever_it_is_asked(inverted: bool) -> None:
    own = FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, invert_sigmas=inverted, stochastic_sampling=True
    )
    scheduler = fixed_scheduler(own, [0.0, 0.3, 1.0])
    scheduler.set_timesteps(50, sigmas=[1.0, 0.5], mu=1.0)
    levels = [0.0, 0.3, 1.0] if inverted else [1.0, 0.7, 0.0]
    np.testing.assert_allclose(scheduler.sigmas, levels, atol=1e-7)
    np.testing.assert_allclose(scheduler.timesteps, 1000 * np.array(levels[:-1]), atol=1e-4)
    x, v = torch.randn(1, 4), torch.randn(1, 4)
    found = scheduler.step(v, scheduler.timesteps[0], x).prev_sample
    torch.testing.assert_close(found, x + (levels[1] - levels[0]) * v)


def test_a_fixed_scheduler_gives_wan_the_steps_of_our_euler() -> None:
    pipeline, samples = tiny.wan(), range(2)
    times = [0.0, 0.1, 0.25, 0.6, 1.0]
    pipeline.scheduler = fixed_scheduler(pipeline.scheduler, times)
    assert "use_flow_sigmas" not in pipeline.scheduler.config
    prompts = tiny.wan_prompts(samples, guidance_scale=1.0)
    evaluations = []
    pipeline.transformer.register_forward_hook(lambda *_: evaluations.append(1))
    found = pipeline(**call(prompts, samples), num_inference_steps=4, output_type="latent").frames
    assert len(evaluations) == 4

    def velocity(x: Tensor, t: Tensor, /) -> Tensor:
        embeds = prompts["prompt_embeds"]
        return -pipeline.transformer(x, 1000.0 * (1.0 - t), embeds).sample

    wanted = euler(velocity, noise(samples, 4, 2, 4, 4), times)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


UNEQUAL = [0.0, 0.125, 0.25, 0.625, 1.0]


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_fixed_scheduler_gives_sd3_the_steps_of_our_ab2(guidance_scale: float) -> None:
    pipeline, samples = tiny.sd3(), range(2)
    prompts = tiny.sd3_prompts(samples, guidance_scale)
    pipeline.scheduler = fixed_scheduler(pipeline.scheduler, UNEQUAL, solver="ab2")
    evaluations = []
    pipeline.transformer.register_forward_hook(lambda *_: evaluations.append(1))
    velocity = tiny.sd3_velocity(pipeline.transformer, prompts)

    def sample() -> Tensor:
        asked = call(prompts, samples) | {"output_type": "latent"}
        return pipeline(**asked, num_inference_steps=4).images

    found = sample()
    assert len(evaluations) == 4
    x = noise(samples, 4, 8, 8)
    torch.testing.assert_close(found, ab2(velocity, x, UNEQUAL), rtol=0, atol=1e-4)
    assert (found - euler(velocity, x, UNEQUAL)).abs().max() > 1e-2
    # The next call starts anew.
    torch.testing.assert_close(sample(), found, rtol=0, atol=0)


@pytest.mark.parametrize(("make", "prompts"), tiny.PIPELINES)
def test_a_fixed_scheduler_makes_ab2_of_the_velocities_of_every_pipeline(
    make: Any, prompts: Any
) -> None:
    """Mochi's levels rise: what it hands over is dx/dt there, and -dx/dt elsewhere."""
    pipeline = make()
    scheduler = fixed_scheduler(pipeline.scheduler, UNEQUAL, solver="ab2")
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    take = scheduler.step

    def step(output: Tensor, t: Any, sample: Tensor, **kwargs: Any) -> Any:
        taken = take(output, t, sample, **kwargs)
        seen.append((output.clone(), sample.clone(), taken[0].clone()))
        return taken

    scheduler.step = step
    pipeline.scheduler = scheduler
    asked = call(prompts(range(2)), range(2)) | {"output_type": "latent"}
    pipeline(**asked, num_inference_steps=4)
    assert len(seen) == 4
    said = iter([output for output, _, _ in seen])
    sign = 1.0 if scheduler.config.invert_sigmas else -1.0
    wanted = ab2(lambda x, t: sign * next(said), seen[0][1], UNEQUAL)
    torch.testing.assert_close(seen[-1][2], wanted, rtol=1e-5, atol=1e-5)


def test_ab2_steps_in_float32_and_starts_where_it_is_told() -> None:
    scheduler = fixed_scheduler(FlowMatchEulerDiscreteScheduler(), UNEQUAL, solver="ab2")
    scheduler.set_timesteps(4)
    drawn = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    before, velocity, x = drawn
    scheduler.step(before, scheduler.timesteps[1], x)
    found = scheduler.step(velocity, scheduler.timesteps[2], x).prev_sample
    assert found.dtype == torch.bfloat16
    # Steps of 3/8 after 1/8: w = 3/2. The first step was one of Euler, wherever it was.
    wanted = x.float() - 0.375 * (2.5 * velocity.float() - 1.5 * before.float())
    torch.testing.assert_close(found, wanted.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_latents_of_many_steps_do_not_add_up_their_roundings(solver: str) -> None:
    """In bfloat16, 200 steps: states carried in float32 end nearer to those of float32."""
    times, samples = uniform(200), range(2)
    ends = {}
    for name, dtype in (("exact", torch.float32), ("carried", torch.bfloat16)):
        pipeline = tiny.sd3().to(dtype=dtype)
        asked = tiny.sd3_prompts(samples, 1.0) | {"latents": noise(samples, 4, 8, 8)}
        asked = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in asked.items()}
        ends[name] = sample_latents(pipeline, times, [asked], solver=solver)
    pipeline.scheduler = fixed_scheduler(pipeline.scheduler, times, solver)
    plain = pipeline(**asked, num_inference_steps=200, output_type="latent").images.float()
    ends["plain"] = plain
    error = {name: (x - ends["exact"]).square().mean() for name, x in ends.items()}
    assert error["carried"] < error["plain"] / 4, error


def test_a_scheduler_of_other_solvers_is_refused() -> None:
    own = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InputError, match="solver: 'heun'; euler or ab2 or multistep needed"):
        fixed_scheduler(own, UNEQUAL, solver="heun")
    scheduler = fixed_scheduler(own, UNEQUAL, solver="ab2")
    scheduler.set_timesteps(4)
    x = torch.ones(1, 2, 3)
    with pytest.raises(ValueError, match="each token a noise level of its own"):
        scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=torch.ones(1, 2))


@pytest.mark.parametrize(("make", "prompts"), tiny.PIPELINES)
def test_a_fixed_scheduler_repeats_what_a_pipeline_does_by_itself(make: Any, prompts: Any) -> None:
    """The noise levels that diffusers' own Euler scheduler chose, given back as times."""
    pipeline, samples = make(), range(2)
    if not isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler):
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    own = pipeline.scheduler

    def sample() -> Tensor:
        asked = call(prompts(samples), samples) | {"output_type": "latent"}
        return pipeline(**asked, num_inference_steps=6, return_dict=False)[0]

    wanted = sample()
    levels = own.sigmas.double().numpy()
    times = levels if own.config.invert_sigmas else 1.0 - levels
    pipeline.scheduler = fixed_scheduler(own, times)
    torch.testing.assert_close(sample(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(), UniPCMultistepScheduler(), FlowMatchLCMScheduler()]
)
def test_other_than_flow_matching_is_refused(scheduler: Any) -> None:
    pipeline = tiny.sd3()
    pipeline.scheduler = scheduler
    with pytest.raises(InputError, match=f"{type(scheduler).__name__}.*flow-matching one needed"):
        estimate_pipeline_cost(pipeline, GRID, [call(tiny.sd3_prompts(range(1)), range(1))])
    assert pipeline.scheduler is scheduler


def test_steps_that_add_noise_are_refused() -> None:
    """Networks are distilled for them, and a walk without noise is not what they make."""
    pipeline = tiny.sd3()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    with pytest.raises(InputError, match="has stochastic_sampling: its network is distilled for"):
        estimate_pipeline_cost(pipeline, GRID, [call(tiny.sd3_prompts(range(1)), range(1))])


def test_noise_levels_above_one_are_refused() -> None:
    pipeline = tiny.sd3()
    pipeline.scheduler.register_to_config(sigma_max=80.0)  # as Cosmos Predict2 does
    with pytest.raises(InputError, match="noise levels up to 80"):
        estimate_pipeline_cost(pipeline, GRID, [call(tiny.sd3_prompts(range(1)), range(1))])


def _restart(pipeline: Any, step: int, t: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"latents": torch.zeros_like(state["latents"])} if step == 4 else {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": [1.0]}, "calls: sigmas in call 0 is set by the search"),
        ({"generator": None}, "neither generator nor latents"),
        ({"callback_on_step_end": _restart}, "changes the states between steps 4 and 5"),
        ({"pooled_prompt_embeds": torch.full((1, 64), torch.nan)}, "not finite at t = 0"),
    ],
)
def test_bad_calls_are_refused_and_the_pipeline_left_as_it_was(
    change: dict[str, Any], message: str
) -> None:
    pipeline = tiny.sd3()
    own, config = pipeline.scheduler, dict(pipeline.config)
    bad = call(tiny.sd3_prompts(range(1)), range(1)) | change
    with pytest.raises(InputError, match=message):
        estimate_pipeline_cost(pipeline, GRID, [bad])
    assert pipeline.scheduler is own
    assert dict(pipeline.config) == config
    assert not pipeline.transformer._forward_hooks


def test_errors_of_the_pipeline_come_through_and_its_scheduler_comes_back() -> None:
    pipeline = tiny.sd3()
    own = pipeline.scheduler
    bad = call(tiny.sd3_prompts(range(1)), range(1)) | {"height": 15}
    with pytest.raises(ValueError, match="divisible"):
        estimate_pipeline_cost(pipeline, GRID, [bad])
    assert pipeline.scheduler is own
    with pytest.raises(InputError, match="calls: none"):
        estimate_pipeline_cost(pipeline, GRID, [])


def test_a_pipeline_that_starts_from_an_image_is_refused() -> None:
    pipeline = StableDiffusion3Img2ImgPipeline(**tiny.sd3().components)
    pipeline.set_progress_bar_config(disable=True)
    prompts = call(tiny.sd3_prompts(range(1)), range(1))
    image = torch.zeros(1, 3, tiny.SIZE, tiny.SIZE)
    with pytest.raises(InputError, match="took 8 of the 16 steps"):
        estimate_pipeline_cost(pipeline, GRID, [prompts | {"image": image, "strength": 0.5}])


class Prompted(StableDiffusion3Pipeline):
    """A small SD3 whose text encoders are replaced by numbers drawn for each prompt."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        pipeline = cls(**tiny.sd3().components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return self  # no GPU here

    def encode_prompt(self, prompt: Any, **kwargs: Any) -> Any:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        drawn = [torch.Generator().manual_seed(sum(p.encode())) for p in prompts]
        embeds = torch.stack([torch.randn(tiny.WORDS, tiny.WIDTH, generator=g) for g in drawn])
        pooled = torch.stack([torch.randn(64, generator=g) for g in drawn])
        return embeds, torch.zeros_like(embeds), pooled, torch.zeros_like(pooled)


def test_the_walk_through_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every block of docs/teachers/diffusers.md, in order, on the small pipeline."""
    monkeypatch.setattr("diffusers.StableDiffusion3Pipeline", Prompted)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "teachers" / "diffusers.md").read_text()
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, "docs/teachers/diffusers.md", "exec"), names)
    assert names["found"].nfe_per_step == 2.0
    assert names["ends"].shape[0] == 4
    assert (tmp_path / "schedule.json").exists()
    # More than luck: on this network, at 6 steps, Bellman's end nearer to the fine rollout's end.
    assert names["errors"]["bellman"] < names["errors"]["uniform"]
