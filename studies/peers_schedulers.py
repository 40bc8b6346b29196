"""The schedulers of diffusers, driven by hand on a velocity of this project.

Theirs is the velocity ``dx/dsigma`` of the noise level sigma = 1 - t, so the network's with the
other sign. Most round the times that they hand to a network to whole numbers of 1,000: here the
network is told 1 - sigma, for the sigma that the step is taken from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boss_core.ode.velocity import VelocityField, evaluate

# The noise level that the mended DEIS ends at, on which its 1 / sigma is still finite.
NEARLY_CLEAN = 1e-4


@dataclass(frozen=True)
class Driven:
    """A scheduler that has been set to a budget.

    scheduler: of diffusers. timesteps: what each call of its ``step`` is told.
    sigmas: the noise level of each evaluation, as many as there are evaluations.
    """

    scheduler: Any
    timesteps: list[Any]
    sigmas: list[float]


Make = Callable[[int], Driven]  # from a budget of evaluations


def unipc(order: int) -> Make:
    """UniPC (Zhao et al. 2023), with its corrector."""

    def make(budget: int) -> Driven:
        from diffusers import UniPCMultistepScheduler

        return _at_sigmas(UniPCMultistepScheduler(solver_order=order, **_FLOW), budget)

    return make


def dpm_solver(order: int) -> Make:
    """DPM-Solver++ (Lu et al. 2022), 2M or 3M."""

    def make(budget: int) -> Driven:
        from diffusers import DPMSolverMultistepScheduler

        return _at_sigmas(DPMSolverMultistepScheduler(solver_order=order, **_FLOW), budget)

    return make


def deis(order: int, *, to_the_end: bool = False) -> Make:
    """DEIS (Zhang and Chen 2023). As it comes, diffusers 0.42 repeats its last noise level, of
    about 1 / K, and leaves the noise of it in the image. to_the_end: the last is `NEARLY_CLEAN`."""

    def make(budget: int) -> Driven:
        from diffusers import DEISMultistepScheduler

        driven = _at_sigmas(DEISMultistepScheduler(solver_order=order, **_FLOW), budget)
        if to_the_end:
            driven.scheduler.sigmas[-1] = NEARLY_CLEAN
        return driven

    return make


def flow_match_euler(shift: float) -> Make:
    """FlowMatchEuler from the sigmas that the pipelines of Flux and later ones hand over, 1 to 1/K.
    Without them its last step would go from 0.001 to 0, and one evaluation be lost."""

    def make(budget: int) -> Driven:
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / budget, budget).tolist())
        scheduler.set_begin_index(0)
        return Driven(scheduler, list(scheduler.timesteps), scheduler.sigmas[:-1].tolist())

    return make


def flow_match_heun(budget: int) -> Driven:
    """FlowMatchHeun, whose n noise levels from 1 to 0.001 take 2 (n - 1) evaluations and one more
    for Euler's step to 0. Of an even budget that step, which no pixel shows, is left out."""
    from diffusers import FlowMatchHeunDiscreteScheduler

    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(budget // 2 + 1)
    scheduler.set_begin_index(0)
    told = list(scheduler.timesteps)[:budget]
    sigmas = (scheduler.timesteps.double() / scheduler.config.num_train_timesteps).tolist()
    return Driven(scheduler, told, sigmas[:budget])


@torch.no_grad()
def drive(make: Make, budget: int, velocity: VelocityField, x: Tensor) -> Tensor:
    """The final states from noise ``x``, (B, ...), after as many evaluations as the budget."""
    driven = make(budget)
    for told, sigma in zip(driven.timesteps, driven.sigmas, strict=True):
        v = evaluate(velocity, x, x.new_full((len(x),), 1.0 - sigma))
        x = driven.scheduler.step(-v, told, x, return_dict=False)[0]
    return x


_FLOW: dict[str, Any] = {
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "flow_shift": 1.0,
}


def _at_sigmas(scheduler: Any, budget: int) -> Driven:
    scheduler.set_timesteps(budget)
    scheduler.set_begin_index(0)
    return Driven(scheduler, list(scheduler.timesteps), scheduler.sigmas[:-1].tolist())
