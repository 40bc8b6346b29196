"""The extractor that the features stage leaves, in the project's folder or in another."""

from pathlib import Path

from boss_core.errors import InputError
from boss_core.evaluation.frechet import EXTRACTORS, Extractor
from flows.records.json_files import read_json


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
