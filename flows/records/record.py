"""The record of one budget, or of the teacher on its whole grid, in two files: ``metrics/K.json``
has the numbers, as DVC shows every value in it as a column of its own, and
``samples/K/made_of.json`` the words and hashes that say what they are of."""

from pathlib import Path

from flows import paths
from flows.records.json_files import Json, read_json, write_json

OF_WORDS = "extractor"  # is in every record, and no number


def write_record(name: int | str, about: Json, measured: Json) -> None:
    """name: the budget, or ``teacher``. about: what was compared with what; its numbers go to the
    metrics. measured: numbers of every variant, by their names."""
    numbers = {key: value for key, value in about.items() if isinstance(value, int | float)}
    words = {key: value for key, value in about.items() if key not in numbers}
    write_json(paths.made_of(name), words)
    write_json(paths.metrics(name), numbers | measured)


def read_record(name: int | str, root: Path = Path()) -> Json:
    """Both files as one record; InputError where one is not there or cut short. root: the project's
    folder. A record of an earlier version has all in ``metrics/K.json``."""
    metrics = read_json(root / paths.metrics(name))
    if OF_WORDS in metrics:
        return metrics
    return read_json(root / paths.made_of(name)) | metrics
