"""Parameters drawn at random, from the ranges of the schema and from beyond them, and data of many
kinds for them: for the property that what `boss check` lets through ends no stage with an error."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from PIL import Image
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from boss_core.checkpoints.folder import save_checkpoint
from boss_core.networks.unet import UNet, UNetConfig
from flows.config import Params
from tests.helpers.checkout import ROOT
from tests.helpers.rectified_flow import settings

Draw = np.random.Generator

# A pipeline that takes a second or two, which every draw changes.
TINY: dict[str, Any] = {
    "budgets": [1, 3],
    "device": "cpu",
    "compute.checkpoint_every": 2,
    "data.test_fraction": 0.2,
    "features.width": 8,
    "features.features": 4,
    "features.training.iterations": 2,
    "features.training.batch_size": 8,
    "teacher.base_channels": 8,
    "teacher.channel_multipliers": [1, 2],
    "teacher.training.iterations": 2,
    "teacher.training.batch_size": 4,
    "cost.grid": 6,
    "cost.samples": 12,
    "cost.max_samples": 24,
    "cost.batch_size": 4,
    "schedule.samples": 20,
    "schedule.batch_size": 64,
    "trajectories.samples": 10,
    "trajectories.batch_size": 6,
    "finetune.training.iterations": 2,
    "finetune.training.batch_size": 4,
    "evaluate.samples": 12,
    "evaluate.reference_samples": 10,
    "evaluate.batch_size": 7,
    "evaluate.kid_subset_size": 4,
    "evaluate.judges": [],
}
# Values that cost nothing but time: drawn from here and from beyond the range, never from its end.
SMALL: dict[str, list[Any]] = {
    "iterations": [1, 2, 3],
    "batch_size": [1, 2, 3, 7, 64],
    "processes": [1],  # others start processes of their own
    "checkpoint_every": [1, 2, 1000],
    "image_size": [None, 1, 2, 3, 4, 5, 7, 8, 12],
    "width": [8, 16],
    "features": [2, 3, 9],
    "base_channels": [8, 16],
    "channel_multipliers": [[1], [1, 1], [2, 1], [1, 2, 2], [3], [1, 1, 1, 1]],
    "attention_sizes": [[], [4], [8, 2, 6], [0], [-1], [3]],
    "blocks": [1, 2],
    "grid": [2, 3, 4, 5, 7, 9],
    "samples": [2, 3, 4, 5, 8, 20, 21, 23],
    "max_samples": [2, 3, 9],
    "reference_samples": [2, 3, 4, 5, 20, 40],
    "kid_subset_size": [2, 3, 4, 5, 12],
    "lora_rank": [1, 4, 100],
    "warmup": [0, 1, 2, 100],
    "budgets": [[1], [2], [6], [1, 2, 3], [3, 1], [5, 2], [7]],
    "seed": [0, 1, 2**31, 2**32 - 1],
    "test_fraction": [0.01, 0.1, 0.5, 0.9, 0.99],
    "validation_fraction": [0.01, 0.3, 0.8, 0.99],
    "learning_rate": [1e-5, 1e-3],  # larger ones may diverge, which no check can know
    "weight_decay": [0.0, 0.5, 0.99],
    "gradient_clip": [1e-6, 1.0, 1e6],
    "device": ["auto", "cpu"],
    "compile": [False],  # takes a compiler and a minute
    "extractor": ["classifier"],  # Inception's weights are not here, and imagenet is slow
    "judges": [[], ["second_classifier"]],
    "objective": ["auto", "l2_squared", "l2", "minimax", "gits", "oss", "refine"],
    "path": ["inputs"],
    "lpips": ["inputs"],
    "prompts": ["inputs"],
    "lora": ["inputs"],
    "uri": [None],
    "dataset": [None],
    "config": [None, "inputs/config.json"],
}  # fmt: skip
PATHS = {
    "teacher.path": ["inputs/grey_teacher", "inputs/teacher_of_classes", "inputs/wide_teacher"],
}
# What somebody may write for anything.
ODD = [
    None, True, -1, 0, 0.5, 1, 2, "", "x", [], [0], [1, 1], {}, 10**9 + 1, 10**30, -(10**30),
    float("nan"), float("inf"), 1e-300, "auto", [[1]], [None],
]  # fmt: skip


def write_data(folder: Path) -> list[dict[str, Any]]:
    """Small data sets of many kinds in ``inputs/`` of a folder; the parameters that name them."""
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    draw = np.random.default_rng(0)
    arrays = {
        "grey": ((60, 8, 8), draw.integers(3, size=60)),
        "colour": ((60, 8, 8, 3), draw.integers(2, size=60)),
        "wide": ((60, 4, 8, 3), draw.integers(3, size=60)),
        "high": ((40, 12, 6), draw.integers(3, size=40)),
        "odd": ((40, 7, 5), draw.integers(3, size=40)),
        "tiny": ((40, 2, 2), draw.integers(3, size=40)),
        "dots": ((40, 1, 1), draw.integers(3, size=40)),
        "one_class": ((40, 8, 8), np.zeros(40, int)),
        "sevens": ((40, 8, 8), np.full(40, 7)),
        "gaps": ((40, 8, 8), draw.choice([2, 5, 11], 40)),
        "few": ((9, 8, 8), np.arange(9) % 2),
        "two": ((2, 8, 8), np.arange(2)),
        "many": ((300, 4, 4), np.arange(300)),
        "identifiers": ((40, 8, 8), 29054191 + np.arange(40)),
        "unlabelled": ((60, 8, 8), None),
    }
    found: list[dict[str, Any]] = [{"data.source": "digits"}]
    for name, (shape, labels) in arrays.items():
        images = draw.integers(256, size=shape, dtype=np.uint8)
        content = {"images": images} | ({} if labels is None else {"labels": labels})
        np.savez(inputs / f"{name}.npz", **content)
        found.append({"data.source": "npz", "data.path": f"inputs/{name}.npz"})
    np.savez(inputs / "black.npz", images=np.zeros((40, 8, 8), np.uint8), labels=np.arange(40) % 2)
    found.append({"data.source": "npz", "data.path": "inputs/black.npz"})
    sizes = {"photographs": [(12, 8)], "mixed": [(12, 8), (9, 9)]}
    for name, of in sizes.items():
        for k in range(40):
            path = inputs / name / f"class{k % 3}" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            width, height = of[k % len(of)]
            pixels = draw.integers(256, size=(height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        found.append({"data.source": "folder", "data.path": f"inputs/{name}"})
    shape = {"channels": 1, "base_channels": 8, "channel_multipliers": (1,), "blocks": 1}
    shape |= {"image_size": 8, "attention_sizes": ()}
    for name, other in (
        ("grey_teacher", {}), ("teacher_of_classes", {"classes": 4}),
        ("wide_teacher", {"image_size": 4, "image_width": 8, "channels": 3}),
    ):  # fmt: skip
        save_checkpoint(inputs / name, UNet(UNetConfig(**(shape | other))))
        brought = {"teacher.source": "checkpoint", "teacher.path": f"inputs/{name}"}
        kind = "wide" if "wide" in name else "grey"
        found.append({"data.source": "npz", "data.path": f"inputs/{kind}.npz"} | brought)
    (inputs / "config.json").write_text(json.dumps(settings("ncsnpp")))
    return found


def draw_parameters(draw: Draw, data: list[dict[str, Any]]) -> dict[str, Any]:
    """The changes, by their dotted names, to `TINY`: data, and up to six parameters."""
    change = dict(data[draw.integers(len(data))])
    fields = list(_fields(Params, ()))
    for index in draw.choice(len(fields), size=draw.integers(7), replace=False):
        name, field = fields[index]
        if not name.startswith(("data.source", "data.path", "tracking.uri")):
            change[name] = _value(draw, name, field)
    return change


def write_parameters(path: Path, change: dict[str, Any]) -> None:
    """The project's params.yaml with the changes."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    paths = {
        "data.path", "features.path", "teacher.path", "teacher.pipeline.lora",
        "teacher.pipeline.prompts", "schedule.lpips",
    }  # fmt: skip
    for name, value in (TINY | dict.fromkeys(paths, "inputs") | change).items():
        *blocks, last = name.split(".")
        block = content
        for part in blocks:
            block = block[part]
        block[last] = value
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def _fields(model: type[BaseModel], above: tuple[str, ...]) -> Any:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, (*above, name))
        else:
            yield ".".join((*above, name)), field


def _value(draw: Draw, name: str, field: FieldInfo) -> Any:
    """Mostly one that may serve; else one at an end of the range, beyond it, or odd."""
    last = name.rpartition(".")[2]
    kind = draw.random()
    if kind < 0.1:
        return ODD[draw.integers(len(ODD))]
    if kind < 0.25 and (ends := _ends(field)):
        return ends[draw.integers(len(ends))]
    choices = PATHS.get(name) or SMALL.get(last) or _literals(field.annotation) or _ends(field)
    if name == "finetune.methods":
        every = _literals(field.annotation)
        size = draw.integers(1, len(every) + 1)
        return [str(method) for method in draw.permutation(every)[:size]]
    return choices[draw.integers(len(choices))] if choices else ODD[draw.integers(len(ODD))]


def _ends(field: FieldInfo) -> list[Any]:
    """At the small end of the range and beyond both: the large end would take for ever."""
    whole = field.annotation is not float
    found: list[Any] = []
    for bound in field.metadata:
        match bound:
            case Ge(ge=low):
                found += [low, low - 1]
            case Gt(gt=low):
                found += [low, low - 0.5]
            case Le(le=high):
                found += [high + 1] if whole else [high * 1.01]
            case Lt(lt=high):
                found += [high] if whole else [high, 0.999 * high]
            case MultipleOf(multiple_of=step):
                found += [step + 1]
            case MinLen() | MaxLen():
                found += [[]]
    return found


def _literals(annotation: Any) -> list[Any]:
    if annotation is bool:
        return [False, True]
    found = []
    for argument in get_args(annotation):
        found += _literals(argument) if get_args(argument) else [argument]
    return [value for value in found if isinstance(value, str | bool)]
