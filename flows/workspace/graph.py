"""The graph of stages as DVC has it, and what of it is out of date.

`dvc.yaml` is the only definition: nothing here keeps a list of stages or a fingerprint of its own.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from boss_core.errors import InputError


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml.

    name: DVC's address, ``teacher`` or ``finetune@6``.
    needs: the stages whose outputs it reads.
    computes: it uses a GPU where there is one (``meta: {computes: true}`` in dvc.yaml).
    trains: it uses one for each of ``compute.processes`` (``meta: {trains: true}``).
    """

    name: str
    needs: frozenset[str]
    computes: bool
    trains: bool

    @property
    def of_matrix(self) -> bool:
        """Whether it is one of several that differ by a parameter, such as the budget."""
        return "@" in self.name


def read_stages(root: Path, targets: Sequence[str] = ()) -> list[Stage]:
    """The stages that the targets need, themselves included, each after those it needs.

    targets: addresses, or names of a matrix for all of it (``evaluate``); none: everything.
    InputError for a target that is none, and for a dvc.yaml that DVC refuses.
    """
    from dvc.repo import Repo

    with _refusals("dvc.yaml: "), Repo(str(root)) as repo:
        graph = repo.index.graph
        found = {
            address(stage.addressing, root): Stage(
                address(stage.addressing, root),
                frozenset(address(n.addressing, root) for n in graph.successors(stage)),
                bool((stage.meta or {}).get("computes")),
                bool((stage.meta or {}).get("trains")),
            )
            for stage in graph
        }
    wanted: list[str] = []
    for target in targets or found:
        matches = [name for name in found if target in (name, name.split("@")[0])]
        if not matches:
            known = dict.fromkeys(name.split("@")[0] for name in found)
            raise InputError(f"target: {target!r}; a stage needed, one of {', '.join(known)}")
        wanted += matches
    ordered: dict[str, Stage] = {}

    def add(name: str) -> None:
        if name not in ordered:
            for need in sorted(found[name].needs):
                add(need)
            ordered[name] = found[name]

    for name in wanted:
        add(name)
    return list(ordered.values())


def out_of_date(root: Path) -> set[str]:
    """The stages that DVC would not skip as they stand: a dependency, a parameter, the command
    or an output is not what dvc.lock records. Where another process is writing to one, all.
    InputError for what DVC refuses to read."""
    from dvc.lock import LockError
    from dvc.repo import Repo

    with _refusals(), Repo(str(root), _wait_for_lock=True) as repo:
        try:
            return {address(name, root) for name in repo.status()}
        except LockError:
            return {address(stage.addressing, root) for stage in repo.index.graph}


@contextmanager
def _refusals(what: str = "") -> Iterator[None]:
    """What DVC refuses, as an InputError: its own words in a line, ``what`` before them."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        raise InputError(f"{what}{' '.join(str(error).split())}") from error


def address(name: str, root: Path) -> str:
    """DVC's name of a stage as seen from ``root``: it gives it as seen from here."""
    path, colon, stage = name.rpartition(":")
    if colon:
        path = os.path.relpath(path, root)
        return stage if path == "dvc.yaml" else f"{path}:{stage}"
    return os.path.relpath(name, root) if name.endswith(".dvc") else name
