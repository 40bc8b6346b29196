"""What is shown of one budget, read from the files that are the record, and checked."""

from dataclasses import dataclass

import pandas as pd

from boss_core.errors import InputError
from boss_core.ode.schedule import Schedule
from flows import paths
from flows.config import Params
from flows.records.json_files import Json, read_json
from flows.records.judges import best, judges, read_estimates, remark
from flows.records.record import read_record
from flows.records.variants import read_schedules, recorded
from flows.strict_yaml import shown
from flows.tracking.links import record_hash

NOTE_TAG = "mlflow.note.content"
Curve = list[tuple[int, dict[str, float]]]  # of a training: (step, its values)
_NUMBERS = ("nfe", "samples", "reference_samples")
_WORDS = ("teacher_hash", "extractor_hash", "extractor")
_MEND = "remove it, and `dvc repro` brings it back"


@dataclass(frozen=True)
class Record:
    """All that is shown of one budget.

    source: of the data, which names the experiment. digest: see `record_hash`. metrics: all of
    `read_record`. floor: the same of the teacher on the whole grid. schedules: by their names.
    curves: of all its trainings. decided: tags that say what is best, and by whom."""

    budget: int
    source: str
    digest: str
    metrics: Json
    floor: Json
    schedules: dict[str, Schedule]
    curves: Curve
    decided: dict[str, str]


def whole_record(params: Params, budget: int) -> Record:
    """InputError with the file that is not there, or that has not in it what its stage writes."""
    path = paths.metrics(budget)
    metrics = read_record(budget)
    variants = recorded(metrics)
    _check_there(budget, metrics, (*_WORDS, "student_hash"), bool(variants), "a method")
    if metrics["nfe"] != budget:
        raise InputError(f"{path}: nfe: {shown(metrics['nfe'])}; {budget} needed; {_MEND}")
    if not isinstance(metrics["student_hash"], dict):
        raise InputError(f"{paths.made_of(budget)}: student_hash: a JSON object needed; {_MEND}")
    _check_numbers(f"{path}", metrics, list(variants))

    source = _source()
    schedules = read_schedules().get(budget, {})
    for variant in variants.values():
        if variant.schedule not in schedules:
            raise InputError(
                f"{paths.SCHEDULES}: no {variant.schedule} of budget {budget}; {_MEND}"
            )
    curves = read_curve(budget)
    if not paths.samples(budget).is_dir():
        raise InputError(f"{paths.samples(budget)}: no such folder; `dvc repro` makes it")
    decided = _decided(params, budget, metrics)
    return Record(
        budget, source, record_hash(budget), metrics, read_floor(), schedules, curves, decided
    )


def read_floor() -> Json:
    """The record of the teacher on the whole grid; InputError as for `whole_record`."""
    floor = read_record("teacher")
    _check_there("teacher", floor, _WORDS, "fine" in floor, "fine")
    _check_numbers(f"{paths.metrics('teacher')}", floor, ["fine"], "nfe")
    return floor


def read_curve(name: int | str) -> Curve:
    """The training's curve of a budget or of the teacher; InputError as for `whole_record`."""
    path = paths.curves(name)
    try:
        rows = pd.read_csv(path).to_dict("records")
        return [(int(row.pop("step")), {str(k): float(v) for k, v in row.items()}) for row in rows]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; `dvc repro` makes it") from error
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: no training's curve; {_MEND}") from error


def _check_there(
    name: int | str, record: Json, words: tuple[str, ...], measured: bool, of_what: str
) -> None:
    """InputError with the file that lacks something of a record: numbers, words and hashes, or what
    was measured."""
    lacks = [key for key in _NUMBERS if key not in record] + [of_what] * (not measured)
    for path, keys in (
        (paths.metrics(name), lacks),
        (paths.made_of(name), [key for key in words if key not in record]),
    ):
        if keys:
            raise InputError(f"{path}: without {', '.join(keys)}; {_MEND}")


def _check_numbers(path: str, record: Json, names: list[str], *keys: str) -> None:
    for name in names:
        found = record[name]
        if not isinstance(found, dict) or not all(map(_is_number, found.values())):
            raise InputError(f"{path}: {name}: {shown(found)}; numbers by name needed; {_MEND}")
    for key in ("samples", "reference_samples", *keys):
        if not _is_number(record[key]):
            raise InputError(f"{path}: {key}: {shown(record[key])}; a number needed; {_MEND}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _source() -> str:
    """What names the experiment: the data, or a pipeline that is compared with nothing else."""
    card = paths.DATA / "card.json"
    source = read_json(card).get("source")
    if source == "none":
        asked = read_json(paths.TEACHER / "card.json").get("asked")
        source = asked.get("source") if isinstance(asked, dict) else None
    if not isinstance(source, str):
        raise InputError(f"{card}: source: {shown(source)}; a name needed; {_MEND}")
    return source


def _decided(params: Params, budget: int, metrics: Json) -> dict[str, str]:
    """What is best of a budget by the judge that decides, or level, by variants' names; whether it
    is ahead by more than chance; and the same in words, as the run's description."""
    variants, found = recorded(metrics), judges(metrics, params.schedule)
    judge, titles = found[0], {name: variant.title for name, variant in variants.items()}
    of_best = best(judge, variants, read_estimates(budget, metrics, judge.metric))
    tags = {"judge": judge.name}
    words = f"{judge.metric} ranks nothing here."
    if of_best is not None:
        tags["best"] = ",".join(of_best.level)
        tags["best.ahead_by_more_than_chance"] = str(len(of_best.level) == 1).lower()
        names = "; ".join(titles[name] for name in of_best.level)
        words = (
            f"By {judge.metric} the best is {names}, ahead of every other by more than chance."
            if len(of_best.level) == 1
            else f"By {judge.metric} these are level, not told apart: {names}."
        )
    against = f"{metrics['samples']:,} samples against {metrics['reference_samples']:,}."
    tags[NOTE_TAG] = " ".join(filter(None, (words, against, remark(found, variants))))
    return tags
