"""The training loop of classifier, teacher and student: Adam, warm-up, clipping, weight average;
on several processes, in mixed precision, from the last checkpoint on."""

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from boss_core.errors import InputError
from boss_core.io.files import sha256
from boss_core.training import distributed
from boss_core.training.attention import without_cudnn_attention
from boss_core.training.cuda_graph import graphed
from boss_core.training.randomness import BatchShare, Loss, seed_all
from boss_core.training.resume import Checkpoints
from boss_core.training.settings import Precision, TrainingSettings

Row = dict[str, float]
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Trained(Generic[Network]):
    """network: with the averaged (EMA) weights, in evaluation mode and without gradients. What did
        not train of it are the parameters of the network that was given, not copies of them.

    curve: a row for every ``log_every`` steps: ``step``, ``loss`` (mean since the row before),
        ``gradient_norm`` (largest since, before clipping), ``learning_rate``, and what the
        validation returned, which sees the averaged weights. Empty but in the main process.
    start: the steps that a checkpoint had done already.
    """

    network: Network
    curve: list[Row]
    start: int


# Its parameters and what they mean are half of its lines; they are its callers' names for them.
def train(
    network: Network,
    loss: Loss,
    settings: TrainingSettings,
    *,
    precision: Precision = "float32",
    compile: bool = False,
    validate: Callable[[Any], Row] | None = None,
    log_every: int | None = None,
    on_step: Callable[[int], None] | None = None,
    checkpoints: Checkpoints | None = None,
    attention: Callable[[], AbstractContextManager[None]] = without_cudnn_attention,
) -> Trained[Network]:
    """Train a network: minimise a loss over its parameters that need gradients.

    loss: ``loss(network, step, share)``, of step 0, 1, ...; draws its batch from the step alone
        (see `boss_core.training.randomness`), so a run depends on nothing that came before it
        but the weights, and computes the mean over this process's share of it. It may only call
        the network. It may also call ``backward()`` itself, on part after part of the mean, so
        that the graph of one is held at a time, and return their sum without a gradient.
    precision: bfloat16 for autocast; the weights and what the network returns stay float32.
    compile: call the network through torch.compile. Not on a GPU for a loss that goes backward
        itself more than once a step: the next replay of torch's graphs takes the place of the
        gradients before.
    validate: is called with the network of averaged weights, in the main process.
    log_every: the losses stay on the device for this many steps, so that no step waits for it;
        without it 50, or a hundredth of the steps where that is more.
    on_step: called with the number of steps done since it was last called.
    checkpoints: written by the main process; the last one stays when the training has ended, and
        is for the caller to remove once the result is stored.
    attention: what makes the gradients of attention right (`boss_core.training.attention`).

    Memory and checkpoints hold the average, and Adam's moments, of what trains alone: of an adapter
    a few per cent of its network.

    Raises InputError naming the first step whose loss was not finite, in every process, where the
    processes cannot have equal shares of a batch, and where no parameter gets a gradient.
    """
    share = distributed.own_share()
    main = share.rank == 0
    if settings.batch_size % share.of:
        raise InputError(
            f"training: batch_size {settings.batch_size} on {share.of} processes; a multiple of"
            f" {share.of} needed"
        )
    log_every = log_every or max(50, settings.iterations // 100)
    run = _start(network, loss, settings, share, precision, compile=compile, log_every=log_every)
    # A short run writes none, but may find one.
    kept = checkpoints if checkpoints and settings.iterations > checkpoints.every else None
    found = checkpoints if checkpoints and (kept or checkpoints.exist()) else None
    done, curve, fingerprint = _go_on(run, found)
    if on_step is not None and done:
        on_step(done)
    with _random_numbers_of_steps(run.rate.device, share) as of_step, attention():
        for step in range(done, settings.iterations):
            of_step(step)
            train_step(run, step)
            if on_step is not None:
                on_step(1)
            last = step == settings.iterations - 1
            logs = (step + 1) % log_every == 0 or last
            stores = kept is not None and ((step + 1) % kept.every == 0 or last)
            if share.of > 1 and (logs or stores):
                distributed.average([run.losses])
            if logs:
                _check(run.losses[: step % log_every + 1].cpu(), step, settings)
            if logs and main:
                curve.append(_row(run, step, validate))
            if kept is not None and stores and main:
                kept.save(step + 1, fingerprint, run.state, curve)
    return Trained(run.averaged.eval().requires_grad_(False), curve, done)


@dataclass(frozen=True)
class _Run(Generic[Network]):
    """One training under way.

    call: the network, compiled and in precision as asked for. update: clips the gradients and
        steps; the norm of the gradient before it. update_average: of the weights after a step.
    rate: the learning rate of the step, on the device, where the optimiser reads it.
    losses, norms: of the steps since the last row of the curve, by the step modulo their number.
    state: all that a step changes, in place.
    """

    network: Network
    averaged: Network
    loss: Loss
    settings: TrainingSettings
    share: BatchShare
    precision: Precision
    optimizer: torch.optim.Optimizer
    call: Callable[..., Tensor]
    update: Callable[[], Tensor]
    update_average: Callable[[int], None]
    rate: Tensor
    losses: Tensor
    norms: Tensor
    state: dict[str, Tensor]


def train_step(run: "_Run[Any]", step: int) -> None:
    """Draw a batch, and change weights and averages by its gradient. Loss and norm stay on the
    device: the host waits for neither."""
    run.rate.fill_(_learning_rate(step, run.settings))
    run.optimizer.zero_grad(set_to_none=True)  # before the loss, which may add to gradients itself
    value = run.loss(run.call, step, run.share)
    if value.requires_grad:
        value.backward()
    parameters = run.optimizer.param_groups[0]["params"]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise InputError(
            f"training: no parameter has a gradient at step {step}; a loss that depends on the"
            " network, or that calls backward() itself, needed"
        )
    if run.share.of > 1:
        distributed.average(gradients)
    slot = step % len(run.losses)
    run.losses[slot] = value.detach()
    run.norms[slot] = run.update()
    run.update_average(step)


def _start(
    network: Network,
    loss: Loss,
    settings: TrainingSettings,
    share: BatchShare,
    precision: Precision,
    *,
    compile: bool,
    log_every: int,
) -> _Run[Network]:
    """The training before its first step."""
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    device = parameters[0].device
    on_gpu = device.type == "cuda"
    # Adam takes a double on a CPU, and a float, there already, on a GPU.
    rate = torch.zeros((), device=device, dtype=torch.float32 if on_gpu else torch.float64)
    optimizer = _adam(parameters, settings.weight_decay, rate)
    # What does not train is shared: of a large network with an adapter that is nearly all of it.
    averaged = copy.deepcopy(network, {id(p): p for p in _frozen(network).values()})
    losses = torch.zeros(log_every, device=device)
    norms = torch.zeros(log_every, device=device)
    # On a GPU by CUDA graphs: hundreds of launches a pass would keep the host busier than the card.
    mode = "reduce-overhead" if on_gpu else None
    compiled = torch.compile(network, dynamic=False, mode=mode) if compile else network

    def update() -> Tensor:
        norm = nn.utils.clip_grad_norm_(parameters, settings.gradient_clip)
        optimizer.step()
        return norm

    return _Run(
        network=network,
        averaged=averaged,
        loss=loss,
        settings=settings,
        share=share,
        precision=precision,
        optimizer=optimizer,
        call=_in_precision(compiled, precision),
        update=graphed(update, parameters) if compile and on_gpu else update,
        update_average=_moving_average(network, averaged, settings.ema_decay),
        rate=rate,
        losses=losses,
        norms=norms,
        state=_state(network, averaged, optimizer) | {"losses": losses, "norms": norms},
    )


def _go_on(run: "_Run[Any]", checkpoints: Checkpoints | None) -> tuple[int, list[Row], str]:
    """Fill the state from the last checkpoint of this run, in all processes: the steps done, their
    curve, and the run's fingerprint; 0, none and an empty one where nothing is kept."""
    done, curve, fingerprint = 0, list[Row](), ""
    if checkpoints is not None and run.share.rank == 0:
        kind = run.settings.model_dump()
        kind |= {"precision": run.precision, "log_every": len(run.losses)}
        kind["code"] = [sha256(path) for path in _sources(run.network, run.loss)]
        fingerprint = checkpoints.fingerprint(kind, run.network.state_dict())
        done, curve = checkpoints.load(fingerprint, run.state)
    if run.share.of > 1:
        start = torch.tensor(done, device=run.rate.device)
        with torch.no_grad():
            distributed.copy_from_main([start, *run.state.values(), *_frozen(run.network).values()])
        done = int(start)
    return done, curve, fingerprint


def _row(run: "_Run[Any]", step: int, validate: Callable[[Any], Row] | None) -> Row:
    """The row of the curve after that step."""
    count = step % len(run.losses) + 1
    row: Row = {
        "step": step + 1,
        "loss": float(run.losses[:count].mean()),
        "gradient_norm": float(run.norms[:count].max()),
        "learning_rate": _learning_rate(step, run.settings),
    }
    if validate is not None:
        with torch.no_grad():
            row |= validate(_in_precision(run.averaged.eval(), run.precision))
    return row


def _learning_rate(step: int, settings: TrainingSettings) -> float:
    return settings.learning_rate * learning_rate_factor(step, settings)


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """The learning rate of a step over its peak: linear warm-up, then constant or cosine."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    if settings.learning_rate_schedule == "constant":
        return 1.0
    progress = (step - settings.warmup) / max(1, settings.iterations - settings.warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


@contextmanager
def _random_numbers_of_steps(
    device: torch.device, share: BatchShare
) -> Iterator[Callable[[int], None]]:
    """Yield a function that makes what layers draw in a step, as dropout does, depend on the
    step, the process and torch's seed; outside of it torch's numbers go on as if nothing was."""
    seed = torch.initial_seed()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield lambda step: seed_all(seed, step * share.of + share.rank)


def _adam(parameters: list[nn.Parameter], weight_decay: float, rate: Tensor) -> torch.optim.Adam:
    """With its state there from the start, so that a checkpoint can fill it. In the layout of the
    parameters: the fused kernel reads all of them in the order of the memory."""
    # With decoupled weight decay it is AdamW, and without any it is Adam.
    optimizer = torch.optim.Adam(
        parameters,
        lr=rate,
        weight_decay=weight_decay,
        decoupled_weight_decay=True,
        fused=True,
        capturable=rate.is_cuda,
    )
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


def _state(
    network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    parameters = optimizer.param_groups[0]["params"]
    moving = network.state_dict().keys() - _frozen(network).keys()
    return (
        {f"network.{name}": t for name, t in network.state_dict().items() if name in moving}
        | {f"average.{name}": t for name, t in averaged.state_dict().items() if name in moving}
        | {
            f"optimizer.{number}.{name}": tensor
            for number, parameter in enumerate(parameters)
            for name, tensor in optimizer.state[parameter].items()
        }
    )


def _frozen(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that do not train, by all of their names."""
    named = network.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in named if not parameter.requires_grad}


def _in_precision(network: Callable[..., Tensor], precision: Precision) -> Callable[..., Tensor]:
    """The network, called in autocast where the precision asks for it, but returning float32."""
    if precision == "float32":
        return network

    def call(*inputs: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, torch.bfloat16):
            return network(*inputs).float()

    return call


def _moving_average(network: nn.Module, averaged: nn.Module, decay: float) -> Callable[[int], None]:
    """An exponential moving average whose decay grows to its value, min(decay, (1 + s) / (10 +
    s)) after s steps, so that a short run does not average in its random start. Statistics that
    layers keep in buffers are averaged too."""
    # Weights that train, and all statistics.
    moving = {name for name, weight in network.named_parameters() if weight.requires_grad}
    moving |= {name for name, buffer in network.named_buffers() if buffer.is_floating_point()}
    means, currents = (
        [
            tensor.detach()
            for name, tensor in chain(of.named_parameters(), of.named_buffers())
            if name in moving
        ]
        for of in (averaged, network)
    )

    @torch.no_grad()
    def update(step: int) -> None:
        weight = 1.0 - min(decay, (2 + step) / (11 + step))
        torch._foreach_lerp_(means, currents, weight)

    return update


def _check(recent: Tensor, step: int, settings: TrainingSettings) -> None:
    """InputError when one of the last losses, up to that of ``step``, is not finite."""
    if recent.isfinite().all():
        return
    place = int(recent.isfinite().int().argmin())
    raise InputError(
        f"training: the loss became {recent[place]:g} at step {step - len(recent) + 1 + place}"
        f" of {settings.iterations}; a learning_rate below {settings.learning_rate:g}"
        f" or a gradient_clip below {settings.gradient_clip:g} may help"
    )


def _sources(network: nn.Module, loss: Loss) -> list[Path]:
    """The code of a run, as far as it is easily told: a change of it makes another run."""
    drawn = loss if inspect.isfunction(loss) else type(loss)
    files = {Path(inspect.getfile(part)) for part in (type(network), drawn, train)}
    return sorted(path for path in files if path.is_file())
