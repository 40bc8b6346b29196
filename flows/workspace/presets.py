"""Presets: files in configs/ with the parameters of a kind of run, which `boss run --preset` and
`boss check --preset` read over params.yaml."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from boss_core.errors import InputError
from flows.config import known_parameters
from flows.strict_yaml import read_mapping
from flows.workspace.experiment_names import named_after, tidy

FOLDER = Path("configs")


def read_preset(root: Path, name: str) -> dict[str, Any]:
    """The parameters of ``configs/NAME.yaml`` by their dotted names; InputError where there is no
    such file, or where it names what is no parameter."""
    known = sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))
    if name not in known:
        there = f"one of {', '.join(known)}" if known else "a file in it"
        raise InputError(f"--preset: {name!r} is no file of {FOLDER}/; {there} needed")
    path = root / FOLDER / f"{name}.yaml"
    found = dict(_dotted(read_mapping(path)))
    for parameter in found:
        if why := known_parameters(parameter):
            raise InputError(f"{FOLDER / path.name}: {parameter}: {why}")
    return found


def preset_overrides(root: Path, names: Sequence[str]) -> list[str]:
    """What the presets change, as ``--set`` has it; of a parameter that several name, what the last
    of them says."""
    found: dict[str, Any] = {}
    for name in names:
        found |= read_preset(root, name)
    return [f"{parameter}={_written(value)}" for parameter, value in found.items()]


def named_by(root: Path, presets: Sequence[str], overrides: Sequence[str]) -> str:
    """What an experiment of these is called: ``photos64_image_size-32``."""
    parts = [*presets, *([named_after(root, overrides)] if overrides else ())]
    return tidy("_".join(dict.fromkeys(parts))) or "changed"


def _dotted(block: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in block.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value:
            yield from _dotted(value, f"{name}.")
        else:
            yield name, value


def _written(value: Any) -> str:
    """A value as Hydra reads it, which is how YAML's flow style and JSON have it."""
    return json.dumps(value, ensure_ascii=False)
