"""Weights from a file, before they become a network's."""

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from boss_core.errors import InputError
from boss_core.io.files import ALTERED, is_of_the_disk

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """The network that ``build`` makes, without memory for its numbers: what a file is compared
    with before a network of whatever size its settings ask for is made."""
    with torch.device("meta"):
        return build()


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is numbers in memory: neither sparse nor quantised, nor without any."""
    return (
        tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"
    )


def check_weights(source: object, tensors: Mapping[str, Tensor], of: Mapping[str, Tensor]) -> None:
    """InputError that starts with ``source`` and names the first tensor that is no weights for the
    network with the state dict ``of``: sparse, quantised, without numbers, not of real floating
    numbers (integers where the network has some), or not finite once it is of its dtype.

    Loading would cast or copy all these without a word. Names that the network does not have are
    passed over.
    """
    for name, tensor in tensors.items():
        if name not in of:
            continue
        if not is_plain(tensor):
            kind = "quantised" if tensor.is_quantized else str(tensor.layout).split(".")[-1]
            kind = "meta (without numbers)" if tensor.device.type == "meta" else kind
            raise InputError(f"{source}: {name} is {kind}; plain numbers needed")
        wanted = of[name].dtype
        right = tensor.dtype in _FLOATS if wanted.is_floating_point else tensor.dtype == wanted
        if not right:
            names = _FLOATS if wanted.is_floating_point else (wanted,)
            needed = " or ".join(str(dtype).removeprefix("torch.") for dtype in names)
            found = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"{source}: {name} is {found}; {needed} needed")
        finite = tensor.to(wanted).isfinite()
        if not finite.all():
            bad = int((~finite).sum())
            value = float(tensor.flatten()[int(finite.flatten().int().argmin())])
            where = f" in {str(wanted).removeprefix('torch.')}" if math.isfinite(value) else ""
            raise InputError(
                f"{source}: {name}: {bad} of {tensor.numel()} values are not finite{where}"
                f" (the first is {value:g}); finite weights needed"
            )


def add_content(digest: Any, name: str, value: Any) -> None:
    """Feed a digest with an entry of a state dictionary: the name, dtype, shape and bytes of a
    tensor of any kind, or what quantisation keeps there. InputError for weights that are not there
    (offloaded to the meta device)."""
    if isinstance(value, Mapping):
        for key, each in sorted(value.items(), key=lambda item: str(item[0])):
            add_content(digest, f"{name}.{key}", each)
    elif isinstance(value, list | tuple):
        for k, each in enumerate(value):
            add_content(digest, f"{name}.{k}", each)
    elif not isinstance(value, Tensor):
        digest.update(f"{name} {value!r}\n".encode())
    else:
        _add_tensor(digest, name, value.detach())


def _add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    if tensor.is_meta:
        raise InputError(
            f"pipeline: the weights of {name} are offloaded, so that they cannot be hashed; the"
            " hash before offloading needed"
        )
    if hasattr(tensor, "__tensor_flatten__"):  # a tensor made of others, as torchao's
        names, settings = tensor.__tensor_flatten__()
        digest.update(f"{name} {type(tensor).__name__} {tuple(tensor.shape)}\n".encode())
        add_content(digest, f"{name}.settings", settings)
        for each in sorted(names):
            add_content(digest, f"{name}.{each}", getattr(tensor, each))
        return
    if tensor.is_quantized:
        scales: tuple[Any, ...]
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            scales = (tensor.q_scale(), tensor.q_zero_point())
        else:
            scales = (
                tensor.q_per_channel_scales(),
                tensor.q_per_channel_zero_points(),
                tensor.q_per_channel_axis(),
            )
        add_content(digest, f"{name}.scales", scales)
        tensor = tensor.int_repr()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    # A plain tensor, whatever class keeps the bytes (bitsandbytes, GGUF).
    tensor = tensor.as_subclass(Tensor)
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    flat = tensor.cpu().resolve_conj().resolve_neg().contiguous().flatten()
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def check_sums(path: Path) -> None:
    """InputError where a part of a zip archive, as torch writes them, has not the checksum that it
    was written with: torch compares none. 0 stands for one that was not computed
    (`torch.serialization.set_crc32_options`). Files of other forms have none."""
    part = None
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.CRC:
                    with archive.open(part) as file:
                        while file.read(1 << 20):
                            pass
    except ALTERED as error:
        if is_of_the_disk(error):
            raise
        where = "its table" if part is None else part.filename
        raise InputError(
            f"{path}: altered: {where} has another checksum than when it was written; a whole copy"
            " needed"
        ) from error
