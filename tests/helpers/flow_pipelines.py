"""Pipelines whose network is a known flow, or what a distillation of it would be."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers import tiny_pipelines as tiny
from tests.helpers.mixture import mixture_velocity


class FlowTransformer(nn.Module):
    """In the place of SD3's: the flow of each two neighbouring elements to a mixture of Gaussians,
    in closed form.

    parts: None for the flow itself. Else a network that is distilled for as many equal steps: from
    any state it leads straight to where the flow has it at the end of the step that it is in, as
    consistency models (1 part), and students of trajectories (more) are trained to.
    """

    def __init__(self, parts: int | None = None) -> None:
        super().__init__()
        self.parts = parts
        self.unused = nn.Parameter(torch.zeros(()))
        self.config = SimpleNamespace(in_channels=4, patch_size=1, sample_size=8)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    @property
    def device(self) -> torch.device:
        return self.unused.device

    def forward(self, hidden_states: Tensor, timestep: Tensor, **others: Any) -> tuple[Tensor]:
        t = 1.0 - timestep.double() / 1000.0
        x = hidden_states.double().reshape(-1, 2)
        times = t.repeat_interleave(len(x) // len(t))
        velocity = mixture_velocity(x, times) if self.parts is None else self._straight(x, times)
        return (-velocity.reshape(hidden_states.shape).to(hidden_states.dtype),)

    def _straight(self, x: Tensor, t: Tensor) -> Tensor:
        assert self.parts is not None
        end = ((t * self.parts + 1e-6).floor() + 1.0) / self.parts
        moved, steps = x, 50
        for k in range(steps):
            velocity = mixture_velocity(moved, t + (end - t) * (k / steps))
            moved = moved + velocity * ((end - t) / steps)[:, None]
        return (moved - x) / (end - t)[:, None]


def flow_sd3(parts: int | None = None) -> Any:
    """SD3's pipeline with the network above."""
    pipeline = tiny.sd3()
    pipeline.register_modules(transformer=FlowTransformer(parts))
    return tiny.quiet(pipeline)
