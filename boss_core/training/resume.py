"""Checkpoints of a training that is under way, from which a killed run goes on.

One safetensors file each, named after its step: the tensors, and in its metadata the curve so far
and the fingerprint of the run. A run only ever goes on from a checkpoint of its own.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from boss_core.io.files import replacing

_KEPT = 2
_CHUNK = 2**26  # bytes hashed at once


@dataclass(frozen=True)
class Checkpoints:
    """Where a training keeps its checkpoints, and what makes it this training.

    folder: of this training alone.
    every: steps between two checkpoints; a run that is no longer than that has none.
    run: what else the result depends on, as JSON can hold it: seed, schedule, ...
    data: the arrays that it trains on; their content counts.
    say: is told which checkpoint is used, and which ones are not and why.
    """

    folder: Path
    every: int
    run: Mapping[str, Any]
    data: Sequence[NDArray] = ()
    say: Callable[[str], None] = print

    def exist(self) -> bool:
        """Whether there is any, of this run or another."""
        return bool(self._found())

    def fingerprint(self, settings: Mapping[str, Any], start: Mapping[str, Tensor]) -> str:
        """The hash of all that a run depends on, with the weights ``start``."""
        digest = hashlib.sha256()
        for name, tensor in start.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(_bytes(tensor.detach().cpu()))
        for array in self.data:
            digest.update(f"{array.dtype} {array.shape}\n".encode())
            rows = max(1, _CHUNK // max(1, array[:1].nbytes))
            for first in range(0, len(array), rows):
                digest.update(np.ascontiguousarray(array[first : first + rows]).data)
        digest.update(json.dumps([settings, self.run], sort_keys=True).encode())
        return digest.hexdigest()

    def save(
        self, step: int, fingerprint: str, state: Mapping[str, Tensor], curve: Sequence[Any]
    ) -> None:
        """Write the state after ``step`` steps, whole or not at all, and drop all but the last
        two of this run. Where it cannot be written, as to a full disk, a line says so, and those
        before it stay."""
        tensors = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in state.items()
        }
        own = [path for path in self._found() if _fingerprint(path) == fingerprint]
        path = self.folder / f"{step:09d}.safetensors"
        try:
            with replacing(path) as temporary:
                metadata = {"fingerprint": fingerprint, "curve": json.dumps(curve)}
                save_file(tensors, temporary, metadata)
            kept = [path, *(other for other in own if other != path)][:_KEPT]
            for other in self.folder.iterdir():
                if other not in kept:
                    other.unlink()
        except (SafetensorError, OSError) as error:  # the first is the library's for a full disk
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            self.say(f"{path}: no checkpoint ({why}); the training goes on without it")

    def load(
        self, fingerprint: str, state: Mapping[str, Tensor]
    ) -> tuple[int, list[dict[str, float]]]:
        """Fill the tensors of ``state`` from the last whole checkpoint of this run; the number of
        steps that it had done, and their curve. (0, []) and nothing filled where there is none."""
        for path in self._found():
            try:
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata() or {}
                    if metadata.get("fingerprint") != fingerprint:
                        self.say(f"{path}: of another run (settings, start or data); passed over")
                        continue
                    tensors = {name: file.get_tensor(name) for name in state}
            except (SafetensorError, OSError) as error:
                self.say(f"{path}: truncated or altered ({error}); passed over")
                continue
            with torch.no_grad():
                for name, tensor in state.items():
                    tensor.copy_(tensors[name])
            step = int(path.stem)
            self.say(f"{path}: going on after step {step}")
            return step, json.loads(metadata["curve"])
        return 0, []

    def remove(self) -> None:
        """What the training led to is stored: forget how it went."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        """The last first."""
        return sorted(self.folder.glob("[0-9]*.safetensors"), reverse=True)


def _fingerprint(path: Path) -> str | None:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("fingerprint")
    except (SafetensorError, OSError):
        return None


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
