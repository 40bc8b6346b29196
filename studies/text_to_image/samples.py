"""Sets of samples on disk, all of the same prompts and noise, and the calls that make them."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from boss_core.errors import InputError
from boss_core.interop.pipeline_sampling import sample_pipeline
from boss_core.io.files import replacing
from boss_core.io.pixels import to_uint8
from boss_core.ode.noise import EVALUATION, sample_noise, seed_for
from boss_core.ode.schedule import Schedule
from studies.text_to_image.autoencoder import SCALING
from studies.text_to_image.captions import SIDE, prompts
from studies.text_to_image.pipeline import CALL

FOLDER = "samples"
TEACHER = "teacher"  # the name of the set that all others are compared with


@dataclass(frozen=True)
class Made:
    """How a set of samples came about.

    kind: ``guided`` for the teacher, ``lora`` or ``full`` for students. steps: how its times were
    chosen. evaluations: of the network for a sample.
    """

    name: str
    kind: str
    steps: str
    solver: str
    budget: int
    evaluations: float
    timesteps: tuple[float, ...]
    key: str


@dataclass(frozen=True)
class Calls:
    """The arguments of the calls for samples by their numbers: prompts in turn, and noise that
    depends on the number alone. purpose: what the noise is for, of `boss_core.ode.noise`."""

    guidance: float
    seed: int
    purpose: int
    device: torch.device

    def call(self, part: range) -> dict[str, Any]:
        texts, _ = prompts(part.stop)
        seed = seed_for(self.purpose, self.seed)
        return {
            "prompt": texts[part.start :],
            "latents": _noise(part, seed).to(self.device),
            "guidance_scale": self.guidance,
            **CALL,
        }


@lru_cache(maxsize=64)  # every set of samples asks for the same
def _noise(part: range, seed: int) -> Tensor:
    return sample_noise(part, (3, SIDE, SIDE), seed)


def parts(count: int, batch_size: int) -> Iterator[range]:
    """The numbers of so many samples, a batch each."""
    for start in range(0, count, batch_size):
        yield range(start, min(start + batch_size, count))


def draw(
    pipeline: Any,
    schedule: Schedule,
    calls: Calls,
    changes: dict[str, Any],
    count: int,
    batch_size: int,
) -> tuple[Tensor, float]:
    """The final latents of so many samples, (N, 3, 32, 32) float32 on the CPU, and the network
    evaluations for each. changes: of the calls' arguments."""
    found, evaluations = [], 0.0
    for part in parts(count, batch_size):
        result = sample_pipeline(
            pipeline, schedule.timesteps, {**calls.call(part), **changes},
            solver=schedule.solver, decode=False,
        )  # fmt: skip
        found.append(result.latents)
        evaluations = result.evaluations
    return torch.cat(found).cpu(), evaluations


def evaluation_calls(guidance: float, seed: int, device: torch.device) -> Calls:
    """Those of all sets of samples."""
    return Calls(guidance, seed, EVALUATION, device)


def set_path(folder: Path, name: str) -> Path:
    """Where a set is."""
    return folder / FOLDER / f"{name}.safetensors"


def write_set(folder: Path, made: Made, latents: Tensor) -> None:
    """Latents, and the pixels that they are, with what they are of."""
    tensors = {"latents": latents.contiguous(), "images": to_uint8(latents / SCALING).contiguous()}
    path = set_path(folder, made.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"made": json.dumps(asdict(made))})


def read_made(path: Path) -> Made:
    """What a set is of; InputError for a file that is none."""
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {})["made"])
        return Made(**{**fields, "timesteps": tuple(fields["timesteps"])})
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: no set of samples ({error}); remove it") from error


def read_set(path: Path) -> tuple[Made, Tensor, NDArray[np.uint8]]:
    """A set, its latents and its images."""
    made = read_made(path)
    with safe_open(path, framework="pt") as file:
        return made, file.get_tensor("latents"), file.get_tensor("images").numpy()


def is_there(folder: Path, name: str, key: str) -> bool:
    """Whether that set is there already, of these settings; InputError where it is of others."""
    path = set_path(folder, name)
    if not path.exists():
        return False
    found = read_made(path).key
    if found != key:
        raise InputError(f"{path}: made with other settings ({found}, now {key}); another folder")
    return True
