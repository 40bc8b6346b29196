"""Networks on disk: a folder with ``model.safetensors`` and ``card.json``. Nothing is unpickled.

The card says what the weights are: architecture, their hash, and for a student its schedule
and the teacher it comes from.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from boss_core.checkpoints.rectified_flow import load_rectified_flow
from boss_core.errors import InputError
from boss_core.io.files import sha256, write_files
from boss_core.io.weights import check_weights, skeleton
from boss_core.networks.edm import EDM, EDMConfig
from boss_core.networks.ncsnpp import NCSNpp, NCSNppConfig
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.ode.schedule import Schedule

__all__ = [
    "ARCHITECTURES",
    "Card",
    "Network",
    "NetworkConfig",
    "load_checkpoint",
    "load_rectified_flow",
    "read_card",
    "save_checkpoint",
]

WEIGHTS, CARD = "model.safetensors", "card.json"
LABELS = "labels.json"  # beside a conditional network: how often each label comes
ADAPTER = "adapter.safetensors"  # in place of the weights: `boss_core.checkpoints.lora`

# What a network of this project has: ``config``, and in it ``sample_shape``, (C, H, W), and
# ``classes``, None for one without.
Network = UNet | NCSNpp | EDM
NetworkConfig = UNetConfig | NCSNppConfig | EDMConfig
ARCHITECTURES: dict[str, tuple[type[Any], type[BaseModel]]] = {
    "unet": (UNet, UNetConfig),
    "ncsnpp": (NCSNpp, NCSNppConfig),
    "edm": (EDM, EDMConfig),
}
AnyCard = TypeVar("AnyCard", bound=BaseModel)


class Card(BaseModel):
    """What `save_checkpoint` writes beside the weights.

    architecture: a name in `ARCHITECTURES`; ``config`` is of that architecture.
    weights_sha256: of the weights file; `load_checkpoint` checks it.
    teacher_hash: for a student, ``weights_sha256`` of its teacher.
    schedule: for a student, the steps it was straightened for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str = "unet"
    config: NetworkConfig
    weights_sha256: str
    teacher_hash: str | None = None
    schedule: Schedule | None = None

    @field_validator("architecture")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ARCHITECTURES:
            raise ValueError(f"{name!r} found; one of {', '.join(ARCHITECTURES)} needed")
        return name

    @field_validator("config", mode="before")
    @classmethod
    def _of_architecture(cls, config: Any, info: ValidationInfo) -> Any:
        # A plain union would blame the first architecture for a mistake in another's settings.
        if "architecture" not in info.data:
            return config
        name = info.data["architecture"]
        try:
            return ARCHITECTURES[name][1].model_validate(config)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{where or name}: {first['msg']}") from error


def save_checkpoint(
    folder: Path,
    network: Network,
    *,
    teacher_hash: str | None = None,
    schedule: Schedule | None = None,
) -> Card:
    """Write a network to a folder: its weights and their card, both or none.

    InputError for a network that is none of `ARCHITECTURES`, before anything is written: a card
    could not say how to make it again.
    """
    names = [name for name, (kind, _) in ARCHITECTURES.items() if isinstance(network, kind)]
    if not names:
        kinds = ", ".join(kind.__name__ for kind, _ in ARCHITECTURES.values())
        raise InputError(
            f"network: {type(network).__name__}; one of {kinds} needed, which a card describes (for"
            " others safetensors.torch.save_model, and --velocity to search and to sample)"
        )
    weights = weights_file(network)
    card = Card(
        architecture=names[0],
        config=network.config,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        teacher_hash=teacher_hash,
        schedule=schedule,
    )
    write_files(folder, {WEIGHTS: weights, CARD: card.model_dump_json(indent=1).encode() + b"\n"})
    return card


def weights_file(network: nn.Module) -> bytes:
    """The file of weights that `save_checkpoint` writes for a network."""
    return save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})


def load_checkpoint(folder: Path) -> tuple[Network, Card]:
    """The network of a folder, on the CPU, in evaluation mode and without gradients, and its card.

    Raises InputError naming the file that is missing, truncated, altered or of another shape, and
    the tensor that is no weights (`boss_core.io.weights.check_weights`).
    """
    card = read_card(folder)
    path = folder / WEIGHTS
    tensors = read_weights(path, card.weights_sha256)

    def build() -> Network:
        return ARCHITECTURES[card.architecture][0](card.config)

    expected = skeleton(build).state_dict()
    check_shapes(path, tensors, expected)
    check_weights(path, tensors, expected)
    network = build()
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False), card


def read_card(folder: Path) -> Card:
    """The card of a checkpoint, without its weights; InputError as for `load_checkpoint`."""
    if (folder / ADAPTER).is_file():
        raise InputError(
            f"{folder}: an adapter, which is no network without its teacher; a folder that"
            f" `boss merge {folder} --teacher TEACHER --out FOLDER` makes of both needed"
        )
    for path in (folder / CARD, folder / WEIGHTS):
        if not path.is_file():
            raise InputError(f"{path}: no such file; a checkpoint folder has {WEIGHTS} and {CARD}")
    return parse_card(folder / CARD, Card)


def read_label_counts(folder: Path, classes: int | None) -> tuple[float, ...] | None:
    """How often each label of a network with so many classes comes, from `LABELS` beside it; None
    where there is no such file, or no classes. InputError for a file that says nothing of the
    kind."""
    path = folder / LABELS
    if classes is None or not path.is_file():
        return None
    try:
        counts = json.loads(path.read_bytes())["counts"]
        right = isinstance(counts, list) and len(counts) == classes
        found = [float(count) for count in counts if type(count) in (int, float)] if right else []
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        found = []
    if len(found) != classes or not all(0 <= count < math.inf for count in found) or not any(found):
        raise InputError(
            f'{path}: not the counts of {classes} labels; {{"counts": [...]}}, a number for each'
            " class, none negative and not all zero, needed"
        )
    return tuple(found)


def parse_card(path: Path, kind: type[AnyCard]) -> AnyCard:
    """A card of this kind from its file; InputError naming the field that does not hold."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {where or 'card'}: {message}") from error


def read_weights(path: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of a file whose SHA-256, by the card beside it, is ``digest``; InputError where
    it is another, or the file is no safetensors."""
    found = sha256(path)
    if found != digest:
        raise InputError(
            f"{path}: truncated or altered: SHA-256 {found[:12]}, but {CARD} beside it says"
            f" {digest[:12]}"
        )
    try:
        return load(path.read_bytes())
    except (SafetensorError, KeyError, AttributeError) as error:  # also dtypes torch has not
        raise InputError(f"{path}: not a safetensors file ({error})") from error


def check_shapes(path: Path, tensors: Mapping[str, Tensor], of: Mapping[str, Tensor]) -> None:
    """InputError naming the first tensor of the file that is missing, too many, or of another
    shape than in the network that it is for."""
    expected = {name: tuple(tensor.shape) for name, tensor in of.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise InputError(
                f"{path}: {name} has shape {shapes.get(name, 'none: it is missing')}, but the"
                f" architecture in {CARD} has {expected.get(name, 'no such parameter')}"
            )
