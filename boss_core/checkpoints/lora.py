"""LoRA (Hu et al. 2022) by `peft`, and adapters on disk: a folder with ``adapter.safetensors`` and
``card.json``, a few per cent of the network that they change.

A layer of weight W becomes W + B A, with A of `rank` rows and B of `rank` columns: `peft`'s scale,
alpha / rank, is 1 here. All plain convolutions and Linear layers have one: those that compute as
torch's own class does, from a weight of their own. Those that filter the image
inside (`boss_core.networks.edm`) have none, as B A beside W would not be filtered, and
neither have the matrices of `boss_core.networks.ncsnpp.NIN`: `peft` sets them anew in every call,
which `torch.compile` cannot follow. B starts at 0, and so the network as it was.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from boss_core.checkpoints.folder import (
    ADAPTER,
    CARD,
    Network,
    check_shapes,
    load_checkpoint,
    parse_card,
    read_weights,
)
from boss_core.errors import InputError
from boss_core.io.files import write_files
from boss_core.io.weights import check_weights
from boss_core.networks.ncsnpp import StackedLinear, UnbiasedConv2d, UpsamplingConv2d
from boss_core.ode.schedule import Schedule

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


class AdapterCard(BaseModel):
    """What `save_adapter` writes beside the adapter.

    rank: of every B A.
    weights_sha256: of the adapter's file; `load_adapter` checks it.
    teacher_hash: ``weights_sha256`` of the network that it belongs to.
    schedule: the steps it was trained for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=1)
    weights_sha256: str
    teacher_hash: str
    schedule: Schedule | None = None


def add_adapter(network: AnyNetwork, rank: int, *, seed: int) -> AnyNetwork:
    """The same network, in place, with an adapter on its layers: from here on the adapter's
    parameters are the only ones that train. It starts as the network that it was.

    network: any module that is no such layer itself. rank: 1 or more. seed: of A's random start.

    InputError for a network without a layer that can have an adapter (`adaptable_layers`), and
    where `peft` is not installed.
    """
    try:
        # Takes seconds to import, which stages without an adapter should not wait for.
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise InputError(
            "adapter: peft is not installed; pip install 'boss-flow[diffusers]' needed"
        ) from error

    names = adaptable_layers(network)
    if not names:
        raise InputError(
            f"network: {type(network).__name__} without a Linear or convolution that can have an"
            " adapter; all weights (no rank) needed"
        )
    # As one expression, which has to match a whole name: names in a list match by their ends.
    wanted = "|".join(re.escape(name) for name in names)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network)
    for layer in _adapted(network):
        layer.forward = MethodType(_forward, layer)  # a method, which a copy of the layer gets anew
    return network


def adaptable_layers(network: nn.Module) -> list[str]:
    """The names of the layers that get an adapter: Linear and Conv1d to Conv3d that compute as
    torch's own class does, each with a weight of its own. Left out are grouped convolutions, whose
    B A would be no product of two matrices; weights that are computed (weight norm); and layers and
    weights that are used at several places, where an adapter would change one of them."""
    layers = Counter(id(layer) for _, layer in network.named_modules(remove_duplicate=False))
    weights = Counter(id(p) for _, p in network.named_parameters(remove_duplicate=False))

    def has_one(layer: nn.Module) -> bool:
        weight = layer._parameters.get("weight")
        alone = weight is not None and weights[id(weight)] == 1 and layers[id(layer)] == 1
        return alone and (type(layer) in _LAYERS or _is_plain(layer))

    return [name for name, layer in network.named_modules() if name and has_one(layer)]


def _is_plain(layer: nn.Module) -> bool:
    """Whether it is a layer of torch, or of a class of the user's that computes as one."""
    if getattr(layer, "groups", 1) != 1 or "forward" in vars(layer):
        return False
    for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if isinstance(layer, kind):
            own = [getattr(type(layer), n, None) for n in _COMPUTES]
            # Attention takes this one's weight, and does not call it.
            called = type(layer) is not NonDynamicallyQuantizableLinear
            return called and own == [getattr(kind, n, None) for n in _COMPUTES]
    return False


def _forward(layer: Any, *inputs: Tensor) -> Any:
    """In place of the one of `peft`, which takes x through W, A and B: through W + B A, so that a
    product more is one of weights, not of images."""
    base, a, b = layer.get_base_layer(), layer.lora_A["default"], layer.lora_B["default"]
    change = (b.weight.flatten(1) @ a.weight.flatten(1)).view_as(base.weight)
    weight = base.weight.clone().add_(change)  # in the layout of W, whatever that of B A
    return functional_call(base, {"weight": weight}, inputs)


def _adapted(network: nn.Module) -> list[Any]:
    """The layers that have an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]


def merge_adapter(network: AnyNetwork) -> AnyNetwork:
    """The same network, in place, with every B A added to its W and no adapter any more."""
    adapted = set(_adapted(network))
    for name, layer in list(network.named_modules()):
        if layer in adapted:
            layer.merge()
            network.set_submodule(name, layer.get_base_layer())
    return network


def save_adapter(
    folder: Path,
    network: nn.Module,
    *,
    rank: int,
    teacher_hash: str,
    schedule: Schedule | None = None,
) -> AdapterCard:
    """Write the adapter of a network (`add_adapter`), and nothing else of it, with its card: both
    or none. InputError for a network without an adapter."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in adapter_tensors(network)}
    if not tensors:
        kind = type(network).__name__
        raise InputError(f"network: {kind} without an adapter; add_adapter needed")
    weights = save(tensors)
    card = AdapterCard(
        rank=rank,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        teacher_hash=teacher_hash,
        schedule=schedule,
    )
    write_files(folder, {ADAPTER: weights, CARD: card.model_dump_json(indent=1).encode() + b"\n"})
    return card


def load_adapter(
    folder: Path, teacher: Path, *, merged: bool = True
) -> tuple[Network, AdapterCard]:
    """The teacher with the adapter, on the CPU, in evaluation mode and without gradients.

    folder: of the adapter. teacher: the checkpoint folder of the network that it belongs to.
    merged: as a network of the teacher's architecture; else with the adapter beside the weights.

    Raises InputError naming the file that is missing, truncated, altered or of another shape, and
    both hashes where the adapter is another teacher's.
    """
    card = read_adapter_card(folder)
    network, of_teacher = load_checkpoint(teacher)
    if of_teacher.weights_sha256 != card.teacher_hash:
        raise InputError(
            f"{folder}: an adapter of the teacher {card.teacher_hash[:12]}, but {teacher} is"
            f" {of_teacher.weights_sha256[:12]}; the network that it was trained on needed"
        )
    path = folder / ADAPTER
    tensors = read_weights(path, card.weights_sha256)
    ranks = {len(tensor) for name, tensor in tensors.items() if ".lora_A." in name and tensor.ndim}
    if ranks != {card.rank}:  # before layers of whatever rank the card says are made
        found = ", ".join(map(str, sorted(ranks))) or "none"
        raise InputError(f"{path}: of rank {found}, but {CARD} beside it says {card.rank}")
    add_adapter(network, card.rank, seed=0)
    check_shapes(path, tensors, dict(adapter_tensors(network)))
    check_weights(path, tensors, dict(adapter_tensors(network)))
    network.load_state_dict(tensors, strict=False)
    if merged:
        merge_adapter(network)
    return network.eval().requires_grad_(False), card


def read_adapter_card(folder: Path) -> AdapterCard:
    """The card of an adapter, without its weights; InputError as for `load_adapter`."""
    for path in (folder / CARD, folder / ADAPTER):
        if not path.is_file():
            raise InputError(f"{path}: no such file; an adapter's folder has {ADAPTER} and {CARD}")
    return parse_card(folder / CARD, AdapterCard)


def adapter_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters of the adapter in a network, with their names."""
    return ((name, p) for name, p in network.named_parameters() if ".lora_" in name)


# Of this project's own that compute in another way, by a weight that an adapter may change.
_LAYERS = (StackedLinear, UnbiasedConv2d, UpsamplingConv2d)
_COMPUTES = ("forward", "_conv_forward")
