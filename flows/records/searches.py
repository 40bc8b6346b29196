"""What params.yaml, or the options of `boss schedule`, ask of a search."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from boss_core.errors import InputError
from boss_core.search.distances import (
    Distance,
    detail_error,
    energy,
    feature_frechet,
    sliced_wasserstein,
)
from boss_core.search.settings import SearchSettings
from flows.config import ScheduleSearch


def search_settings(wanted: ScheduleSearch) -> SearchSettings:
    """The settings of the library's search."""
    return SearchSettings(
        solver=wanted.solver,
        order=wanted.order,
        objective=wanted.objective,
        gamma=wanted.gamma,
        distance=wanted.distance,
        samples=wanted.samples,
        batch_size=wanted.batch_size,
        lpips=Path(wanted.lpips),
    )


def distance_named(
    name: str, extractor: Path, batch_size: int, on: torch.device
) -> Callable[[Tensor], Distance]:
    """What makes the distance of that name, of ``schedule.distance``, to given samples.

    extractor: the folder of the one behind ``features``, which sees so many samples at once.
    """
    match name:
        case "sliced_wasserstein":
            return sliced_wasserstein
        case "energy":
            return energy
        case "detail":
            return detail_error
        case "features":
            from boss_core.evaluation.extractors import feature_function
            from flows.records.extractor import read_extractor

            features = feature_function(read_extractor(extractor), batch_size, on)
            return partial(feature_frechet, features=features)
        case _:
            raise InputError(
                f"distance: {name!r}; sliced_wasserstein, energy, detail or features needed"
            )


def say(line: str) -> None:
    """A line of a search, at once, also into a log."""
    print(line, flush=True)
