"""The extractor that the features stage leaves, in the project's folder or in another."""

from pathlib import Path

from boss_core.frechet import Extractor
from flows.records import read_json


def read_extractor(folder: Path) -> Extractor:
    """The extractor of a folder with its card.json and weights; InputError without the card."""
    card = read_json(folder / "card.json")
    return Extractor(card["extractor"], folder / card["weights"])
