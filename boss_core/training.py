"""The training loop of teacher and student: Adam, warm-up, clipping, weight average."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from boss_core.draws import Loss, Share
from boss_core.errors import InputError
from boss_core.settings import TrainingSettings

Row = dict[str, float]
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Trained(Generic[Network]):
    """network: with the averaged (EMA) weights, in evaluation mode and without gradients.

    curve: a row for every ``log_every`` steps: ``step``, ``loss`` (mean since the row before),
        ``gradient_norm`` (largest since, before clipping), ``learning_rate``, and what the
        validation returned, which sees the averaged weights.
    """

    network: Network
    curve: list[Row]


def train(
    network: Network,
    loss: Loss,
    settings: TrainingSettings,
    *,
    validate: Callable[[Network], Row] | None = None,
    log_every: int = 50,
    on_step: Callable[[int], None] | None = None,
) -> Trained[Network]:
    """Minimise ``loss(network, step, share)`` over the parameters of the network that need gradients.

    loss: the loss of step 0, 1, ...; draws its batch from the step alone (see
        `boss_core.draws`), so a run depends on nothing that came before it but the weights.
    log_every: the losses stay on the device for this many steps, so that no step waits for it.
    on_step: called with 1 after each step.

    Raises InputError naming the first step whose loss was not finite.
    """
    share = Share()
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings)
    )
    average = _ema(network, settings.ema_decay)
    device = parameters[0].device
    losses = torch.zeros(log_every, device=device)
    norms = torch.zeros(log_every, device=device)
    curve: list[Row] = []
    for step in range(settings.iterations):
        value = loss(network, step, share)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        slot = step % log_every
        norms[slot] = nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
        losses[slot] = value.detach()
        rate = float(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        average.update_parameters(network)
        if on_step is not None:
            on_step(1)
        if slot == log_every - 1 or step == settings.iterations - 1:
            recent = losses[: slot + 1].cpu()
            if not recent.isfinite().all():
                where = step - slot + int(recent.isfinite().int().argmin())
                raise InputError(
                    f"training: the loss became {recent[where - (step - slot)]:g} at step {where}"
                    f" of {settings.iterations}; a learning_rate below {settings.learning_rate:g}"
                    f" or a gradient_clip below {settings.gradient_clip:g} may help"
                )
            row: Row = {
                "step": step + 1,
                "loss": float(recent.mean()),
                "gradient_norm": float(norms[: slot + 1].max()),
                "learning_rate": rate,
            }
            if validate is not None:
                with torch.no_grad():
                    row |= validate(average.module.eval())
            curve.append(row)
    return Trained(average.module.eval().requires_grad_(False), curve)


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """The learning rate of a step over its peak: linear warm-up, then constant or cosine."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    if settings.learning_rate_schedule == "constant":
        return 1.0
    progress = (step - settings.warmup) / max(1, settings.iterations - settings.warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def _ema(network: nn.Module, decay: float) -> Any:
    """An exponential moving average whose decay grows to its value, min(decay, (1 + s) / (10 +
    s)) after s steps, so that a short run does not average in its random start."""
    steps = 0

    def update(averaged: Any, current: Any, _: Any) -> None:
        nonlocal steps
        steps += 1
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + steps) / (10 + steps)))

    average = AveragedModel(network, multi_avg_fn=update)
    average.n_averaged += 1  # start from the given weights
    return average
