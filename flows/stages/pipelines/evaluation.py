"""Samples of a diffusers pipeline and of its students: compared with the teacher's own, and with
real images where there are some."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from boss_core.errors import InputError
from boss_core.evaluation.comparison import Estimate
from boss_core.evaluation.frechet import image_hash
from boss_core.interop.pipeline_sampling import sample_pipeline
from boss_core.io.files import new_array, replacing_folder
from boss_core.ode.noise import EVALUATION, seed_for
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import Times, uniform
from flows import paths
from flows.config import Params
from flows.measure.energy import measured
from flows.progress import progress
from flows.records.extractor import read_instruments
from flows.records.json_files import read_images, read_json
from flows.report.image_grid import COLUMNS, write_grid
from flows.search.refusals import pipeline_refusals
from flows.stages.evaluation import Found, compared, hashes
from flows.stages.pipelines.opened import as_parameters, open_teacher, read_card
from flows.stages.pipelines.pictures import SHOWN, frames, pictures, thumbnails
from flows.straighten.teacher import PipelineTeacher

# In samples/teacher: the teacher's images, their features, and the latents of its first samples.
REFERENCE, FEATURES, LATENTS = "reference.npy", "features", "latents.safetensors"
COMPARED = 256  # samples whose latents are compared with the teacher's


@dataclass(frozen=True)
class Made:
    """Samples. images: uint8 (N, 3, H, W), of films the middle frames. shown: uint8
    (M, F, 3, H, W), frames of the first ones. latents: float32 on the CPU, of the first
    `COMPARED`. evaluations: of all networks for a sample."""

    images: NDArray[np.uint8]
    shown: NDArray[np.uint8]
    latents: Tensor
    evaluations: float


class PipelineEvaluation:
    """Everything that the variants of one evaluation share: pipeline, references, what measures.

    folder: of the teacher's samples, those of `sample_reference`."""

    def __init__(self, params: Params, teacher: PipelineTeacher, folder: Path) -> None:
        self.params, self.teacher, self.folder = params, teacher, folder
        self.instruments = read_instruments(params.evaluate.judges)
        self.real, self.frames = _real_images(params), read_card().frames
        if not (folder / REFERENCE).is_file():
            raise InputError(f"{folder / REFERENCE}: no such file; `dvc repro` makes it")
        self.reference = np.load(folder / REFERENCE, mmap_mode="r")

    @property
    def provenance(self) -> dict[str, Any]:
        """What stands beside every value: what was compared with what, and how much of it."""
        found = {
            "samples": self.params.evaluate.samples,
            "reference": "teacher",
            "reference_samples": len(self.reference),
            # Of images all of them is compared, of which nothing need be said.
            **(
                {}
                if self.frames == 1
                else {
                    "compared": f"frame {self.frames // 2 + 1} of"
                    f" {self.frames}, the middle one of each film"
                }
            ),
            **hashes(self.instruments),
            "reference_hash": image_hash(self.reference),
        }
        if self.real is not None:
            found["real_reference_hash"] = image_hash(self.real)
        return found

    def of(
        self,
        steps: Schedule | Times,
        label: str,
        grid: Path,
        *,
        guided: bool = True,
        keep: bool = False,
    ) -> Found:
        """What the pipeline as it is now measures on these steps.

        All variants start from the same noise, with the same prompts. grid: the picture to write.
        keep: these are the teacher's own, and their latents those that others are compared with.
        """
        params, settings = self.params, self.params.evaluate
        count = settings.samples
        with (
            progress(label, count, "samples") as advance,
            measured(self.teacher.device, count) as usage,
        ):
            made = _sample(self.teacher, params, steps, range(count), advance, guided=guided)
        columns = made.shown.shape[1]  # a row for each film
        write_grid(
            grid, thumbnails(made.shown.reshape(-1, *made.images.shape[1:])),
            columns=COLUMNS if columns == 1 else columns,
        )  # fmt: skip
        metrics, estimates = self._compared(made.images, self.reference, self.folder / FEATURES)
        if keep:
            save_file({"latents": made.latents.contiguous()}, self.folder / LATENTS)
        there = load_file(self.folder / LATENTS)["latents"]
        # The mean over samples of the squared distance to the teacher's from the same noise.
        apart = (made.latents - there).square().flatten(1).sum(dim=1)
        metrics["latent_distance"] = float(apart.mean())
        metrics["evaluations"] = made.evaluations
        if self.real is not None:
            real = self._compared(made.images, self.real, None)
            metrics |= {f"real_{name}": value for name, value in real[0].items()}
            estimates |= {f"real_{name}": value for name, value in real[1].items()}
        return Found(metrics, estimates, usage)

    def _compared(
        self, images: NDArray[np.uint8], reference: NDArray[np.uint8], cache: Path | None
    ) -> tuple[dict[str, float], dict[str, Estimate]]:
        """By all that measure. cache: of the reference's features, None for real images."""
        metrics: dict[str, float] = {}
        estimates: dict[str, Estimate] = {}
        for instrument in self.instruments:
            by_one = compared(
                self.params, images, reference, instrument, self.teacher.device, cache=cache
            )
            metrics |= by_one[0]
            estimates |= by_one[1]
        return metrics, estimates


def sample_reference(params: Params) -> tuple[dict[str, Any], Found]:
    """samples/teacher: the teacher's own images on the whole fine grid, which everything is
    compared with, and what others of it measure: the floor. With the provenance."""
    teacher, _ = open_teacher(params, batch_size=params.evaluate.batch_size)
    with replacing_folder(paths.samples("teacher")) as folder:
        _sample_reference(params, teacher, folder)
        evaluation = PipelineEvaluation(params, teacher, folder)
        grid = params.cost.grid
        found = evaluation.of(uniform(grid), f"floor: K = {grid}", folder / "fine.png", keep=True)
        return evaluation.provenance | {"teacher_hash": evaluation.teacher.hash}, found


def _real_images(params: Params) -> NDArray[np.uint8] | None:
    """Those of the data, where there are any."""
    if not read_json(paths.DATA / "card.json")["train"]:
        return None
    images, count = read_images("train").images, params.evaluate.reference_samples
    if len(images) < count:
        raise InputError(
            f"params.yaml: evaluate.reference_samples: {count}, but the training data has"
            f" {len(images)} images; at most that many needed"
        )
    return images[:count]


def _sample_reference(params: Params, teacher: PipelineTeacher, folder: Path) -> None:
    """The teacher's images from other noise than those that are compared with them."""
    of, grid = params.evaluate, params.cost.grid
    first, count = of.samples, of.reference_samples
    shape = read_card().image_shape
    with (
        new_array(folder / REFERENCE, (count, *shape), np.uint8) as images,
        progress("floor: reference", count, "samples") as advance,
    ):
        for part in teacher.held_out.parts(range(first, first + count), of.batch_size):
            made = _sample(teacher, params, uniform(grid), part, advance, guided=True)
            images[part.start - first : part.stop - first] = made.images


# Its arguments are what one set of samples differs by from the next.
def _sample(
    teacher: PipelineTeacher, params: Params, steps: Schedule | Times, samples: range,
    advance: Any, *, guided: bool,
) -> Made:  # fmt: skip
    """Samples of these numbers: guided as the teacher is, or without, as students are."""
    times = steps.timesteps if isinstance(steps, Schedule) else steps
    solver = steps.solver if isinstance(steps, Schedule) else "euler"
    weights = steps.weights if isinstance(steps, Schedule) else None
    offset = seed_for(EVALUATION, params.seed)
    images: list[NDArray[np.uint8]] = []
    shown: list[NDArray[np.uint8]] = []
    latents: list[Tensor] = []
    evaluations = 0.0
    for part in teacher.held_out.parts(samples, params.evaluate.batch_size):
        if guided:
            call = teacher.held_out.call(part, seed=offset)
        else:
            call = teacher.student_call(teacher.held_out, part, seed=offset)
        with (
            as_parameters(batch_size="evaluate.batch_size"),
            pipeline_refusals(teacher.pipeline),
            torch.no_grad(),
        ):
            found = sample_pipeline(teacher.pipeline, times, call, solver=solver, weights=weights)
        images.append(pictures(found.output))
        if sum(films.shape[0] * films.shape[1] for films in shown) < SHOWN:
            films = frames(found.output)
            if not shown or films.shape[1:] == shown[0].shape[1:]:  # rows may differ in length
                shown.append(films)
        if sum(map(len, latents)) < COMPARED:
            latents.append(found.latents.cpu())
        evaluations += found.evaluations * len(part)
        advance(len(part))
    _check_sizes(images)
    first = torch.cat(latents)[:COMPARED]
    films = np.concatenate(shown)
    films = films[: max(1, SHOWN // films.shape[1])]
    return Made(np.concatenate(images), films, first, evaluations / len(samples))


def _check_sizes(images: list[NDArray[np.uint8]]) -> None:
    sizes = {tuple(each.shape[1:]) for each in images}
    if len(sizes) > 1:
        raise InputError(
            "params.yaml: teacher.pipeline.prompts: its rows ask for images of several sizes"
            f" ({', '.join(map(str, sorted(sizes)))}), which cannot be compared; one size needed"
        )
