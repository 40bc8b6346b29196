"""A scheduler of diffusers that walks given noise levels, whatever it is asked for.

This file needs torch and diffusers only, not the library around it: `boss export --to
diffusers-fixed` prints it, with the steps of a schedule below it.
"""

import math
from typing import Any, Self

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteSchedulerOutput,
)

# A pipeline that is loaded looks for the class with from_pretrained beside a component's own.
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401


class FixedFlowScheduler(FlowMatchEulerDiscreteScheduler):
    """Steps of Euler or of a linear multistep method at noise levels of its configuration, which
    copies, pickles and saved pipelines keep.

    fixed_sigmas: K + 1 levels from 1 (noise) to 0 (data), the 0 included.
    solver: ``euler``; or ``ab2``, which extrapolates from the velocity of the step before, in
        float32, and starts anew at each call (Hairer, Norsett and Wanner, Solving ODEs I, III.5);
        or ``multistep``, as ``ab2`` with weights of its own.
    weights: of ``multistep``, for each of the K steps those of the velocities at its level and at
        those before it, the latest first; they add up to 1.
    invert_sigmas: the levels are those of the data, 1 - sigma, as Mochi's network takes them.

    What else the configuration holds is for pipelines to read, and has no effect on the steps.
    """

    # A configuration of diffusers has the parameters of this function, one each.
    @register_to_config
    def __init__(
        self,
        fixed_sigmas: list[float] | tuple[float, ...] = (1.0, 0.0),
        solver: str = "euler",
        weights: list[list[float]] | None = None,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
    ) -> None:
        if solver not in ("euler", "ab2", "multistep"):
            raise ValueError(f"solver: {solver!r}; euler, ab2 or multistep needed")
        if (len(weights or ()) != len(fixed_sigmas) - 1) if solver == "multistep" else weights:
            raise ValueError(
                f"weights: of {len(weights or ())} steps for {len(fixed_sigmas) - 1} steps of"
                f" {solver}; as many for multistep, and none for others, needed"
            )
        # Of the class above, which writes it into each configuration.
        if stochastic_sampling:
            raise ValueError("stochastic_sampling: True; False needed, for steps without new noise")
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            shift=shift,
            use_dynamic_shifting=use_dynamic_shifting,
            base_shift=base_shift,
            max_shift=max_shift,
            base_image_seq_len=base_image_seq_len,
            max_image_seq_len=max_image_seq_len,
            invert_sigmas=invert_sigmas,
            shift_terminal=shift_terminal,
            use_karras_sigmas=use_karras_sigmas,
            use_exponential_sigmas=use_exponential_sigmas,
            use_beta_sigmas=use_beta_sigmas,
            time_shift_type=time_shift_type,
        )

    @classmethod
    def like(
        cls, scheduler: Any, fixed_sigmas: Any, solver: str = "euler", weights: Any = None
    ) -> Self:
        """One with the settings of a pipeline's own scheduler, as far as they are known here: one
        more, as `use_flow_sigmas` of UniPC, would make some pipelines drop their sigmas."""
        names = set(cls._get_init_keys(cls)) - {
            "self",
            "fixed_sigmas",
            "solver",
            "weights",
            "stochastic_sampling",
        }
        kept = {name: scheduler.config[name] for name in names if name in scheduler.config}
        levels = [float(s) for s in fixed_sigmas]
        if weights is not None:
            weights = [[float(w) for w in of_step] for of_step in weights]
        return cls(fixed_sigmas=levels, solver=solver, weights=weights, **kept)

    # Pipelines look for these names to learn what a scheduler accepts.
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Set the levels of the configuration, whatever the arguments say."""
        levels = torch.tensor(self.config.fixed_sigmas, dtype=torch.float64)
        if self.config.invert_sigmas:
            levels = 1.0 - levels
        self.num_inference_steps = len(levels) - 1
        self.sigmas = levels.to(device=device, dtype=torch.float32)
        steps = self.config.num_train_timesteps
        told = self.sigmas[:-1]
        if timesteps is not None:
            asked = torch.as_tensor(timesteps, dtype=torch.float64)
            followed = asked if sigmas is None else steps * torch.as_tensor(sigmas).double()
            if asked.shape != followed.shape or (asked - followed).abs().max() > 1e-2:
                raise ValueError(
                    "pipeline: sets timesteps that do not follow from its sigmas, so that the time"
                    f" of another noise level is not known; timesteps of {steps} sigma needed"
                )
            told = self._unshifted(told, mu)
        self.timesteps = told * steps
        self._step_index: int | None = None
        self._begin_index = None

    def _unshifted(self, levels: torch.Tensor, mu: float | None) -> torch.Tensor:
        """What the network is told at a level by pipelines that set timesteps and sigmas apart
        (CogView4, GLM-Image): the level before the scheduler's shift."""
        config = self.config
        others = ("shift_terminal", "use_karras_sigmas", "use_exponential_sigmas")
        if config.invert_sigmas or any(config[name] for name in (*others, "use_beta_sigmas")):
            raise ValueError(
                "pipeline: sets timesteps apart from its sigmas, and its scheduler moves the sigmas"
                " by more than a shift; shift or use_dynamic_shifting alone needed"
            )
        a = config.shift
        if config.use_dynamic_shifting:
            if mu is None:
                raise ValueError("pipeline: passes no mu to a scheduler with use_dynamic_shifting")
            a = math.exp(mu) if config.time_shift_type == "exponential" else mu
        return levels / (a - (a - 1.0) * levels)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """As it is: Bria asks for it."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The state at the next level: diffusers' own step of Euler, for others along a weighted
        sum of the velocities so far."""
        told = torch.as_tensor(timestep)
        if not told.is_floating_point():  # SkyReels rounds them
            timestep = self.timesteps[(self.timesteps - told.to(self.timesteps)).abs().argmin()]
        if self.config.solver == "euler":
            return super().step(model_output, timestep, sample, return_dict=return_dict, **kwargs)
        if kwargs.get("per_token_timesteps") is not None:
            raise ValueError(
                "pipeline: gives each token a noise level of its own; one for all needed by"
                f" {self.config.solver}"
            )
        if self.step_index is None:  # the first since set_timesteps
            self._init_step_index(timestep)
            self.before: list[torch.Tensor] = []
        # A network may return the same buffer each time.
        velocities = [model_output.to(torch.float32, copy=True), *self.before]
        weights = self._weights(self.step_index, len(velocities))
        used = weights[0] * velocities[0]
        for weight, velocity in zip(weights[1:], velocities[1:], strict=False):
            used = used + weight * velocity
        self.before = velocities[:2]
        (state,) = super().step(used, timestep, sample, return_dict=False, **kwargs)
        state = state.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(state) if return_dict else (state,)

    def _weights(self, k: int, velocities: int) -> list[float]:
        """Those of step k, of no more velocities than there are: a call that begins late has
        none from before."""
        if self.config.solver == "multistep":
            of_step = list(self.config.weights[k])
            if len(of_step) > velocities:
                raise ValueError(
                    f"pipeline: begins at step {k}, whose weights are for {len(of_step)}"
                    " velocities; all steps, from the first, needed by multistep"
                )
            return of_step
        if velocities == 1:
            return [1.0]
        s = self.config.fixed_sigmas
        weight = (s[k + 1] - s[k]) / (2.0 * (s[k] - s[k - 1]))
        return [1.0 + weight, -weight]
