"""The costs of a search as a file, from which a search that stopped goes on.

An ``.npz`` with the sum so far (`CostSum.state`), what it depends on (`CostKey`), and, for those
who read it without this package, the costs and their standard errors.
"""

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from boss_core.costs.matrix import CostSum
from boss_core.errors import InputError
from boss_core.io.files import ALTERED, is_of_the_disk, replacing
from boss_core.ode.noise import NoiseSource
from boss_core.ode.timesteps import GRIDS, Times

SAVE_INTERVAL = 30.0  # seconds of a long search that a power cut may cost


@dataclass(frozen=True)
class CostKey:
    """What a cost matrix depends on, but for the number of samples.

    teacher_hash: of the weights; None where nothing is known to tell the network by.
    grid, spacing: the steps of the fine grid and their kind, of `boss_core.ode.timesteps.GRIDS`.
    seed: of noise and labels (`boss_core.ode.noise.COSTS` is added to it).
    shape: of a sample, as ``3x32x32``; None for a pipeline.
    conditions: a hash of a pipeline's prompts, guidance and size; of a network with classes, of how
        often each is drawn.
    reference: the solver of the fine trajectories.
    noise: how samples get their noise from the seed; files of before it have another.
    """

    teacher_hash: str | None
    grid: int
    spacing: str
    seed: int
    shape: str | None = None
    conditions: str | None = None
    reference: str = "euler"
    noise: str = "offset"

    @property
    def timesteps(self) -> Times:
        """The fine grid, (grid + 1,)."""
        return GRIDS[self.spacing](self.grid)

    def empty_sum(self, device: torch.device | str = "cpu") -> CostSum:
        """A sum to begin with."""
        return CostSum(self.timesteps, device, reference=self.reference)


def network_key(
    source: NoiseSource,
    teacher_hash: str | None,
    grid: int,
    *,
    spacing: str = "uniform",
    reference: str = "euler",
) -> CostKey:
    """That of the costs of a network on noise of this source."""
    frequencies = None
    if source.frequencies is not None:
        frequencies = hashlib.sha256(json.dumps(source.frequencies).encode()).hexdigest()
    return CostKey(
        teacher_hash,
        grid,
        spacing,
        int(source.seed),
        shape="x".join(map(str, source.shape)),
        conditions=frequencies,
        reference=reference,
    )


def write_costs(path: Path, key: CostKey, total: CostSum) -> None:
    """Write a sum of at least one trajectory, whole or not at all."""
    matrix = total.result()
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            search=json.dumps(asdict(key)),
            cost=matrix.cost,
            standard_error=matrix.standard_error,
            **total.state(),  # type: ignore[arg-type]
        )


def read_costs(path: Path, device: torch.device | str = "cpu") -> tuple[CostKey, CostSum]:
    """What `write_costs` wrote; InputError for another file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            # What a file does not name is what there was before there were others.
            found = {"reference": "euler", "noise": "rows"} | json.loads(str(file["search"]))
            total = CostSum.from_state(file, device)
            return _key_of(found, total), total
    except (*ALTERED, KeyError, TypeError, AttributeError, MemoryError) as error:
        if is_of_the_disk(error):
            raise
        # numpy explains some of them in paragraphs.
        why = str(error).splitlines()[:1]
        raise InputError(f"{path}: not the costs of a search ({''.join(why)})") from error


def _key_of(found: dict[str, Any], total: CostSum) -> CostKey:
    """The key of these fields; ValueError unless it is one, and that of the sum."""
    key = CostKey(**found)
    for name, value in found.items():
        kinds = (int,) if name in ("grid", "seed") else (str, type(None))
        if type(value) not in kinds:
            raise ValueError(f"search: {name} is {value!r:.60}")
    steps = len(total.timesteps) - 1
    if key.grid != steps or key.reference != total.reference or key.spacing not in GRIDS:
        raise ValueError(
            f"search: a {key.spacing} grid of {key.grid} steps by {key.reference}, but the costs"
            f" are of {steps} steps by {total.reference}"
        )
    if not np.allclose(key.timesteps, total.timesteps, rtol=0, atol=1e-12):
        raise ValueError(f"timesteps: not those of a {key.spacing} grid of {steps} steps")
    return key


def read_own_costs(path: Path, key: CostKey, device: torch.device | str = "cpu") -> CostSum:
    """The sum to go on from: that of the file, or an empty one where there is none.

    InputError when the file holds the costs of another search, naming what differs.
    """
    if not path.exists():
        return key.empty_sum(device)
    try:
        found, total = read_costs(path, device)
    except InputError as error:
        raise InputError(f"{error}; remove it") from error
    for name, value in sorted(asdict(key).items(), key=lambda field: field[0] != "noise"):
        there = getattr(found, name)
        if name == "noise" and there != value:
            raise InputError(
                f"{path}: the costs of an earlier version, which drew other noise from a seed;"
                " another --out, or remove the file"
            )
        if there != value:
            raise InputError(
                f"{path}: the costs of another search: {name} is {shortened(there)} there and"
                f" {shortened(value)} now; another --out, or remove the file"
            )
    return total


def shortened(value: object) -> str:
    """A hash by its first digits, as it is shown to people."""
    text = str(value)
    return text[:12] if len(text) == 64 else text


class CostSaver:
    """Saves what a search has measured: now and then, and whatever ends it."""

    def __init__(self, path: Path, key: CostKey, total: CostSum) -> None:
        self.path, self.key, self.total = path, key, total
        self.saved, self.last = total.samples, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def save_now_and_then(self) -> None:
        """To be called after each batch."""
        if time.monotonic() - self.last > SAVE_INTERVAL:
            self._write()

    def __exit__(self, *_: object) -> None:
        if self.total.samples > self.saved:
            self._write()

    def _write(self) -> None:
        write_costs(self.path, self.key, self.total)
        self.saved, self.last = self.total.samples, time.monotonic()
