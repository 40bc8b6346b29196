"""The extractors that the features stage leaves, in the project's folder or in another: the one of
``features.extractor``, and the judges beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from boss_core.errors import InputError
from boss_core.evaluation.extractors import EXTRACTORS, Extractor
from boss_core.networks import efficientnet
from flows import paths
from flows.config import SECOND, Params
from flows.records.json_files import read_json

# What params.yaml calls them, and their names in records and metrics.
NAMES = {
    "classifier": "classifier",
    "inception": "inception",
    "imagenet": efficientnet.NAME,
    SECOND: SECOND,
}


@dataclass(frozen=True)
class Instrument:
    """An extractor that measures. cache: the folder of the features of real images. judge: it is
    one of ``evaluate.judges``, of which neither precision nor recall is taken."""

    extractor: Extractor
    cache: Path
    judge: bool


def only_classifiers(params: Params) -> bool:
    """Whether all that measures is trained on the data: no larger networks of others."""
    return {params.features.extractor, *params.evaluate.judges} <= {"classifier", SECOND}


def read_instruments(judges: Sequence[str]) -> list[Instrument]:
    """The extractor of ``features`` and then the judges, by their names in params.yaml."""
    found = [Instrument(read_extractor(paths.FEATURES), paths.FEATURES / "reference", judge=False)]
    for judge in judges:
        folder = paths.JUDGES / NAMES[judge]
        found.append(Instrument(read_extractor(folder), folder / "reference", judge=True))
    return found


def read_extractor(folder: Path) -> Extractor:
    """The extractor of a folder with its card.json and weights; InputError without the card."""
    path = folder / "card.json"
    try:
        card = read_json(path)
        name, weights = card["extractor"], card["weights"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: not the card of an extractor; one with extractor and weights, as in"
            " models/features, needed"
        ) from error
    if name not in EXTRACTORS or not isinstance(weights, str):
        raise InputError(f"{path}: extractor {name!r}; {' or '.join(EXTRACTORS)} needed")
    return Extractor(name, folder / weights)
