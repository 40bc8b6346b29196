"""What a pipeline computes before its first step, remembered: a training step then costs the
evaluations of the networks that are trained, and text encoders can go."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from boss_core.errors import InputError

_ENCODERS = ("text_encoder", "image_encoder", "text_model")  # how names of components begin
# The methods that ask them, of which pipelines have one or two.
_ENCODING = (
    "encode_prompt", "encode_image", "encode_prompt_multiple_images", "get_image_caption",
    "rewire_prompt",
)  # fmt: skip


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
    """Keep what the pipeline's methods that encode (`encode_prompt`, `encode_image`, ...) and its
    autoencoder's `encode` return for the same arguments, by their contents: on the CPU, and
    brought to the device of the pipeline when asked for again. In place; for a pipeline that is
    called with the same prompts many times."""
    for name in _ENCODING:
        if hasattr(pipeline, name):
            setattr(pipeline, name, _remembering(getattr(pipeline, name)))
    for encoder in _encoders(pipeline).values():
        _watch(encoder)
    vae: Any = getattr(pipeline, "vae", None)
    if hasattr(vae, "encode"):
        vae.encode = _remembering(vae.encode)


def _encoders(pipeline: Any) -> dict[str, nn.Module]:
    parts = pipeline.components if hasattr(pipeline, "components") else {}
    return {
        name: part
        for name, part in parts.items()
        if isinstance(part, nn.Module) and name.startswith(_ENCODERS)
    }


_within = 0  # how many methods that are remembered are being asked


def _watch(encoder: nn.Module) -> None:
    """Note whether a part of it is evaluated for anything that is not remembered."""

    def evaluated(*_: Any) -> None:
        if not _within:
            encoder.asked_otherwise = True  # type: ignore[assignment]

    for part in encoder.modules():
        part.register_forward_pre_hook(evaluated)


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[str, tuple[Any, torch.device | None]] = {}

    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = _key((args, kwargs))
        if key not in known:
            found = _asked(function, args, kwargs)
            known[key] = _moved(found, torch.device("cpu")), _device(found)
            return found
        kept, device = known[key]
        return kept if device is None else _moved(kept, device)

    return remembered


@torch.no_grad()
def _asked(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    global _within
    _within += 1
    try:
        return function(*args, **kwargs)
    finally:
        _within -= 1


def free_encoders(pipeline: Any) -> int:
    """Take the text and image encoders out of a pipeline whose prompts are all remembered; the
    bytes that they took. Those stay that were asked for more than what is remembered."""
    freed = 0
    for name, part in _encoders(pipeline).items():
        if not getattr(part, "asked_otherwise", False):
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
