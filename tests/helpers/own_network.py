"""Networks as a stranger has them: a flow in closed form with layers beside it that can learn,
called in the ways that networks are called."""

import torch
from torch import Tensor, nn

from boss_core.ode.denoiser import velocity_from_denoiser
from boss_core.training.settings import TrainingSettings
from tests.helpers.mixture import mixture_velocity, rotated_velocity


class Plain(nn.Module):
    """``network(x, t)``: the flow to a mixture of Gaussians, exactly, until its layers, which start
    at 0, have learned. labels: of ``network(x, t, labels)``, by which the mixture is turned."""

    def __init__(self, *, labels: bool = False) -> None:
        super().__init__()
        self.labels = labels
        self.layers = nn.Sequential(
            nn.Linear(8 + labels, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2)
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in self.parameters():
                shape = weight.shape
                weight.copy_(torch.randn(shape, generator=generator) / shape[-1] ** 0.5)
            self.layers[-1].weight.zero_()
            self.layers[-1].bias.zero_()

    def forward(self, x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        at = t.view(-1, 1)
        seen = [x, at, *(wave(k * at) for k in (3.0, 9.0) for wave in (torch.sin, torch.cos))]
        seen += [0 * at + 1, *(label.view(-1, 1) - 1.5 for label in labels)]
        flow = rotated_velocity(x, t, *labels) if labels else mixture_velocity(x, t)
        return flow + self.layers(torch.cat(seen, dim=1))


class TimeFirst(Plain):
    def forward(self, t, x):
        return super().forward(x, t)


class ScalarTime(Plain):
    """Takes one time for all samples, of shape ()."""

    def forward(self, x, t):
        assert t.shape == ()
        return super().forward(x, t.expand(len(x)))


class Thousand(Plain):
    """Times from 0 to 1000, noise at 1000."""

    def forward(self, x, timestep):
        return -super().forward(x, 1 - timestep / 1000)


class Denoiser(Plain):
    """The expected data, from data with noise of level sigma added."""

    def forward(self, y, sigma):
        t = 1 / (1 + sigma)
        x = y * t.view(-1, 1)
        return x + (1 - t).view(-1, 1) * super().forward(x, t)


# Each with the way to call it.
CONVENTIONS = {
    "plain": (Plain, None),
    "time first": (TimeFirst, lambda net, x, t: net(t, x)),
    "scalar time": (ScalarTime, lambda net, x, t: net(x, t[0])),
    "0 to 1000, reversed": (Thousand, lambda net, x, t: -net(x, timestep=1000 * (1 - t))),
    "denoiser": (Denoiser, lambda net, x, t: velocity_from_denoiser(net)(x, t)),
}


def training(**change: object) -> TrainingSettings:
    values: dict[str, object] = {
        "iterations": 120, "batch_size": 64, "learning_rate": 5e-3, "warmup": 10,
        "learning_rate_schedule": "cosine", "gradient_clip": 1.0, "ema_decay": 0.95,
    }  # fmt: skip
    return TrainingSettings.model_validate(values | change)
