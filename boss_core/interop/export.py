"""Schedules for the samplers of others, and what their settings would make of them.

The ``to_...`` functions return text: a snippet to paste, or JSON. diffusers is imported where it
is used only.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from boss_core.errors import InputError
from boss_core.ode.schedule import Schedule
from boss_core.ode.solver_table import LINEAR, SOLVERS

# With these, and these only, FlowMatchEulerDiscreteScheduler takes Euler steps at the sigmas that
# it is given. They are its defaults; the configurations of published models change several.
DIFFUSERS_SETTINGS: Mapping[str, Any] = {
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "stochastic_sampling": False,
}

# The last sigma for a sampler that treats 0 in a way of its own: nothing next to those before,
# and 1 - sigma, by which ComfyUI divides the end state, is 1 in float32.
_ALMOST_ZERO = 1e-12

# diffusers computes sigmas in float32.
_TOLERANCE = 1e-6

_NOT_EULER = {
    "FlowMatchHeunDiscreteScheduler": "takes no sigmas and evaluates the network twice a step",
    "DPMSolverMultistepScheduler": "takes no sigmas, only a number of steps",
    "UniPCMultistepScheduler": "takes sigmas but corrects each step with the velocities of those"
    " before, and gives the network times rounded to integers",
}


@dataclass(frozen=True)
class SchedulerReport:
    """What a diffusers scheduler makes of a schedule of K steps.

    unchanged: whether it steps at the schedule's own sigmas when it is given them.
    sigmas_used: the K + 1 sigmas that it uses then, the last one its own.
    reasons: the settings that stand between the schedule and its use, each with its effect.
    sigmas_to_pass: K values for ``sigmas=`` that come out as the schedule's, within float32:
        the schedule's own if unchanged, else ones that the settings move there. None where there
        are none.
    """

    unchanged: bool
    sigmas_used: tuple[float, ...]
    reasons: tuple[str, ...]
    sigmas_to_pass: tuple[float, ...] | None


def diffusers_sigmas(schedule: Schedule) -> list[float]:
    """The K sigmas to pass, from 1 down. Without the final 0, which the scheduler appends: a 0
    that is passed counts as one more step, an evaluation for nothing."""
    return list(schedule.sigmas[:-1])


def to_diffusers(schedule: Schedule) -> str:
    """Python for diffusers pipelines whose call takes ``sigmas`` (SD3, Flux, Sana, Qwen-Image).
    InputError for a schedule that is not for Euler."""
    if not SOLVERS[schedule.solver].diffusers and schedule.solver in LINEAR:
        raise InputError(
            f"schedule: for solver {schedule.solver}, whose steps no class of diffusers takes; the"
            " target diffusers-fixed needed, or"
            " boss_core.interop.diffusers_schedulers.fixed_scheduler"
        )
    _check_linear(schedule)
    return _diffusers_scheduler(schedule) + (
        "pipeline.scheduler = scheduler\n"
        f"# {schedule.steps} steps: call the pipeline with sigmas=sigmas (never timesteps=).\n"
        "# One whose call takes no sigmas, as Wan's, or that tells its network times of its own,\n"
        "# as CogView4's and GLM-Image's, needs --to diffusers-fixed.\n"
        f"{_from_image(schedule)}"
    )


def to_diffusers_fixed(schedule: Schedule) -> str:
    """Python for any pipeline, also one whose call takes no ``sigmas`` (Wan, LTX, Mochi): the
    class `boss_core.interop.fixed_flow_scheduler.FixedFlowScheduler`, which needs diffusers alone,
    and one with the values in its configuration. InputError for Heun."""
    _check_linear(schedule)
    source = resources.files("boss_core.interop").joinpath("fixed_flow_scheduler.py").read_text()
    weights = "" if schedule.weights is None else ", weights=weights"
    return source + (
        "\n\n"
        f"fixed_sigmas = {_rows(schedule.sigmas)}\n"
        f"{'' if schedule.weights is None else _weights(schedule)}"
        "pipeline.scheduler = FixedFlowScheduler.like(\n"
        f"    pipeline.scheduler, fixed_sigmas, solver={schedule.solver!r}{weights}\n"
        ")\n"
        f"# Call the pipeline with num_inference_steps={schedule.steps}.\n"
        f"{_from_image(schedule)}"
        "# To load it again once saved, have the class in a module fixed_flow_scheduler.py.\n"
    )


def to_comfyui(schedule: Schedule) -> str:
    """The text for ComfyUI's ManualSigmas node: K + 1 values from 1 to 0, the 0 included, for the
    sampler that `comfyui_sampler` names. For ``ab2`` the last is 1e-12 instead: a step to 0 itself
    is one of Euler to ComfyUI's linear multistep sampler. InputError for Heun.

    Without exponents, which the node would read as two numbers.
    """
    comfyui_sampler(schedule)
    sigmas = list(schedule.sigmas)
    if SOLVERS[schedule.solver].looks_back:
        sigmas[-1] = _ALMOST_ZERO
    return ", ".join(np.format_float_positional(sigma, trim="0") for sigma in sigmas)


def comfyui_sampler(schedule: Schedule) -> str:
    """The sampler of ComfyUI that takes the steps of the schedule, in a few words. InputError for
    Heun, whose last step ComfyUI replaces by one of Euler, and for ``multistep``, whose weights
    none of its samplers takes (`to_comfyui_node` does)."""
    sampler = SOLVERS[schedule.solver].comfyui
    if sampler is None:
        able = " or ".join(name for name, solver in SOLVERS.items() if solver.comfyui)
        other = "the target comfyui-node brings one that does"
        if not SOLVERS[schedule.solver].linear:
            other = "its heun takes its last step by Euler"
        raise InputError(
            f"schedule: for solver {schedule.solver}; one for {able} needed, as no sampler of"
            f" ComfyUI takes such steps; {other}"
        )
    return sampler


def to_comfyui_node(schedule: Schedule) -> str:
    """A custom node for ComfyUI, one file to put into its folder ``custom_nodes``: its outputs, a
    sampler and the sigmas, go to the node SamplerCustom or SamplerCustomAdvanced. It takes the
    steps of any linear multistep method, with their weights. InputError for Heun."""
    if not SOLVERS[schedule.solver].linear:
        raise InputError(
            f"schedule: for solver {schedule.solver}; one for {' or '.join(LINEAR)} needed, whose"
            " steps evaluate the network once"
        )
    source = resources.files("boss_core.interop").joinpath("comfyui_node.py").read_text()
    return source + (
        f"\n\nSIGMAS = {_rows(schedule.sigmas)}\n{_weights(schedule).replace('weights', 'WEIGHTS')}"
    )


def to_flow_matching(schedule: Schedule) -> str:
    """Python for `flow_matching.solver.ODESolver`, whose time runs as here: the K + 1 times as
    its ``time_grid``. ``step_size=None`` makes it step from each to the next. InputError for
    ``ab2``."""
    method = SOLVERS[schedule.solver].ode_solver
    if method is None:
        able = " or ".join(name for name, solver in SOLVERS.items() if solver.ode_solver)
        raise InputError(
            f"schedule: for solver {schedule.solver}; one for {able} needed, as no method of"
            " ODESolver takes such steps"
        )
    return (
        "import torch\n"
        "\n"
        f"time_grid = torch.tensor({_rows(schedule.timesteps)})\n"
        f"# {schedule.steps} steps, {schedule.nfe} evaluations:\n"
        f'# solver.sample(x_init, step_size=None, method="{method}",\n'
        "#               time_grid=time_grid.to(x_init.device))\n"
    )


def to_json(schedule: Schedule) -> str:
    """The schedule with its solver, its sigmas and its number of evaluations, for any other
    program."""
    content = json.loads(schedule.to_json())
    return json.dumps({"nfe": schedule.nfe, "sigmas": schedule.sigmas, **content}, indent=1) + "\n"


def check_scheduler(
    scheduler: Any, schedule: Schedule, *, mu: float | None = None
) -> SchedulerReport:
    """Whether a diffusers scheduler uses a schedule's sigmas as they are, and if not, why and
    what to pass instead. Found by running a copy of it.

    mu: what the pipeline passes to ``set_timesteps`` when ``use_dynamic_shifting`` is on
        (diffusers' ``calculate_shift`` of the number of image tokens); needed then only, and not
        for one with fixed steps, which has no use for it.

    Raises InputError for a scheduler that does not take the steps of the schedule's solver, and
    when mu is missing. A `boss_core.interop.diffusers_schedulers.fixed_scheduler` takes those of
    ``ab2``.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        name = type(scheduler).__name__
        why = _NOT_EULER.get(name, "is not known to take Euler steps at given sigmas")
        raise InputError(
            f"scheduler: {name} {why}; a FlowMatchEulerDiscreteScheduler needed, with the settings"
            " of boss_core.interop.export.DIFFUSERS_SETTINGS"
        )
    solver = scheduler.config.get("solver", "euler")
    if solver != schedule.solver:
        raise InputError(
            f"scheduler: {type(scheduler).__name__} takes steps of {solver}, and the schedule is"
            f" for {schedule.solver}; one for the same solver needed (diffusers has only euler,"
            " boss_core.interop.diffusers_schedulers.fixed_scheduler others too)"
        )
    if "fixed_sigmas" in scheduler._get_init_keys(type(scheduler)):
        return _fixed_report(scheduler, schedule)
    config: Any = scheduler.config
    dynamic = bool(config.use_dynamic_shifting)
    if dynamic and mu is None:
        raise InputError(
            "mu: not given for a scheduler with use_dynamic_shifting; the pipeline's value needed"
            " (its calculate_shift of the number of image tokens), or use_dynamic_shifting=False"
        )
    sigmas = diffusers_sigmas(schedule)
    used = _sigmas_used(scheduler, sigmas, mu)
    deterministic = not config.stochastic_sampling
    inverse = _unshifted(sigmas, scheduler, mu)
    reachable = deterministic and _same(_sigmas_used(scheduler, inverse, mu), schedule.sigmas)
    unchanged = deterministic and _same(used, schedule.sigmas)
    if unchanged:
        inverse = sigmas
    reasons = _reasons(scheduler, schedule, mu)
    if not unchanged and not reasons:
        reasons = (f"{type(scheduler).__name__}: uses sigmas of its own",)
    return SchedulerReport(
        unchanged=unchanged,
        sigmas_used=tuple(used),
        reasons=reasons,
        sigmas_to_pass=tuple(inverse) if unchanged or reachable else None,
    )


def _fixed_report(scheduler: Any, schedule: Schedule) -> SchedulerReport:
    """Of a `FixedFlowScheduler`, which takes its own steps whatever it is given."""
    used, name = tuple(scheduler.config.fixed_sigmas), type(scheduler).__name__
    if not _same(used, schedule.sigmas):
        return SchedulerReport(False, used, (f"{name}: has steps of its own",), None)
    own = scheduler.config.get("weights") or ()
    if [*map(tuple, own)] != [*(schedule.weights or ())]:
        return SchedulerReport(False, used, (f"{name}: has weights of its own",), None)
    return SchedulerReport(True, used, (), tuple(diffusers_sigmas(schedule)))


def _reasons(scheduler: Any, schedule: Schedule, mu: float | None) -> tuple[str, ...]:
    """Each setting that matters to this schedule by itself, with what it does to it."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    found = []
    for name, neutral in DIFFUSERS_SETTINGS.items():
        # set_shift() changes the shift, but not in the configuration.
        value = scheduler.shift if name == "shift" else scheduler.config[name]
        unused = name == "shift" and scheduler.config.use_dynamic_shifting
        if value == neutral or unused:
            continue
        if name == "stochastic_sampling":
            found.append(f"{name}={value}: each step draws new noise, which is not an Euler step")
            continue
        alone = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=scheduler.config.num_train_timesteps,
            time_shift_type=scheduler.config.time_shift_type,
            **{**DIFFUSERS_SETTINGS, name: value},
        )
        used = _sigmas_used(alone, diffusers_sigmas(schedule), mu)
        if not _same(used, schedule.sigmas):
            moved = np.abs(np.subtract(used, schedule.sigmas))
            worst = int(np.argmax(np.where(np.isfinite(moved), moved, np.inf)))
            with_mu = f" with mu={mu:g}" if name == "use_dynamic_shifting" else ""
            found.append(
                f"{name}={value}{with_mu}: sigma {schedule.sigmas[worst]:.6g} becomes"
                f" {used[worst]:.6g}"
            )
    if scheduler.config.get("use_flow_sigmas"):
        found.append(
            "use_flow_sigmas=True, left over from another scheduler's configuration: the pipelines"
            " of Flux and its kin do not pass sigmas on when they see it"
        )
    return tuple(found)


def _from_image(schedule: Schedule) -> str:
    """A line more for steps that begin late; none for those from noise."""
    level = schedule.sigmas[0]
    if level == 1.0:
        return ""
    return (
        f"# They begin at noise level {level!r}, from an image: an image-to-image pipeline, with"
        " strength=1.0.\n"
    )


def _check_linear(schedule: Schedule) -> None:
    if schedule.solver not in LINEAR:
        raise InputError(
            f"schedule: for solver {schedule.solver}; one for {' or '.join(LINEAR)} needed, as"
            " no scheduler of diffusers takes its steps at given sigmas"
            " (FlowMatchHeunDiscreteScheduler takes no sigmas)"
        )


def _sigmas_used(scheduler: Any, sigmas: Sequence[float], mu: float | None) -> list[float]:
    ours = copy.deepcopy(scheduler)
    mu = mu if scheduler.config.use_dynamic_shifting else None
    with np.errstate(all="ignore"):  # shift_terminal divides by zero for a single step
        ours.set_timesteps(sigmas=list(sigmas), mu=mu)
    return [float(sigma) for sigma in ours.sigmas]


def _unshifted(sigmas: Sequence[float], scheduler: Any, mu: float | None) -> list[float]:
    """The values that the scheduler's shift moves to ``sigmas``:
    sigma' = a sigma / (1 + (a - 1) sigma) solved for sigma."""
    a = scheduler.shift
    if scheduler.config.use_dynamic_shifting:
        assert mu is not None
        a = math.exp(mu) if scheduler.config.time_shift_type == "exponential" else mu
    return [sigma / (a - (a - 1.0) * sigma) for sigma in sigmas]


def _same(used: Sequence[float], wanted: Sequence[float]) -> bool:
    return len(used) == len(wanted) and bool(np.allclose(used, wanted, rtol=0.0, atol=_TOLERANCE))


def _diffusers_scheduler(schedule: Schedule) -> str:
    lines = "".join(f"    {name}={value!r},\n" for name, value in DIFFUSERS_SETTINGS.items())
    return (
        "from diffusers import FlowMatchEulerDiscreteScheduler\n"
        "\n"
        f"sigmas = {_rows(diffusers_sigmas(schedule))}\n"
        "scheduler = FlowMatchEulerDiscreteScheduler(\n"
        "    num_train_timesteps=pipeline.scheduler.config.num_train_timesteps,\n"
        f"{lines})\n"
    )


def _weights(schedule: Schedule) -> str:
    rows = "".join(f"    {list(of_step)!r},\n" for of_step in schedule.step_weights)
    return f"weights = [\n{rows}]\n"


def _rows(values: Sequence[float]) -> str:
    """A list, one value a line: as long as it may get, it stays readable."""
    return "[\n" + "".join(f"    {value!r},\n" for value in values) + "]"
