"""A custom node of ComfyUI whose sampler takes given steps with given weights.

This file needs torch and ComfyUI only: `boss export --to comfyui-node` prints it, with the noise
levels and weights of a schedule below it. Put it into ComfyUI's folder ``custom_nodes``, restart
ComfyUI, and connect both outputs of the node "BOSS sampler" with SamplerCustom or
SamplerCustomAdvanced. For models whose states are (1 - sigma) data + sigma noise, as SD3, Flux,
Wan, Qwen-Image; a shift set elsewhere has no effect on the steps.
"""

from typing import Any

import torch
from tqdm.auto import trange

# Of Euler's single step; those of the schedule stand below.
SIGMAS = [1.0, 0.0]
WEIGHTS = [[1.0]]
# Between sigmas in float32 and as they were written.
_TOLERANCE = 1e-4


@torch.no_grad()
def sample(
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
) -> torch.Tensor:
    """One evaluation a step: x_{k+1} = x_k + (s_{k+1} - s_k) sum_j w_kj d_{k-j}, d_k the direction
    (x_k - denoised_k) / s_k; as ComfyUI calls its samplers.

    ValueError for other sigmas than those of this node: the weights are for them alone.
    """
    own = torch.tensor(SIGMAS, dtype=torch.float64)
    if len(sigmas) != len(own) or (sigmas.double().cpu() - own).abs().max() > _TOLERANCE:
        shown = ", ".join(f"{float(sigma):.4g}" for sigma in sigmas)
        raise ValueError(
            f"sigmas: {shown}; those of the output SIGMAS of the BOSS sampler needed, whole"
        )
    ones = x.new_ones([x.shape[0]])
    directions: list[torch.Tensor] = []  # the latest first
    for k in trange(len(SIGMAS) - 1, disable=disable):
        denoised = model(x, SIGMAS[k] * ones, **(extra_args or {}))
        if callback is not None:
            sigma = sigmas[k]
            callback({"x": x, "i": k, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        directions = [(x - denoised) / SIGMAS[k], *directions][:3]
        length = SIGMAS[k + 1] - SIGMAS[k]
        for weight, direction in zip(WEIGHTS[k], directions, strict=False):
            x = x + (length * weight) * direction
    return x


class BossSampler:
    """The node: no inputs; a sampler, and the sigmas that go with it."""

    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    FUNCTION = "get"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802, ComfyUI's name
        """None, as ComfyUI asks for them."""
        return {"required": {}}

    def get(self) -> tuple[Any, torch.Tensor]:
        """What its outputs hand on."""
        from comfy.samplers import KSAMPLER

        return KSAMPLER(sample), torch.tensor(SIGMAS, dtype=torch.float32)


NODE_CLASS_MAPPINGS: dict[str, type] = {"BossSampler": BossSampler}
NODE_DISPLAY_NAME_MAPPINGS = {"BossSampler": "BOSS sampler"}
