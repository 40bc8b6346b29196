"""What a pipeline computes before its first step, remembered: a training step then costs the
evaluations of the networks that are trained, and text encoders can go."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from boss_core.errors import InputError

_ENCODERS = ("text_encoder", "image_encoder", "text_model")  # how names of components begin


class FreedEncoder(nn.Module):
    """In the place of an encoder whose results are all remembered: what pipelines ask about it,
    without its weights."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.config = getattr(encoder, "config", None)
        weight = next(encoder.parameters(), torch.empty(0))
        self.like: Tensor
        self.register_buffer("like", torch.empty(0, dtype=weight.dtype, device=weight.device))
        self.kind = type(encoder).__name__

    @property
    def dtype(self) -> torch.dtype:
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        return self.like.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            f"pipeline: asks {self.kind} for a prompt that was not encoded before its weights"
            " were freed"
        )


def remember_encodings(pipeline: Any) -> None:
    """Keep what the pipeline's `encode_prompt` and its autoencoder's `encode` return for the same
    arguments, by their contents: on the CPU, and brought to the device of the pipeline when asked
    for again. In place; for a pipeline that is called with the same prompts many times."""
    if hasattr(pipeline, "encode_prompt"):
        pipeline.encode_prompt = _remembering(pipeline.encode_prompt)
    vae: Any = getattr(pipeline, "vae", None)
    if hasattr(vae, "encode"):
        vae.encode = _remembering(vae.encode)


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[str, tuple[Any, torch.device | None]] = {}

    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = _key((args, kwargs))
        if key not in known:
            with torch.no_grad():
                found = function(*args, **kwargs)
            known[key] = _moved(found, torch.device("cpu")), _device(found)
            return found
        kept, device = known[key]
        return kept if device is None else _moved(kept, device)

    return remembered


def free_encoders(pipeline: Any) -> int:
    """Take the text and image encoders out of a pipeline whose prompts are all remembered; the
    bytes that they took."""
    freed = 0
    for name, part in list(pipeline.components.items()):
        if isinstance(part, nn.Module) and name.startswith(_ENCODERS):
            freed += sum(p.numel() * p.element_size() for p in part.parameters())
            setattr(pipeline, name, FreedEncoder(part))
    return freed


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(each, device) for each in value))
    if isinstance(value, list | tuple):
        return type(value)(_moved(each, device) for each in value)
    if type(value) is dict:
        return {name: _moved(each, device) for name, each in value.items()}
    return value


def _device(value: Any) -> torch.device | None:
    """Of the first tensor within."""
    if isinstance(value, Tensor):
        return value.device
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, list | tuple | Mapping):
        return next((found for each in parts if (found := _device(each)) is not None), None)
    return None


def _key(value: Any) -> str:
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Feed a digest with the contents of an argument: tensors and pictures by what is in them."""
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)} of".encode())
        for each in value:
            _add(digest, each)
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            digest.update(str(name).encode())
            _add(digest, value[name])
    elif hasattr(value, "tobytes"):  # numpy and PIL
        size = getattr(value, "size", None), getattr(value, "mode", getattr(value, "dtype", None))
        digest.update(f"{size}".encode() + value.tobytes())
    elif isinstance(value, torch.Generator):
        digest.update(value.get_state().numpy().data)
    else:
        digest.update(f"{type(value).__name__} {value!r};".encode())
