"""Adapters of diffusers pipelines that are trained: LoRA (Hu et al. 2022) by `peft`, written and
read by the pipeline's own functions.

diffusers and peft are imported where they are used only: the rest of the library works without.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boss_core.errors import InputError
from boss_core.interop.recording import DENOISERS

GRAPHS = 64  # of one function of a network's, compiled for whatever it meets
ADAPTER = "boss"  # its name among the adapters of a pipeline that is trained
WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that diffusers gives it, and looks for


class TrainedWeights(nn.Module):
    """The weights of a pipeline that are trained, in float32 whatever dtype its networks have: a
    small step would be lost in bfloat16. A module for `boss_core.training.loop.train`, whose
    average and checkpoints then hold these weights and nothing else of the networks.

    of: the parameters of the networks by name. `push` copies the weights there before a step,
    `collect` adds the gradients that arrived there.
    """

    def __init__(self, of: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.there = dict(of)
        self.weights = nn.ParameterList(
            nn.Parameter(p.detach().to(torch.float32, copy=True)) for p in of.values()
        )

    def __deepcopy__(self, memo: Any) -> "TrainedWeights":
        """Of the weights alone: the networks stay those of the pipeline."""
        twin = TrainedWeights(self.there)
        with torch.no_grad():
            torch._foreach_copy_(list(twin.weights), list(self.weights))
        return twin

    @torch.no_grad()
    def push(self) -> None:
        """Copy the weights into the networks."""
        torch._foreach_copy_(list(self.there.values()), list(self.weights))

    @torch.no_grad()
    def restore(self, weights: Sequence[Tensor]) -> None:
        """These weights, in the networks too."""
        torch._foreach_copy_(list(self.weights), [w.to(self.weights[0].device) for w in weights])
        self.push()

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients in the networks to those of the weights, and take them from there."""
        # Without those of a network that this step did not evaluate.
        there = [p for p in self.there.values() if p.grad is not None]
        arrived = [p.grad for p in there if p.grad is not None]
        weights = [
            weight
            for weight, p in zip(self.weights, self.there.values(), strict=True)
            if p.grad is not None
        ]
        # A few launches for all: there may be a thousand small ones.
        found = [torch.empty_like(weight) for weight in weights]
        torch._foreach_copy_(found, arrived)
        again = [(w.grad, g) for w, g in zip(weights, found, strict=True) if w.grad is not None]
        if again:
            torch._foreach_add_([old for old, _ in again], [new for _, new in again])
        for weight, gradient in zip(weights, found, strict=True):
            weight.grad = gradient if weight.grad is None else weight.grad
        for parameter in there:
            parameter.grad = None


def denoisers(pipeline: Any) -> dict[str, Any]:
    """The networks that take the steps, by the names of the components."""
    found = {name: getattr(pipeline, name, None) for name in DENOISERS}
    return {name: part for name, part in found.items() if isinstance(part, nn.Module)}


def check_adaptable(pipeline: Any) -> None:
    """InputError, before any work, for a pipeline whose networks take no LoRA, or which has no
    functions to write one and to load it."""
    check_adaptable_class(type(pipeline), {k: type(n) for k, n in denoisers(pipeline).items()})


def check_adaptable_class(kind: type, networks: Mapping[str, type]) -> None:
    """As `check_adaptable`, of a class of pipelines whose networks are of these classes."""
    for name, network in networks.items():
        if not hasattr(network, "add_adapter"):
            raise InputError(
                f"pipeline: the {name} of {kind.__name__}, a {network.__name__}, takes no LoRA (it"
                " has no add_adapter); a pipeline whose networks do, or all weights (--full),"
                " needed"
            )
    for needed in ("load_lora_weights", "save_lora_weights"):
        if not hasattr(kind, needed):
            raise InputError(
                f"pipeline: {kind.__name__} has no {needed}, so that a LoRA of it would be of no"
                " use; one that has, or all weights (--full), needed"
            )


def freeze(pipeline: Any) -> None:
    """No part of a pipeline needs a gradient from here on: an encoder that did would keep a graph
    from one step to the next."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
            network: Any = part
            # Z-Image's ControlNet asks for it where gradients are on, and does not set it.
            if getattr(network, "_supports_gradient_checkpointing", False):
                on = getattr(network, "gradient_checkpointing", False)
                network.gradient_checkpointing = on


def add_lora(pipeline: Any, rank: int, *, seed: int) -> TrainedWeights:
    """A LoRA on all linear layers of the networks that take the steps, beside those that the
    pipeline has; the weights of it to be trained. It starts as no change.

    rank: 1 or more; alpha is the rank, as the files that pipelines write carry no alpha. seed: of
    the random half of the start.
    """
    from peft import LoraConfig

    freeze(pipeline)
    found: dict[str, nn.Parameter] = {}
    for part, network in denoisers(pipeline).items():
        others = [name for name in getattr(network, "peft_config", {}) if name != ADAPTER]
        names = [name for name, layer in network.named_modules() if _is_linear(layer)]
        names = [name.removesuffix(".base_layer") for name in names if ".lora_" not in name]
        wanted = "|".join(re.escape(name) for name in names)  # has to match whole names
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=wanted)
            with warnings.catch_warnings():  # of a second adapter, which is wanted
                warnings.filterwarnings("ignore", "Already found a `peft_config`")
                network.add_adapter(config, adapter_name=ADAPTER)
        network.set_adapter([*others, ADAPTER])
        for name, parameter in network.named_parameters():
            own = f".{ADAPTER}." in name and ".lora_" in name
            parameter.requires_grad_(own)
            if own:
                found[f"{part}.{name}"] = parameter
    return TrainedWeights(found)


def all_weights(pipeline: Any) -> TrainedWeights:
    """All weights of the networks that take the steps, to be trained."""
    freeze(pipeline)
    found = {
        f"{part}.{name}": parameter.requires_grad_(True)
        for part, network in denoisers(pipeline).items()
        for name, parameter in network.named_parameters()
    }
    return TrainedWeights(found)


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear


def remove_lora(pipeline: Any) -> None:
    """The pipeline without the adapter of `add_lora`, with those that it had."""
    for network in denoisers(pipeline).values():
        network.delete_adapters(ADAPTER)
        if others := list(getattr(network, "peft_config", {})):
            network.set_adapter(others)
        network.requires_grad_(False)


@contextmanager
def without_lora(pipeline: Any) -> Iterator[None]:
    """Inside, the pipeline as it was before `add_lora`."""
    networks = denoisers(pipeline).values()
    others = {id(n): [name for name in n.peft_config if name != ADAPTER] for n in networks}
    needing = [p for n in networks for p in n.parameters() if p.requires_grad]
    for network in networks:
        if others[id(network)]:
            network.set_adapter(others[id(network)])
        else:
            network.disable_adapters()
    try:
        yield
    finally:
        for network in networks:
            network.enable_adapters()
            network.set_adapter([*others[id(network)], ADAPTER])
            network.requires_grad_(False)
        for parameter in needing:
            parameter.requires_grad_(True)


def save_lora(pipeline: Any, folder: Path) -> dict[str, Path]:
    """Write the adapter of `add_lora` as `WEIGHTS` into a folder, for the pipeline's
    `load_lora_weights`: the files by the network that each is for. Where the pipeline writes one
    network a file, those of the second lie in a folder of its name."""
    from peft import get_peft_model_state_dict

    layers = {
        name: get_peft_model_state_dict(network, adapter_name=ADAPTER)
        for name, network in denoisers(pipeline).items()
    }
    layers = {name: state for name, state in layers.items() if state}
    known = inspect.signature(pipeline.save_lora_weights).parameters
    together = {f"{name}_lora_layers": s for name, s in layers.items()}
    together = {name: state for name, state in together.items() if name in known}
    pipeline.save_lora_weights(folder, **together)
    files = {name: folder / WEIGHTS for name in layers if f"{name}_lora_layers" in together}
    for name, state in layers.items():
        if name not in files:
            pipeline.save_lora_weights(folder / name, transformer_lora_layers=state)
            files[name] = folder / name / WEIGHTS
    return files


def load_lora(pipeline: Any, folder: Path, *, adapter_name: str | None = None) -> None:
    """Load what `save_lora` wrote, as a user would."""
    pipeline.load_lora_weights(folder, adapter_name=adapter_name)
    if (folder / "transformer_2" / WEIGHTS).exists():
        second = folder / "transformer_2"
        pipeline.load_lora_weights(second, adapter_name=adapter_name, load_into_transformer_2=True)


def compile_blocks(pipeline: Any, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the blocks that the denoisers repeat, each kind once, which takes less time than
    whole networks. In place, before or after an adapter is added; names of weights stay.

    backend: as of `torch.compile`.

    Raises the process's ``torch._dynamo.config.recompile_limit`` to `GRAPHS`. The blocks of a
    network share a function, and a graph of it is made for each kind of block (SD3.5-medium has
    three), with and without guidance, gradients and an adapter: past torch's limit of 8 the rest
    runs uncompiled, which would be the training.
    """
    from torch._dynamo import config  # a second to import

    dynamo: Any = config
    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS)
    for network in denoisers(pipeline).values():
        for part in network.children():
            if isinstance(part, nn.ModuleList):
                for block in part:
                    block.compile(backend=backend)
