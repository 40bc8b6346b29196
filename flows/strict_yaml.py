"""YAML that means the same to everyone who reads it.

PyYAML, which reads the parameters here and in most tools, knows YAML 1.1; DVC, which decides by
them what is out of date, YAML 1.2. ``010`` is 8 to one and 10 to the other.
"""

import reprlib
from pathlib import Path
from typing import Any

import yaml

from boss_core.errors import InputError

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60

# What the readers raise, beside their own errors, for `!!bool 7` and `!!timestamp x`.
_MISFITS = (LookupError, AttributeError, TypeError, ArithmeticError)


def shown(value: Any) -> str:
    """A value as Python writes it, in part where that would be long."""
    try:
        return _SHOWN.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"{type(value).__name__} of thousands of digits"


def read_mapping(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file; InputError where it is none, or where a value means something
    else to DVC."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; run this in the project's folder") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; a file that can be read needed") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not in UTF-8 (byte {error.start}); that needed") from error
    try:
        return _read(text, path)
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply to be read; NAME: VALUE needed") from error


def _read(text: str, path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of numbers and dates
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except _MISFITS as error:
        raise InputError(f"{path}: not YAML: a value does not fit its tag ({error})") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else f"{shown(content)} found"
        raise InputError(f"{path}: {found}; parameters as NAME: VALUE needed")
    _check_same(content, _as_dvc_reads(text, path), path, (), set())
    return content


def _as_dvc_reads(text: str, path: Path) -> Any:
    # DVC's own reader, with its settings, but without the second that DVC takes to import.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(text) or {}
    except _MISFITS as error:
        raise InputError(
            f"{path}: not YAML to DVC: a value does not fit its tag ({error})"
        ) from error
    except (YAMLError, ValueError) as error:
        why = " ".join(str(error).split("\n\n")[0].split())
        raise InputError(f"{path}: not YAML to DVC: {why}") from error


def _check_same(
    here: Any, dvc: Any, path: Path, where: tuple[str, ...], seen: set[tuple[int, int]]
) -> None:
    if (id(here), id(dvc)) in seen:  # an alias: looked at already, or inside itself
        return
    seen.add((id(here), id(dvc)))
    if isinstance(here, dict) and isinstance(dvc, dict) and list(here) == list(dvc):
        for key, value in here.items():
            _check_same(value, dvc[key], path, (*where, str(key)), seen)
    elif isinstance(here, list) and isinstance(dvc, list) and len(here) == len(dvc):
        for index, (one, other) in enumerate(zip(here, dvc, strict=True)):
            _check_same(one, other, path, (*where, str(index)), seen)
    elif type(here) is not type(dvc) or (here != dvc and here == here):
        raise InputError(
            f"{path}: {'.'.join(where) or 'names'}: {shown(here)} in YAML 1.1, but {shown(dvc)} in"
            f" YAML 1.2, as DVC reads it; {_plain(here, dvc)} needed"
        )


def _plain(here: Any, dvc: Any) -> str:
    """How to write what was probably meant so that both read the same."""
    if isinstance(here, bool):
        return f"{str(here).lower()}, or '{dvc}' in quotes,"
    if isinstance(dvc, float):
        mantissa, exponent, power = repr(dvc).partition("e")
        if exponent and "." not in mantissa:
            mantissa += ".0"
        return f"{mantissa}{exponent}{power}"
    return "a number without a leading 0 or colons, or a text in quotes,"
