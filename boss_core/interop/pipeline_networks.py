"""The networks that a diffusers pipeline's velocity comes from, and a hash of their weights.

diffusers is imported where it is used only: the rest of the library works without it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from boss_core.errors import InputError
from boss_core.interop.recording import DENOISERS
from boss_core.io.weights import add_content

_COMPILED = "_orig_mod."  # what torch.compile puts before the names of weights


def pipeline_networks(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The networks of a pipeline by name: its denoiser, and whatever else of diffusers' models it
    has but autoencoders (ControlNets, the network that Ideogram 4 takes for guidance). Several
    ControlNets are several networks.

    Text and image encoders are of other libraries, and evaluated once for a sample. InputError
    for a pipeline without any.
    """
    from diffusers import ModelMixin

    parts = dict(getattr(pipeline, "components", {}))
    parts |= {name: getattr(pipeline, name, None) for name in DENOISERS}
    found: dict[str, torch.nn.Module] = {}
    for name in sorted(parts, key=lambda name: (name not in DENOISERS, name)):
        part = parts[name]
        if not isinstance(part, torch.nn.Module):
            continue
        network = getattr(part, "_orig_mod", part)
        decodes = type(network).__module__.startswith("diffusers.models.autoencoders")
        if name not in DENOISERS and (decodes or not isinstance(network, ModelMixin)):
            continue
        inner = {
            f"{name}.{path}": module
            for path, module in network.named_modules()
            if module is not network and isinstance(module, ModelMixin)
        }
        own = sum(weight.numel() for weight in network.parameters())
        inside = sum(weight.numel() for each in inner.values() for weight in each.parameters())
        found |= inner if inner and inside == own else {name: part}
    if not found:
        raise InputError(
            f"pipeline: {type(pipeline).__name__} has no {' or '.join(DENOISERS)}, where network"
            " evaluations are counted; one of them needed"
        )
    return found


def attention_layers(networks: Mapping[str, torch.nn.Module]) -> list[Any]:
    """The layers of networks that have an attention processor each."""
    found = (layer for network in networks.values() for layer in network.modules())
    return [layer for layer in found if hasattr(layer, "get_processor")]


@contextmanager
def own_processors(layers: Sequence[Any]) -> Iterator[None]:
    """Inside, a call of a pipeline may be stopped anywhere: some (SD3 and Sana with perturbed
    attention) put attention processors of their own into their networks, and the former ones back
    at the end of the call, which is done here.

    layers: `attention_layers` of its networks, which takes as long as all else here."""
    before = [layer.get_processor() for layer in layers]
    try:
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            if layer.get_processor() is not processor:
                layer.set_processor(processor)


def pipeline_hash(pipeline: Any) -> str:
    """The SHA-256 of the weights that a pipeline's velocity comes from, as a schedule carries it:
    names, dtypes, shapes and bytes of its networks, a tensor at a time, and the adapters that are
    loaded, in text encoders too, with their scales. The same for a compiled network.

    InputError for weights that are not there (offloaded to the meta device)."""
    digest = hashlib.sha256()
    networks = pipeline_networks(pipeline)
    for name, network in networks.items():
        if name not in DENOISERS:
            digest.update(f"network {name}\n".encode())
        state = {key.replace(_COMPILED, ""): value for key, value in network.state_dict().items()}
        for key, value in sorted(state.items()):
            add_content(digest, key, value)
    parts = dict(getattr(pipeline, "components", {})) | networks
    for name, part in sorted(parts.items()):
        if isinstance(part, torch.nn.Module):
            _add_adapters(digest, name, part, weights=name not in networks)
    return digest.hexdigest()


def _add_adapters(digest: Any, name: str, network: torch.nn.Module, *, weights: bool) -> None:
    """The adapters in a network, which of them are on, and how much: none of it is in its state.
    ``weights``: theirs too, where those of the network are not hashed."""
    for path, module in network.named_modules():
        where = f"adapter {name}.{path}".replace(_COMPILED, "")
        scaling = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and hasattr(module, "active_adapters"):  # PEFT
            on = [] if module.disable_adapters else list(module.active_adapters)
            add_content(digest, where, {"on": on, "scaling": scaling, "in": module.merged_adapters})
            for key, value in sorted(module.state_dict().items()) if weights else ():
                if not key.startswith("base_layer."):
                    add_content(digest, f"{where}.{key}", value)
    # IP adapters keep their scales in attention processors, which need not be modules.
    for path, processor in sorted(getattr(network, "attn_processors", {}).items()):
        if (scale := getattr(processor, "scale", None)) is not None:
            add_content(digest, f"adapter {name}.{path}.scale", scale)
