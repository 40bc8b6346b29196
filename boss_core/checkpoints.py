"""Networks on disk: a folder with ``model.safetensors`` and ``card.json``. Nothing is unpickled.

The card says what the weights are: architecture, their hash, and for a student its schedule
and the teacher it comes from.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from boss_core.errors import InputError
from boss_core.files import sha256, write_bytes
from boss_core.networks.edm import EDM, EDMConfig
from boss_core.networks.ncsnpp import NCSNpp, NCSNppConfig
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.rectified_flow import load_rectified_flow
from boss_core.schedules import Schedule

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
ADAPTER = "adapter.safetensors"  # in place of the weights: `boss_core.adapters`

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
    """Write the weights and their card; a reader never sees a file half written."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(tensors))
    card = Card(
        architecture=next(n for n, (kind, _) in ARCHITECTURES.items() if isinstance(network, kind)),
        config=network.config,
        weights_sha256=sha256(folder / WEIGHTS),
        teacher_hash=teacher_hash,
        schedule=schedule,
    )
    write_bytes(folder / CARD, card.model_dump_json(indent=1).encode() + b"\n")
    return card


def load_checkpoint(folder: Path) -> tuple[Network, Card]:
    """The network on the CPU, in evaluation mode and without gradients, and its card.

    Raises InputError naming the file that is missing, truncated, altered or of another shape.
    """
    card = read_card(folder)
    path = folder / WEIGHTS
    tensors = read_tensors(path, card.weights_sha256)
    network: Network = ARCHITECTURES[card.architecture][0](card.config)
    check_shapes(path, tensors, network.state_dict())
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


def parse_card(path: Path, kind: type[AnyCard]) -> AnyCard:
    """A card of this kind from its file; InputError naming the field that does not hold."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path}: {where or 'card'}: {message}") from error


def read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
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
    except SafetensorError as error:
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
