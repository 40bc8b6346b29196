"""What an experiment is called that was given no name: by what it changes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from flows.workspace.integrity import COPIES
from flows.workspace.process import git

LONGEST = 60  # characters; a name is a column's title and a folder
_OTHER = re.compile(r"[^A-Za-z0-9.]+")
# Of an address with a user or a password nothing is said: a name is there for all to see.
_SECRET = re.compile(r"://\S*@|[?&]password=")


def named_after(root: Path, overrides: Sequence[str]) -> str:
    """``budgets=[4,6]`` gives ``budgets-4-6``; of several changes each. A parameter has as much of
    its dotted name as tells it from all others."""
    try:
        content = yaml.safe_load((root / "params.yaml").read_bytes())
    except (OSError, yaml.YAMLError):
        content = {}
    known = set(_dotted(content)) if isinstance(content, dict) else set()
    parts = []
    for change in overrides:
        key, _, value = change.partition("=")
        said = "" if _SECRET.search(value) else _OTHER.sub("-", value).strip("-.")
        parts.append(f"{_short(key, known)}-{said}" if said else _short(key, known))
    return tidy("_".join(parts)) or "changed"


def tidy(text: str) -> str:
    """As a name has to be: letters and digits first, and no end that git has a use for."""
    kept = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", text))
    return kept.lstrip("._-")[:LONGEST].rstrip("._-").removesuffix(".lock")


def _dotted(block: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in block.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{above}{key}.")


def _short(key: str, known: set[str]) -> str:
    """The shortest end of a dotted name that no other parameter has."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if not any(other != key and f".{other}".endswith(f".{end}") for other in known):
            return end
    return key


def unused_name(root: Path, name: str) -> str:
    """The same, or with a number behind it where the last commit has an experiment of that name, or
    a run of that name is at work."""
    number = 1
    while True:
        candidate = name if number == 1 else f"{name}-{number}"
        if not experiment_exists(root, candidate) and not _at_work(root, candidate):
            return candidate
        number += 1


def experiment_exists(root: Path, name: str) -> bool:
    """Whether the last commit has an experiment of that name."""
    commit = git(root, "rev-parse", "HEAD").stdout.strip()
    known = f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"  # where DVC has those of a commit
    return not git(root, "show-ref", "--verify", "--quiet", known, check=False).returncode


def _at_work(root: Path, name: str) -> bool:
    lock = root / COPIES / f"{name}.lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
