"""Checkpoints of Rectified Flow (Liu et al. 2023), read as they were published: tensors only.

A file holds ``{"optimizer", "model", "ema", "step"}``: ``model`` with the names of `NCSNpp` behind
``module.``, ``ema`` with a list of averaged weights in the order of the parameters. Files of others
are read too: names behind ``_orig_mod.``, ``ema`` as a state dict, a state dict alone, numbers of
numpy beside them.
"""

import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from boss_core.errors import InputError
from boss_core.io.files import is_of_the_disk
from boss_core.io.weights import check_sums, check_weights, skeleton
from boss_core.networks.ncsnpp import NCSNpp, NCSNppConfig

# Published networks by name, as JSON of what shapes them.
PUBLISHED = {
    path.stem: path for path in sorted(Path(__file__).parents[1].glob("networks/configs/*"))
}

# Settings that an `NCSNpp` does not have, with the one value that it was written for.
_FIXED = {
    "name": "ncsnpp",
    "normalization": "GroupNorm",
    "nonlinearity": "swish",
    "conditional": True,
    "resblock_type": "biggan",
    "progressive_combine": "sum",
}
_NAMES_SHOWN = 8

Weights = dict[str, Tensor]


def load_rectified_flow(
    checkpoint: Path | str, config: Mapping[str, Any] | Path | str, *, use_ema: bool = True
) -> NCSNpp:
    """The velocity network of a published checkpoint of Rectified Flow, on the CPU, in evaluation
    mode and without gradients.

    checkpoint: a ``.pth`` file, read with ``weights_only``, so that nothing in it is executed; or
        a ``.safetensors`` file of a state dict.
    config: the published settings, ``{"data": {...}, "model": {...}}``, as a mapping, the path of
        a JSON file of them, or a name in `PUBLISHED`. Those that only concern training are
        ignored.
    use_ema: the averaged weights, as all published results do; else the raw ones. A file that is
        a state dict has one kind only, which is taken either way.

    Raises InputError naming what does not hold: file, setting, every missing and unexpected
    parameter, or a tensor that is no weights (`boss_core.io.weights.check_weights`).
    """
    path = Path(checkpoint)
    settings, source = read_config(config)
    content = _read_checkpoint(path)
    tensors = _tensors(path, content)
    tensors.pop("sigmas", None)  # noise levels of score-based training: no velocity reads them
    without_numbers = skeleton(lambda: NCSNpp(settings))
    expected = without_numbers.state_dict()
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unexpected:
        found = [f"{len(missing)} missing ({_names(expected, missing)})"] if missing else []
        if unexpected:
            found.append(f"{len(unexpected)} unexpected ({_names(tensors, unexpected)})")
        raise InputError(f"{path}: does not fit {source}: parameters: {'; '.join(found)}")
    if use_ema:
        names = [name for name, _ in without_numbers.named_parameters()]
        tensors |= _averaged(path, content, names, source)
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise InputError(
                f"{path}: does not fit {source}: {name} has shape {tuple(tensors[name].shape)};"
                f" {tuple(tensor.shape)} needed"
            )
    check_weights(path, tensors, expected)
    network = NCSNpp(settings)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def read_config(config: Mapping[str, Any] | Path | str) -> tuple[NCSNppConfig, str]:
    """The shape of the network that a configuration describes, as for `load_rectified_flow`, and
    what to call it in messages. InputError naming the setting that does not hold."""
    if isinstance(config, Mapping):
        return _parse_config(config, "config"), "config"
    path = PUBLISHED.get(str(config), Path(config))
    if not path.is_file():
        raise InputError(
            f"config: {str(config)!r} is no file and no published network; known:"
            f" {', '.join(PUBLISHED)}"
        )
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    return _parse_config(content, str(config)), str(config)


def _parse_config(content: Any, source: str) -> NCSNppConfig:
    blocks = [content.get(b) if isinstance(content, Mapping) else None for b in ("data", "model")]
    data, model = blocks
    if not isinstance(data, Mapping) or not isinstance(model, Mapping):
        raise InputError(f"{source}: no blocks data and model, as published configurations have")
    for name, needed in _FIXED.items():
        if name in model and model[name] != needed:
            raise InputError(f"{source}: model.{name}: {model[name]!r} found; {needed!r} needed")
    settings = {**data, **model}
    fields = NCSNppConfig.model_fields.keys()
    try:
        return NCSNppConfig.model_validate({k: settings[k] for k in fields & settings.keys()})
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # of several settings together; the message names them
            raise InputError(f"{source}: {message}") from error
        block = "data" if first["loc"][0] in ("image_size", "num_channels", "centered") else "model"
        where = ".".join(str(part) for part in (block, *first["loc"]))
        value = "" if first["type"] == "missing" else f"{first['input']!r:.80} found; "
        raise InputError(f"{source}: {where}: {value}{message.lower()}") from error


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    """The content of a file, as ``{"model": ..., "ema": ...}`` or a bare state dict."""
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {kind}; a Rectified Flow checkpoint (.pth, .safetensors) needed")
    try:
        # Only what is used is read: most of a file is the state of the optimiser.
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_numbers()):
                content = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
                )
    except MemoryError:
        raise
    except Exception as error:  # a broken pickle raises whatever its bytes happen to ask for
        if is_of_the_disk(error):
            raise
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(
                f"{path}: refused, nothing of it was executed: it asks for {named[1]}, and a"
                " checkpoint holds tensors only"
            ) from error
        raise InputError(
            f"{path}: truncated or not a PyTorch checkpoint of tensors ({type(error).__name__}); a"
            " Rectified Flow checkpoint needed"
        ) from error
    check_sums(path)
    if not isinstance(content, Mapping) or not ("model" in content or _is_state_dict(content)):
        found = _names(content, content) if isinstance(content, Mapping) else type(content).__name__
        raise InputError(
            f"{path}: holds {found or 'nothing'}; model and ema, as in a Rectified Flow checkpoint,"
            " or a state dict needed"
        )
    return content


def _numbers() -> list[Any]:
    """What a pickle names for a number of numpy, as the step beside the weights often is: by the
    names of numpy 1 and 2. No part of it executes anything."""
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    scalar = np.float64(0).__reduce__()[0]
    return [
        *kinds,
        np.dtype,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(v, Tensor) for v in content.values())
    )


def _tensors(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those of ``model``, or of a bare state dict, by the names of an `NCSNpp`."""
    tensors = content.get("model", content)
    if not _is_state_dict(tensors):
        raise InputError(f"{path}: model is not a mapping of names to tensors")
    return _plain_names(tensors)


def _averaged(path: Path, content: Mapping[str, Any], names: list[str], source: str) -> Weights:
    """The averaged weights by their names: published as a list in the order of the parameters, by
    others as a state dict. A bare state dict has no others than those that it has."""
    if "model" not in content:
        return {}
    ema: Any = content.get("ema")
    if _is_state_dict(ema):
        averaged = _plain_names(ema)
        if missing := [name for name in names if name not in averaged]:
            raise InputError(
                f"{path}: ema does not fit {source}: {len(missing)} parameters missing"
                f" ({_names(names, missing)})"
            )
        return {name: averaged[name] for name in names}
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(shadow, list) or not all(isinstance(v, Tensor) for v in shadow):
        raise InputError(
            f"{path}: no list of tensors ema.shadow_params, nor a state dict ema; use_ema=False"
            " (--raw-weights) reads model"
        )
    if len(shadow) != len(names):
        raise InputError(
            f"{path}: ema.shadow_params has {len(shadow)} tensors, but {source} has"
            f" {len(names)} parameters; as many needed"
        )
    return dict(zip(names, shadow, strict=True))


def _plain_names(tensors: Mapping[str, Tensor]) -> Weights:
    """Without what DataParallel and torch.compile put before each name."""
    return {re.sub(r"^((module|_orig_mod)\.)+", "", str(k)): v for k, v in tensors.items()}


def _names(order: Iterable[str], chosen: Iterable[str]) -> str:
    """The chosen names in the given order, the first few of them when there are many."""
    names = [str(name) for name in order if name in set(chosen)]
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
