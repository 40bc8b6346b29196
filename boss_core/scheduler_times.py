"""The times that a pipeline's network is told at given noise levels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from boss_core.errors import InputError


def network_times(
    config: Mapping[str, Any],
    levels: Tensor,
    *,
    sigmas: ArrayLike | None = None,
    timesteps: ArrayLike | None = None,
    mu: float | None = None,
) -> Tensor:
    """The time that the network is told at each noise level, (K,) float32 on their device: N
    times the level, N being ``num_train_timesteps``, but for pipelines that set timesteps and
    sigmas apart.

    Those (CogView4, GLM-Image) give their scheduler timesteps T and sigmas T / N. It shifts the
    sigmas and leaves the timesteps: at the level that T / N is shifted to, the network is told T.

    config: of the pipeline's own scheduler. levels: (K,), all but the last of the steps to take.
    sigmas, timesteps, mu: what the pipeline passed to ``set_timesteps``. InputError for settings
    and values from which the time at a level does not follow.
    """
    steps = int(config["num_train_timesteps"])
    if timesteps is None:
        return levels * steps
    told = np.asarray(timesteps, dtype=np.float64)
    asked = told / steps if sigmas is None else np.asarray(sigmas, dtype=np.float64)
    if told.shape != asked.shape or not np.allclose(asked * steps, told, rtol=0, atol=1e-2):
        raise InputError(
            "pipeline: sets timesteps that do not follow from its sigmas, so that the time for"
            f" the network at another noise level is not known; timesteps of {steps} sigma needed"
        )
    exact = levels.double().cpu().numpy()
    before = _unshifted(exact, config, mu)
    if config["invert_sigmas"] or not np.allclose(
        _shifted(before, config, mu), exact, rtol=0, atol=1e-5
    ):
        raise InputError(
            "pipeline: sets timesteps apart from its sigmas, and its scheduler moves the sigmas by"
            " more than a shift; shift or use_dynamic_shifting alone needed"
        )
    return torch.as_tensor(before * steps, dtype=torch.float32, device=levels.device)


def _unshifted(
    levels: NDArray[np.float64], config: Mapping[str, Any], mu: float | None
) -> NDArray[np.float64]:
    """sigma' = a sigma / (1 + (a - 1) sigma) solved for sigma."""
    a = float(config["shift"])
    if config["use_dynamic_shifting"]:
        if mu is None:
            raise InputError("pipeline: passes no mu to a scheduler with use_dynamic_shifting")
        a = float(np.exp(mu)) if config["time_shift_type"] == "exponential" else float(mu)
    return levels / (a - (a - 1.0) * levels)


def _shifted(
    sigmas: NDArray[np.float64], config: Mapping[str, Any], mu: float | None
) -> NDArray[np.float64]:
    """What diffusers' scheduler with this configuration makes of these sigmas."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    scheduler.set_timesteps(sigmas=list(sigmas), mu=mu)
    return scheduler.sigmas[:-1].double().numpy()
