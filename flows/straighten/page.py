"""``report.html``: a student beside its teacher, in pictures and numbers, on a page of its own."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from boss_core.interop.diffusers_pipelines import sample_generators
from boss_core.io.files import write_bytes
from boss_core.ode.noise import EVALUATION, seed_for
from flows.report.media import data_uri, sound_uri
from flows.search.images import image_files
from flows.straighten.comparison import at_equal_evaluations, before_training, in_words, paired
from flows.straighten.held_out import SHOWN, Sampled, decodes
from flows.straighten.request import PipelineRequest
from flows.straighten.teacher import PipelineTeacher

GIB = 2**30
GIVEN = 256  # pixels of the longer side, at most, of an image that a sample was made from
SMALL = 128  # pixels of width below which a picture is enlarged to be seen


def write_report(
    path: Path,
    teacher: PipelineTeacher,
    asked: PipelineRequest,
    card: Mapping[str, Any],
    fine: Sampled,
    others: Sequence[Sampled],
    own: Sampled,
) -> None:
    """Write the page of one student.

    card: what ``card.json`` beside it has. fine: the teacher's samples. others: what the student's,
    own, are compared with: the guided pipeline in as many steps, then the rest.
    """
    from flows.report.plots import student_loss  # matplotlib takes a second

    template = Environment(
        loader=PackageLoader("flows.report", "."), autoescape=True, undefined=StrictUndefined
    ).get_template("student.html.j2")
    equal = at_equal_evaluations(own, others)
    beside = equal or others[0]
    html = template.render(
        card=card,
        conclusion=in_words(own, others, fine),
        rows=[_row(sampled, own, fine) for sampled in (fine, *others, own)],
        own=own,
        equal=equal,
        before=before_training(own, others),
        count=len(own.latents),
        prompts=min(len(own.latents), len(teacher.held_out.rows)),
        apart=teacher.held_out.rows != teacher.training.rows,
        decodes=decodes(teacher.pipeline),
        samples=_samples(teacher, asked.seed, (fine, beside, own)),
        columns=[fine, beside, own],
        loss=data_uri(student_loss(card["curve"]), lossless=True),
        took=_took(card["took"], teacher.device),
        settings=_settings(card, asked),
    )
    write_bytes(path, html.encode())


def _row(sampled: Sampled, own: Sampled, fine: Sampled) -> dict[str, Any]:
    """One way of sampling, in the table."""
    compared = None if sampled is own or sampled is fine else paired(own, sampled, fine)
    return {
        "title": sampled.title,
        "evaluations": sampled.evaluations,
        "seconds": sampled.seconds,
        "distance": sampled.distance(fine),
        "paired": compared,
    }


def _samples(
    teacher: PipelineTeacher, seed: int, columns: Sequence[Sampled]
) -> list[dict[str, Any]]:
    """The samples that are shown, each with its prompt, and its pictures by all of the columns."""
    fine = columns[0]
    count = min(SHOWN, len(fine.latents))
    if not all(any(sampled.shown) for sampled in columns):
        return []
    generators = sample_generators(range(count), seed_for(EVALUATION, seed))
    found = []
    for k, generator in enumerate(generators):
        row = teacher.held_out.row(k)
        cells = [
            {
                "title": sampled.title,
                "distance": None if sampled is fine else float(sampled.distances(fine)[k]),
                "pictures": [
                    {
                        "uri": data_uri(picture.image),
                        "sound": None if picture.sound is None else sound_uri(picture.sound),
                        "what": picture.what,
                        "small": picture.image.width < SMALL,
                    }
                    for picture in sampled.shown[k]
                ],
            }
            for sampled in columns
        ]
        found.append(
            {
                "prompt": row.prompt,
                "arguments": dict(row.arguments),
                "given": _given(teacher.held_out.arguments(k)),
                "seed": generator.initial_seed(),
                "cells": cells,
                # Frames of a third of the page's width would be too small to judge.
                "stacked": any(p.several for sampled in columns for p in sampled.shown[k]),
            }
        )
    return found


def _given(arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The images that a sample was made from, as of editing."""
    found = []
    for name, paths in image_files(arguments).items():
        for path in paths:
            with suppress(OSError), Image.open(path) as image:  # read when the samples were made
                image.thumbnail((GIVEN, GIVEN))
                found.append((name, data_uri(image.convert("RGB"))))
    return found


def _took(usage: Mapping[str, Any] | None, on: torch.device) -> list[tuple[str, str]]:
    """Time, memory and energy of the training, in units that people read."""
    if usage is None:
        return []
    energy = usage["energy_kwh"]
    found = [("time", _duration(usage["seconds"]))]
    if usage["images"]:
        found.append(("samples trained on", f"{usage['images']:,}"))
    found += [
        (
            f"peak memory of the {'GPU' if on.type == 'cuda' else 'process'}",
            f"{usage['peak_memory_bytes'] / GIB:,.2f} GiB",
        ),
        (
            "energy",
            "not measured: no counter here"
            if energy is None
            else f"{energy:.3g} kWh ({usage['energy_source']})",
        ),
    ]
    return found


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _settings(card: Mapping[str, Any], asked: PipelineRequest) -> list[tuple[str, str]]:
    """Everything that was set, a name and a value each."""
    training = card["training"]
    # Of a step's calls, where the options have samples; the rest is in both.
    derived = {k: v for k, v in training["settings"].items() if k not in training}
    parts = (
        card["teacher"],
        {"steps": asked.steps, "solver": asked.solver, "grid": asked.grid},
        {k: v for k, v in training.items() if k != "settings"},
        derived,
    )
    found = [(name, value) for part in parts for name, value in part.items()]
    return [(name, _plain(value)) for name, value in found if value not in (None, [], ())]


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
