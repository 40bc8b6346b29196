"""A straightened network of any class: how it is called, its steps, and its files.

The folder has ``student.safetensors``, all weights or those of an adapter (LoRA) alone;
``card.json``, which says what they are; and ``schedule.json``, for exports. The class of the
network is the user's, so that loading takes an instance of it.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save
from torch import Tensor, nn

from boss_core.checkpoints.folder import CARD, parse_card, read_weights
from boss_core.checkpoints.lora import adapter_tensors, add_adapter, merge_adapter
from boss_core.errors import InputError
from boss_core.io.files import write_files
from boss_core.io.weights import add_content, check_weights
from boss_core.ode.schedule import Schedule
from boss_core.ode.solvers import solver_of
from boss_core.ode.velocity import with_labels

WEIGHTS, SCHEDULE = "student.safetensors", "schedule.json"

# ``velocity(network, x, t)`` or ``velocity(network, x, t, labels)``: how a network is called, and
# what is made of its answer.
Call = Callable[..., Tensor]


class CalledNetwork(nn.Module):
    """A network and the way to call it, as one velocity: ``v(x, t)`` or ``v(x, t, labels)``.

    The network stays in evaluation mode, also where this trains: what it learns is its own velocity
    as it samples, without dropout, and with the running statistics that it has.

    velocity: ``velocity(network, x, t)``; None where the network is called so itself.
    one_time: call it once for each of the times of a batch: for a network that takes one time for
        all samples.
    """

    def __init__(
        self, network: nn.Module, velocity: Call | None = None, *, one_time: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.one_time = one_time
        self._call = (velocity,)  # in a tuple: a module in there would be one of its layers

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, x: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        if not self.one_time:
            return self._velocity(x, t, *labels)
        groups = [(t == time).nonzero()[:, 0] for time in t.unique()]
        parts = [self._velocity(*(of[rows] for of in (x, t, *labels))) for rows in groups]
        return torch.cat(parts)[torch.cat(groups).argsort()]

    def _velocity(self, *inputs: Tensor) -> Tensor:
        (call,) = self._call
        return self.network(*inputs) if call is None else call(self.network, *inputs)


class StudentCard(BaseModel):
    """What `Student.save` writes beside the weights.

    rank: of the adapter's every B A (`boss_core.checkpoints.lora`); None where the file has all
        weights. weights_sha256: of the file. teacher_hash: `network_hash` of the network that was
        straightened. schedule: the steps it was straightened for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int | None = Field(default=None, ge=1)
    weights_sha256: str
    teacher_hash: str
    schedule: Schedule


@dataclass(frozen=True)
class Student:
    """A network that was straightened for the steps of one schedule.

    network: of the user's class, in evaluation mode and without gradients; an adapter is merged
        into its weights. velocity: it as ``v(x, t)``, or ``v(x, t, labels)``. schedule: its steps.
    teacher_hash: `network_hash` of what it was before. rank, adapter: of the adapter, and its
        tensors by name; None and none where all weights were trained.
    curve: of the training (`boss_core.training.loop.Trained`); empty where it was loaded.
    """

    velocity: CalledNetwork
    schedule: Schedule
    teacher_hash: str
    rank: int | None = None
    adapter: Mapping[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def network(self) -> nn.Module:
        return self.velocity.network

    def sample(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Samples from noise, both (B, ...), with its steps and their solver, on the device of the
        network. labels: (B,) int64, of a conditional network."""
        solve = solver_of(self.schedule)
        return solve(with_labels(self.velocity, labels), noise, self.schedule.timesteps)

    def save(self, folder: Path | str) -> StudentCard:
        """Write its weights, card and schedule into a folder: all of them or none."""
        tensors = self.adapter if self.rank is not None else network_tensors(self.network)
        weights = save({name: _plain(tensor) for name, tensor in tensors.items()})
        card = StudentCard(
            rank=self.rank,
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            teacher_hash=self.teacher_hash,
            schedule=self.schedule,
        )
        texts = {CARD: card.model_dump_json(indent=1), SCHEDULE: self.schedule.to_json()}
        files = {name: text.encode() + b"\n" for name, text in texts.items()}
        write_files(Path(folder), {WEIGHTS: weights, **files})
        return card


def load_student(folder: Path | str, network: nn.Module, velocity: Call | None = None) -> Student:
    """The student of a folder, in the network that is given, whose weights it changes in place.

    network: an instance of the class that was straightened. Of an adapter it has to have the
        weights of the teacher; else any. velocity: as for
        `boss_core.straightening.straighten.straighten`.

    Raises InputError naming the file that is missing, truncated or altered, the tensor that is of
    another shape than in the network or not finite, and both hashes where the adapter is another
    network's.
    """
    folder = Path(folder)
    for path in (folder / CARD, folder / WEIGHTS):
        if not path.is_file():
            raise InputError(f"{path}: no such file; a student's folder has {WEIGHTS} and {CARD}")
    card = parse_card(folder / CARD, StudentCard)
    path = folder / WEIGHTS
    tensors = read_weights(path, card.weights_sha256)
    called = CalledNetwork(network, velocity)
    if card.rank is None:
        _check_tensors(path, tensors, network_tensors(network))
        network.load_state_dict(tensors, strict=False)
        _finished(called)
        return Student(called, card.schedule, card.teacher_hash)
    if (found := network_hash(network)) != card.teacher_hash:
        raise InputError(
            f"{folder}: an adapter of the network {card.teacher_hash[:12]}, but this one is"
            f" {found[:12]}; the weights that it was trained on needed"
        )
    ranks = {len(tensor) for name, tensor in tensors.items() if ".lora_A." in name and tensor.ndim}
    if ranks != {card.rank}:  # before layers of whatever rank the card says are made
        of_file = ", ".join(map(str, sorted(ranks))) or "none"
        raise InputError(f"{path}: of rank {of_file}, but {CARD} beside it says {card.rank}")
    add_adapter(called, card.rank, seed=0)
    try:
        _check_tensors(path, tensors, dict(adapter_tensors(called)))
        called.load_state_dict(tensors, strict=False)
    finally:  # whatever is refused, the network is of its own layers again
        merge_adapter(called)
    _finished(called)
    return Student(called, card.schedule, card.teacher_hash, card.rank, tensors)


def network_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The weights and statistics of a network, and nothing else that its state has."""
    state: dict[str, Any] = network.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def network_hash(network: nn.Module) -> str:
    """The SHA-256 of the names, dtypes, shapes and bytes of a network's weights and statistics,
    whatever device they are on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network_tensors(network).items()):
        add_content(digest, name, tensor)
    return digest.hexdigest()


def _finished(network: nn.Module) -> None:
    network.eval().requires_grad_(False)


def _plain(tensor: Tensor) -> Tensor:
    """In memory of its own: weights that share theirs have no place in a file."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], of: Mapping[str, Tensor]) -> None:
    for name in sorted(of.keys() | tensors.keys()):
        found, wanted = (
            tuple(some[name].shape) if name in some else None for some in (tensors, of)
        )
        if found != wanted:
            has = "is missing" if found is None else f"has shape {found}"
            need = "no such tensor" if wanted is None else str(wanted)
            raise InputError(f"{path}: {name} {has}, but the network has {need}; its class needed")
    check_weights(path, tensors, of)
