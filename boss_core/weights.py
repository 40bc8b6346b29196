"""Weights from a file, before they become a network's."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from boss_core.errors import InputError

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
            raise InputError(
                f"{source}: {name}: {bad} of {tensor.numel()} values are not finite"
                f" (the first is {value:g}); finite weights needed"
            )


def check_sums(path: Path) -> None:
    """InputError where a part of a zip archive, as torch writes them, has not the checksum that it
    was written with: torch compares none. 0 stands for one that was not computed
    (`torch.serialization.set_crc32_options`). Files of other forms have none."""
    if not zipfile.is_zipfile(path):
        return
    part = None
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.CRC:
                    with archive.open(part) as file:
                        while file.read(1 << 20):
                            pass
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        where = "its table" if part is None else part.filename
        raise InputError(
            f"{path}: altered: {where} has another checksum than when it was written; a whole copy"
            " needed"
        ) from error
