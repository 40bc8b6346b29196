"""Exported schedules, run by the programs that they are for."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad

pytest.importorskip("diffusers", reason="diffusers is not installed (pip install .[diffusers])")

from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import sample_generators
from boss_core.interop.diffusers_schedulers import fixed_scheduler
from boss_core.interop.export import (
    DIFFUSERS_SETTINGS,
    check_scheduler,
    comfyui_sampler,
    diffusers_sigmas,
    to_comfyui,
    to_diffusers,
    to_diffusers_fixed,
    to_flow_matching,
    to_json,
)
from boss_core.ode.schedule import Schedule
from boss_core.ode.solvers import ab2, euler, heun, solver_of
from boss_core.ode.timesteps import uniform, validate_timesteps
from flows.search.export import shift_by_tokens
from tests.helpers import tiny_pipelines as tiny
from tests.helpers.checkout import ROOT
from tests.helpers.linear import Linear
from tests.helpers.solvers import some_weights


def schedule(*indices: int) -> Schedule:
    """Steps on a grid of 100."""
    times = tuple(i / 100 for i in indices)
    return Schedule(timesteps=times, indices=indices, objective="l2_squared")


STEPS = schedule(0, 7, 17, 40, 73, 94, 100)
FOR = {name: STEPS.model_copy(update={"solver": name}) for name in ("euler", "ab2", "heun")}
FOR["multistep"] = STEPS.model_copy(update={"solver": "multistep", "weights": some_weights(6)})
MU = 0.83


def settings(**changed: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**{**DIFFUSERS_SETTINGS, **changed})


def used(scheduler: Any, sigmas: Any, mu: float | None = None) -> list[float]:
    scheduler.set_timesteps(sigmas=list(sigmas), mu=mu)
    return scheduler.sigmas.tolist()


def test_our_settings_are_diffusers_defaults() -> None:
    config = FlowMatchEulerDiscreteScheduler().config
    assert {name: config[name] for name in DIFFUSERS_SETTINGS} == DIFFUSERS_SETTINGS
    # One that appears later would alter sigmas unseen.
    known = {"num_train_timesteps", "time_shift_type", "_use_default_values"}
    known |= {"base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"}
    assert set(config) - known == set(DIFFUSERS_SETTINGS)


def test_with_our_settings_the_scheduler_uses_our_sigmas() -> None:
    scheduler = settings()
    report = check_scheduler(scheduler, STEPS)
    assert report.unchanged
    assert report.reasons == ()
    assert report.sigmas_to_pass == tuple(diffusers_sigmas(STEPS))
    found = used(scheduler, diffusers_sigmas(STEPS))
    np.testing.assert_allclose(found, STEPS.sigmas, atol=1e-6)
    assert report.sigmas_used == tuple(found)
    np.testing.assert_allclose(scheduler.timesteps, 1000 * np.array(STEPS.sigmas[:-1]), atol=1e-3)


def test_a_final_zero_would_cost_an_evaluation() -> None:
    assert len(diffusers_sigmas(STEPS)) == STEPS.nfe
    scheduler = settings()
    scheduler.set_timesteps(sigmas=list(STEPS.sigmas))
    assert len(scheduler.timesteps) == STEPS.nfe + 1


@pytest.mark.parametrize(
    ("changed", "mu", "reason"),
    [
        ({"shift": 3.0}, None, "shift=3.0: sigma 0.27 becomes 0.525974"),
        ({"use_dynamic_shifting": True}, MU, "use_dynamic_shifting=True with mu=0.83"),
        (
            {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift": 3.0},
            MU,
            "use_dynamic_shifting=True with mu=0.83",
        ),
        # A schedule that ends where the scheduler stretches it to anyway.
        ({"shift": 3.0, "shift_terminal": 0.06}, None, "shift=3.0"),
    ],
)
def test_a_shift_is_undone_by_the_values_to_pass(
    changed: dict[str, Any], mu: float | None, reason: str
) -> None:
    scheduler = settings(**changed)
    before = scheduler.sigmas.clone()
    report = check_scheduler(scheduler, STEPS, mu=mu)
    assert torch.equal(scheduler.sigmas, before)
    assert not report.unchanged
    assert len(report.reasons) == 1
    assert report.reasons[0].startswith(reason)
    np.testing.assert_allclose(report.sigmas_used, used(scheduler, STEPS.sigmas[:-1], mu))
    assert report.sigmas_to_pass is not None
    found = used(scheduler, report.sigmas_to_pass, mu)
    np.testing.assert_allclose(found, STEPS.sigmas, rtol=0, atol=1e-6)


def test_a_shift_that_was_set_later_counts() -> None:
    scheduler = settings()
    scheduler.set_shift(3.0)
    report = check_scheduler(scheduler, STEPS)
    assert [reason.split(":")[0] for reason in report.reasons] == ["shift=3.0"]
    assert report.sigmas_to_pass is not None
    np.testing.assert_allclose(used(scheduler, report.sigmas_to_pass), STEPS.sigmas, atol=1e-6)


@pytest.mark.parametrize(
    "changed",
    [
        {"shift_terminal": 0.1},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"invert_sigmas": True},
        {"stochastic_sampling": True},
    ],
)
def test_what_cannot_be_undone_is_named(changed: dict[str, Any]) -> None:
    report = check_scheduler(settings(**changed), STEPS)
    ((name, value),) = changed.items()
    assert not report.unchanged
    assert report.sigmas_to_pass is None
    assert len(report.reasons) == 1
    assert report.reasons[0].startswith(f"{name}={value}: ")


@pytest.mark.parametrize("levels", ["karras", "exponential", "beta"])
def test_two_levels_of_an_interpolation_are_the_two_given(levels: str) -> None:
    changed = {f"use_{levels}_sigmas": True}
    assert check_scheduler(settings(**changed), schedule(0, 60, 100)).unchanged
    assert not check_scheduler(settings(**changed), schedule(0, 60, 70, 100)).unchanged


def test_settings_are_judged_by_what_they_do_to_this_schedule() -> None:
    """One step starts at sigma 1, which no shift moves."""
    assert check_scheduler(settings(shift=3.0), schedule(0, 100)).unchanged
    report = check_scheduler(settings(shift_terminal=0.1), schedule(0, 100))
    assert (report.unchanged, report.sigmas_to_pass) == (False, None)


def test_a_configuration_left_over_from_unipc_is_named() -> None:
    """Flux drops `sigmas` when it sees `use_flow_sigmas` in the configuration."""
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(unipc.config)
    (reason,) = check_scheduler(scheduler, STEPS).reasons
    assert reason.startswith("use_flow_sigmas=True")
    pipeline = tiny.flux()
    pipeline.scheduler = scheduler
    pipeline(
        **tiny.flux_prompts(range(1)),
        sigmas=diffusers_sigmas(STEPS),
        num_inference_steps=STEPS.nfe,
        output_type="latent",
    )
    assert not np.allclose(pipeline.scheduler.sigmas, STEPS.sigmas, atol=1e-2)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchHeunDiscreteScheduler(),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        FlowMatchLCMScheduler(),
    ],
)
def test_schedulers_that_take_other_steps_are_refused(scheduler: Any) -> None:
    with pytest.raises(InputError, match=f"{type(scheduler).__name__} .* needed"):
        check_scheduler(scheduler, STEPS)


def test_what_is_said_of_other_schedulers_holds() -> None:
    for other in (FlowMatchHeunDiscreteScheduler(), DPMSolverMultistepScheduler()):
        with pytest.raises(TypeError, match="sigmas"):
            other.set_timesteps(sigmas=diffusers_sigmas(STEPS))
    heun = FlowMatchHeunDiscreteScheduler()
    heun.set_timesteps(6)
    assert len(heun.timesteps) == 11  # the last of six steps is an Euler step
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    unipc.set_timesteps(sigmas=np.array([1.0, 0.8305, 0.4]))
    assert unipc.timesteps.tolist() == [999, 830, 400]
    euler_scheduler = settings()
    euler_scheduler.set_timesteps(sigmas=[1.0, 0.8305, 0.4])
    x = {"unipc": torch.ones(1, 4), "euler": torch.ones(1, 4)}
    for name, scheduler in (("unipc", unipc), ("euler", euler_scheduler)):
        for t in scheduler.timesteps:
            x[name] = scheduler.step(-1.3 * x[name] ** 2, t, x[name]).prev_sample
    assert (x["unipc"] - x["euler"]).abs().min() > 0.01


def test_a_scheduler_with_other_steps_baked_in_is_named() -> None:
    scheduler = fixed_scheduler(settings(), uniform(4))
    report = check_scheduler(scheduler, STEPS)
    assert report.reasons == ("FixedFlowScheduler: has steps of its own",)
    assert report.sigmas_used == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert report.sigmas_to_pass is None
    for changed in ({}, {"use_dynamic_shifting": True}, {"invert_sigmas": True}, {"shift": 3.0}):
        report = check_scheduler(fixed_scheduler(settings(**changed), STEPS.timesteps), STEPS)
        assert (report.unchanged, report.reasons) == (True, ())
        assert report.sigmas_used == pytest.approx(STEPS.sigmas)


def test_a_fixed_scheduler_may_begin_late() -> None:
    """Two steps of 0.3 by hand, of dx/dsigma = x, from level 0.6: x (1 - 0.3)^2."""
    scheduler = fixed_scheduler(settings(), (0.4, 0.7, 1.0))
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == pytest.approx([600.0, 300.0])
    x = torch.ones(1, 2)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x).prev_sample
    torch.testing.assert_close(x, torch.full((1, 2), 0.49))


def test_a_scheduler_of_another_solver_is_refused() -> None:
    two_step = fixed_scheduler(settings(shift=3.0), STEPS.timesteps, solver="ab2")
    assert check_scheduler(two_step, FOR["ab2"]).unchanged
    with pytest.raises(InputError, match="takes steps of ab2, and the schedule is for euler"):
        check_scheduler(two_step, STEPS)
    for solver in ("ab2", "heun"):
        says = f"EulerDiscreteScheduler takes steps of euler, and the schedule is for {solver}"
        with pytest.raises(InputError, match=says):
            check_scheduler(settings(), FOR[solver])


def test_no_multistep_scheduler_of_diffusers_takes_steps_of_ab2() -> None:
    """On the levels that they choose for a flow, each with two steps of memory and without the
    extras (corrector, lower order at the end): they interpolate in another variable."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 2}

    def slope(x: torch.Tensor) -> torch.Tensor:
        return 1.3 * x**2

    for scheduler in (
        DPMSolverMultistepScheduler(**flow, lower_order_final=False),
        DEISMultistepScheduler(**flow, lower_order_final=False),
        UniPCMultistepScheduler(**flow, lower_order_final=False, disable_corrector=[*range(8)]),
    ):
        scheduler.set_timesteps(8)
        levels = scheduler.sigmas.double().tolist()
        x = ours = torch.ones(1, 4, dtype=torch.float64)
        before = None
        errors = []
        for k in range(7):  # the last, to 0, is a case of its own
            x = scheduler.step(slope(x), scheduler.timesteps[k], x).prev_sample
            d, h = slope(ours), levels[k + 1] - levels[k]
            w = 0.0 if before is None else h / (levels[k] - levels[k - 1]) / 2
            ours = ours + h * ((1 + w) * d - w * (0 if before is None else before))
            before = d
            errors.append(float((x - ours).abs().max()))
        assert errors[0] < 1e-4  # Euler, within what float32 keeps of 1 - sigma
        assert max(errors) > 1e-3
    # The one of that name has no flows, and scales what the network sees.
    with pytest.raises(TypeError, match="sigmas"):
        LMSDiscreteScheduler().set_timesteps(sigmas=[1.0, 0.5])
    lms = LMSDiscreteScheduler(prediction_type="epsilon")
    lms.set_timesteps(4)
    x = torch.ones(1, 4)
    assert (lms.scale_model_input(x, lms.timesteps[0]) / x).max() < 0.1


@pytest.mark.parametrize(
    ("write", "solver", "says"),
    [
        (to_diffusers, "ab2", "the target diffusers-fixed needed"),
        (to_diffusers, "heun", "FlowMatchHeunDiscreteScheduler takes no sigmas"),
        (to_diffusers_fixed, "heun", "FlowMatchHeunDiscreteScheduler takes no sigmas"),
        (to_comfyui, "heun", "heun takes its last step by Euler"),
        (to_flow_matching, "ab2", "no method of ODESolver"),
        (to_diffusers, "multistep", "the target diffusers-fixed needed"),
        (to_comfyui, "multistep", "the target comfyui-node brings one that does"),
        (to_flow_matching, "multistep", "no method of ODESolver"),
    ],
)
def test_what_no_target_can_do_is_refused(write: Any, solver: str, says: str) -> None:
    with pytest.raises(InputError, match=f"schedule: for solver {solver}.*{says}"):
        write(FOR[solver])


def test_dynamic_shifting_without_mu_is_refused() -> None:
    with pytest.raises(InputError, match="mu: not given"):
        check_scheduler(settings(use_dynamic_shifting=True), STEPS)


def run_snippet(text: str, **names: Any) -> dict[str, Any]:
    exec(compile(text, "snippet", "exec"), names)
    return names


def count_calls(network: torch.nn.Module) -> list[int]:
    counted: list[int] = []
    network.register_forward_hook(lambda *_: counted.append(1))
    return counted


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_sd3_with_the_exported_sigmas_takes_our_euler_steps(guidance_scale: float) -> None:
    pipeline, samples = tiny.sd3(), range(2)
    prompts = tiny.sd3_prompts(samples, guidance_scale)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    wanted = euler(tiny.sd3_velocity(pipeline.transformer, prompts), x, STEPS.timesteps)

    def sample(sigmas: Any) -> torch.Tensor:
        return pipeline(**prompts, latents=x, sigmas=list(sigmas), output_type="latent").images

    # As it comes, with shift 3: the values to pass undo it, the schedule's own do not.
    report = check_scheduler(pipeline.scheduler, STEPS)
    assert report.sigmas_to_pass is not None
    torch.testing.assert_close(sample(report.sigmas_to_pass), wanted, rtol=0, atol=1e-4)
    assert (sample(diffusers_sigmas(STEPS)) - wanted).abs().max() > 1e-2

    sigmas = run_snippet(to_diffusers(STEPS), pipeline=pipeline)["sigmas"]
    assert sigmas == diffusers_sigmas(STEPS)
    counted = count_calls(pipeline.transformer)
    torch.testing.assert_close(sample(sigmas), wanted, rtol=0, atol=1e-4)
    assert len(counted) == STEPS.nfe
    np.testing.assert_allclose(pipeline.scheduler.sigmas, STEPS.sigmas, atol=1e-6)


def test_flux_with_dynamic_shifting_takes_our_euler_steps() -> None:
    pipeline, samples = tiny.flux(), range(2)
    prompts = tiny.flux_prompts(samples)
    tokens = (64 // 16) ** 2
    x = torch.randn(2, tokens, 4, generator=torch.Generator().manual_seed(1))
    position = torch.zeros(4, 4, 3)
    position[..., 1], position[..., 2] = torch.meshgrid(
        torch.arange(4.0), torch.arange(4.0), indexing="ij"
    )

    def velocity(state: torch.Tensor, t: torch.Tensor, /) -> torch.Tensor:
        return -pipeline.transformer(
            hidden_states=state,
            timestep=1.0 - t,
            pooled_projections=prompts["pooled_prompt_embeds"],
            encoder_hidden_states=prompts["prompt_embeds"],
            txt_ids=torch.zeros(tiny.WORDS, 3),
            img_ids=position.view(tokens, 3),
        ).sample

    wanted = euler(velocity, x, STEPS.timesteps)
    report = check_scheduler(pipeline.scheduler, STEPS, mu=calculate_shift(tokens))
    assert not report.unchanged
    assert report.sigmas_to_pass is not None
    counted = count_calls(pipeline.transformer)
    call = prompts | {"latents": x, "output_type": "latent"}
    found = pipeline(**call, sigmas=list(report.sigmas_to_pass)).images
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert len(counted) == STEPS.nfe
    np.testing.assert_allclose(pipeline.scheduler.sigmas, STEPS.sigmas, atol=1e-6)

    sigmas = run_snippet(to_diffusers(STEPS), pipeline=pipeline)["sigmas"]
    torch.testing.assert_close(pipeline(**call, sigmas=sigmas).images, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("make", "prompts"), tiny.PIPELINES)
def test_the_fixed_snippet_serves_every_pipeline(make: Any, prompts: Any) -> None:
    """Without the library it does what the library's `fixed_scheduler` does."""
    pipeline = make()
    own = pipeline.scheduler

    def sample() -> torch.Tensor:
        call = prompts(range(1)) | {"generator": sample_generators(range(1), 0)}
        call |= {"num_inference_steps": STEPS.nfe, "output_type": "latent"}
        return pipeline(**call, return_dict=False)[0]

    run_snippet(to_diffusers_fixed(STEPS), pipeline=pipeline)
    found = sample()
    levels = STEPS.timesteps if own.config.get("invert_sigmas") else STEPS.sigmas
    np.testing.assert_allclose(pipeline.scheduler.sigmas, levels, atol=1e-6)
    pipeline.scheduler = fixed_scheduler(own, STEPS.timesteps)
    torch.testing.assert_close(found, sample(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("solver", ["ab2", "multistep"])
def test_the_fixed_snippet_takes_steps_of(solver: str) -> None:
    pipeline, samples = tiny.sd3(), range(2)
    prompts = tiny.sd3_prompts(samples)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    run_snippet(to_diffusers_fixed(FOR[solver]), pipeline=pipeline)
    counted = count_calls(pipeline.transformer)
    call = prompts | {"latents": x, "num_inference_steps": STEPS.steps, "output_type": "latent"}
    found = pipeline(**call).images
    assert len(counted) == FOR[solver].nfe == 6
    velocity = tiny.sd3_velocity(pipeline.transformer, prompts)
    wanted = solver_of(FOR[solver])(velocity, x, STEPS.timesteps)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("ours", "nfe"), [(euler, 6), (heun, 12)])
def test_flow_matching_takes_our_steps(ours: Any, nfe: int) -> None:
    solver_module = pytest.importorskip("flow_matching.solver")
    velocity, steps = Linear(), FOR[ours.__name__]
    text = to_flow_matching(steps)
    time_grid = run_snippet(text)["time_grid"]
    (method,) = re.findall(r'method="(\w+)"', text)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    calls = []

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(float(t))
        return velocity(x, t.expand(len(x)))

    found = solver_module.ODESolver(velocity_model=model).sample(
        x_init=x, step_size=None, method=method, time_grid=time_grid
    )
    torch.testing.assert_close(found, ours(velocity, x, STEPS.timesteps), rtol=0, atol=1e-6)
    assert len(calls) == steps.nfe == nfe


def manual_sigmas(text: str) -> list[float]:
    """How ComfyUI's ManualSigmas node reads its text."""
    return [float(number) for number in re.findall(r"[-+]?(?:\d*\.*\d+)", text)]


@pytest.mark.parametrize("last", [0.94, 1 - 3e-6, 1 - 2**-40])
def test_comfyui_reads_our_sigmas(last: float) -> None:
    steps = Schedule(timesteps=(0.0, 1 / 3, last, 1.0), indices=(0, 1, 2, 3), objective="x")
    assert manual_sigmas(to_comfyui(steps)) == list(steps.sigmas)
    assert manual_sigmas(str(3e-6)) == [3.0, -6.0]  # what an exponent would come to


def test_comfyui_text() -> None:
    assert to_comfyui(schedule(0, 50, 75, 100)) == "1.0, 0.5, 0.25, 0.0"


def multistep_weights(sigmas: Any, k: int) -> list[float]:
    """Of the last two slopes in step k: the integrals of the Lagrange polynomials through their
    levels."""

    def of_slope(tau: float, j: int) -> float:
        return (tau - sigmas[k - 1 + j]) / (sigmas[k - j] - sigmas[k - 1 + j])

    return [quad(of_slope, sigmas[k], sigmas[k + 1], args=(j,))[0] for j in (0, 1)]


def test_linear_multistep_of_order_2_is_ab2() -> None:
    sigmas, h = STEPS.sigmas, np.diff(STEPS.timesteps)
    w = np.append(0.0, h[1:] / (2 * h[:-1]))
    for k in range(1, STEPS.steps):
        h = sigmas[k + 1] - sigmas[k]
        wanted = [h * (1.0 + w[k]), -h * w[k]]
        np.testing.assert_allclose(multistep_weights(sigmas, k), wanted, rtol=1e-12)


def comfyui_lms(velocity: Any, x: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
    """ComfyUI's linear multistep sampler of order 2: from denoised states, and to a sigma of
    exactly 0 by taking the denoised one."""
    slopes: list[torch.Tensor] = []
    for k, sigma in enumerate(sigmas[:-1]):
        denoised = x + sigma * velocity(x, torch.full((len(x),), 1.0 - sigma))
        slopes.append((x - denoised) / sigma)
        if sigmas[k + 1] == 0:
            x = denoised
        elif k == 0:
            x = x + (sigmas[1] - sigmas[0]) * slopes[0]
        else:
            now, before = multistep_weights(sigmas, k)
            x = x + now * slopes[k] + before * slopes[k - 1]
    return x / (1.0 - sigmas[-1])


def test_comfyui_takes_our_ab2_steps() -> None:
    steps = FOR["ab2"]
    assert comfyui_sampler(steps) == "the sampler of node SamplerLMS with order 2"
    assert comfyui_sampler(STEPS) == "sampler euler"
    # The node makes a float32 tensor of them.
    sigmas = torch.tensor(manual_sigmas(to_comfyui(steps))).tolist()
    np.testing.assert_allclose(sigmas, STEPS.sigmas, rtol=1e-7, atol=1e-11)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    wanted = ab2(Linear(), x, STEPS.timesteps)
    torch.testing.assert_close(comfyui_lms(Linear(), x, sigmas), wanted, rtol=0, atol=1e-5)
    # With a 0 at the end the last step is one of Euler.
    other = comfyui_lms(Linear(), x, [*sigmas[:-1], 0.0])
    assert (other - wanted).abs().max() > 1e-3


def test_json_has_times_and_sigmas() -> None:
    content = json.loads(to_json(STEPS))
    assert content["nfe"] == 6
    assert content["sigmas"] == list(STEPS.sigmas)
    assert validate_timesteps(content["timesteps"]).tolist() == list(STEPS.timesteps)
    assert content["objective"] == "l2_squared"
    solvers = {name: json.loads(to_json(steps)) for name, steps in FOR.items()}
    assert {name: found["solver"] for name, found in solvers.items()} == {s: s for s in FOR}
    assert [found["nfe"] for found in solvers.values()] == [6, 6, 12, 6]


def test_the_command_names_the_sampler_of_comfyui(boss) -> None:
    Path("s.json").write_text(FOR["ab2"].to_json())
    code, out, err = boss("export", "s.json", "--to", "comfyui")
    assert (code, out) == (0, to_comfyui(FOR["ab2"]) + "\n")
    assert err == "ComfyUI: for the sampler of node SamplerLMS with order 2\n"
    Path("s.json").write_text(FOR["heun"].to_json())
    code, out, err = boss("export", "s.json", "--to", "comfyui")
    assert (code, out) == (2, "")
    assert "schedule: for solver heun" in err


def test_the_inverse_of_a_shift_is_the_formula() -> None:
    """sigma / (a - (a - 1) sigma) with a = exp(mu), by hand for sigma = 1/2 and a = 3."""
    report = check_scheduler(
        settings(use_dynamic_shifting=True), schedule(0, 50, 100), mu=math.log(3.0)
    )
    assert report.sigmas_to_pass == pytest.approx((1.0, 0.25), abs=1e-12)


def test_the_documented_blocks_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every block of docs/export.md, in order."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schedules").mkdir()
    (tmp_path / "schedules/8.json").write_text(STEPS.to_json())
    text = (ROOT / "docs" / "export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/export.md", "exec"), names)
    np.testing.assert_allclose(names["scheduler"].sigmas, STEPS.sigmas, atol=1e-6)


def scheduler_folder(scheduler: Any, folder: Path, pipeline: str | None = None) -> Path:
    """A scheduler's folder, in that of a pipeline where one is named."""
    scheduler.save_pretrained(folder / "scheduler")
    if pipeline is not None:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return folder if pipeline is not None else folder / "scheduler"


UNIPC = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
FLUX = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
SHIFTED = FlowMatchEulerDiscreteScheduler(shift=5.0)
DYNAMIC_UNIPC = UniPCMultistepScheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True
)
ONE_LENGTH = FlowMatchEulerDiscreteScheduler(
    use_dynamic_shifting=True, base_image_seq_len=256, max_image_seq_len=256
)


@pytest.mark.parametrize(
    ("scheduler", "pipeline", "says"),
    [
        (UNIPC, None, "UniPCMultistepScheduler takes sigmas but corrects each step"),
        (UNIPC, "WanPipeline", "WanPipeline: its call has no use for sigmas; --to diffusers-fixed"),
        (FLUX, None, "so 1.15 at 4096 image tokens"),
        (FLUX, "FluxPipeline", "so 1.15 at 4096 image tokens"),
        (DYNAMIC_UNIPC, None, "UniPCMultistepScheduler takes sigmas but corrects each step"),
        (ONE_LENGTH, None, "mu: not given for a scheduler with use_dynamic_shifting"),
        (DDIMScheduler(), None, "its network predicts epsilon, no velocity of a flow"),
        (SHIFTED, None, "a pipeline whose call takes no sigmas, as Wan's: --to diffusers-fixed"),
        (SHIFTED, "WanPipeline", "WanPipeline's call has no use for sigmas; --to diffusers-fixed"),
        (SHIFTED, "StableDiffusion3Pipeline", "to keep it, pass sigmas=["),
        (fixed_scheduler(SHIFTED, STEPS.timesteps), None, "takes these steps as they are"),
        (fixed_scheduler(SHIFTED, STEPS.timesteps, "ab2"), None, "takes steps of ab2"),
    ],
)
def test_every_scheduler_gets_a_snippet_and_an_answer(
    boss: Any, tmp_path: Path, scheduler: Any, pipeline: str | None, says: str
) -> None:
    (tmp_path / "6.json").write_text(STEPS.to_json())
    folder = scheduler_folder(scheduler, tmp_path / "folder", pipeline)
    code, text, notes = boss("export", "6.json", "--to", "diffusers", "--scheduler", folder)
    assert code == 0
    assert text == to_diffusers(STEPS)
    assert says in notes
    # Nobody is told to pass what a call rejects.
    assert ("pass sigmas=" in notes) == (scheduler is SHIFTED and pipeline != "WanPipeline")


def test_mu_and_folders_that_are_not_for_it_are_refused(boss: Any, tmp_path: Path) -> None:
    search = tmp_path / "schedules"
    search.mkdir()
    (search / "6.json").write_text(STEPS.to_json())
    folder = scheduler_folder(SHIFTED, tmp_path / "folder", None)
    export = ("export", search / "6.json", "--to", "diffusers", "--mu", "1.15")
    for arguments, says in (
        (export, "error: --mu: only goes with --scheduler"),
        ((*export, "--scheduler", folder), "error: --mu: 1.15, but "),
        (("export", search, "--to", "json"), f"as {search / '6.json'}, needed"),
        (("export", folder, "--to", "json"), f"error: {folder}: a folder without card.json; "),
    ):
        code, text, err = boss(*arguments)
        assert (code, text, err.count("\n")) == (2, "", 1)
        assert says in err


def test_mu_at_a_number_of_tokens_is_diffusers_own() -> None:
    config = FlowMatchEulerDiscreteScheduler(base_shift=0.5, max_shift=0.9).config
    said = re.search(
        r"pass ([\d.]+) \+ ([\d.e-]+) \(tokens - (\d+)\)", next(shift_by_tokens(config))
    )
    assert said
    base, slope, low = (float(number) for number in said.groups())
    for tokens in (256, 1024, 6032):
        wanted = calculate_shift(tokens, max_shift=0.9)
        assert base + slope * (tokens - low) == pytest.approx(wanted, abs=1e-4)
