"""Which distance decides what is best of a budget, and what it decides: the one place of the rule.

A search never counts as better by what it searched with. Steps that were searched by the features
of an extractor are not ranked by that extractor's distance, and where others measure too
(``evaluate.judges``) the first of them that did not search decides. What is best has to be ahead of
every rival by more than chance, in pairs over the same noise
(`boss_core.evaluation.comparison.best_of`); who cannot be told apart is level.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boss_core.errors import InputError
from boss_core.evaluation.comparison import Best, Estimate, best_of
from flows import paths
from flows.config import ScheduleSearch
from flows.records.json_files import Json, frechet_of, read_json, write_json
from flows.records.variants import Variant

SEARCHED = "chosen"  # the steps that a search by features may have found
# What an extractor is, and so what it has in common with what it measures.
ABOUT = {
    "classifier": "trained here on the training images",
    "second_classifier": "another architecture, trained here on a half of the training images",
    "efficientnet_lite0": "trained by others on ImageNet",
    "inception": "trained by others on ImageNet",
}


@dataclass(frozen=True)
class Judge:
    """One extractor and what it says. metric: its Frechet distance. searched: the chosen steps were
    searched by its features."""

    name: str
    metric: str
    searched: bool

    def ranks(self, variant: Variant) -> bool:
        """Whether it may say that this one is better than another."""
        return not (self.searched and variant.schedule == SEARCHED)


def searched_by_features(wanted: ScheduleSearch) -> bool:
    """Whether samples were compared by the features of ``features.extractor`` in the search."""
    return wanted.distance == "features" and wanted.objective in ("refine", "auto")


def judges(record: Json, wanted: ScheduleSearch) -> list[Judge]:
    """All that measured a record, the one that decides first: of ``evaluate.judges`` the first,
    then the others, then the one of ``features``. wanted: the search of the chosen steps."""
    of_features = str(record["extractor"])
    found = [Judge(name, frechet_of(name), False) for name in record.get("judges", ())]
    searched = searched_by_features(wanted)
    return [*found, Judge(of_features, frechet_of(of_features), searched)]


def best(
    judge: Judge, variants: Mapping[str, Variant], estimates: Mapping[str, Estimate]
) -> Best | None:
    """The best of one budget by a judge, of all that it may rank; None where there is no such."""
    ranked = {name: estimates[name] for name, variant in variants.items() if judge.ranks(variant)}
    return best_of(ranked) if ranked else None


def marks(
    judge: Judge, variants: Mapping[str, Variant], estimates: Mapping[str, Estimate]
) -> dict[str, str]:
    """Of every variant of one budget: ``*`` for the best by a judge, ``=`` for those that are level
    where no single one is, ``()`` for what it may not rank, else nothing."""
    found = best(judge, variants, estimates)
    level = () if found is None else found.level
    mark = "*" if len(level) == 1 else "="
    return {
        name: "()" if not judge.ranks(variant) else mark if name in level else ""
        for name, variant in variants.items()
    }


def remark(found: Sequence[Judge], variants: Mapping[str, Variant]) -> str:
    """In words, who may not say what is best and who does; nothing where all may."""
    searched = [judge for judge in found if not all(map(judge.ranks, variants.values()))]
    if not searched:
        return ""
    steps = f"The chosen steps were searched by the features of the {searched[0].name}"
    if searched[0] != found[0]:
        return (
            f"{steps}, which therefore does not rank them;"
            f" {found[0].name} searched nothing and decides."
        )
    return (
        f"{steps}, the only one that measures here, and so are not ranked: that they are better has"
        " to be shown by a judge that searched nothing (evaluate.judges)."
    )


def write_replicates(name: int | str, found: Mapping[str, Mapping[str, Estimate]]) -> None:
    """``samples/NAME/replicates.json``: for each variant and distance what it is without each
    block of samples. Beside the pictures, as these are nobody's metrics to read."""
    content = {
        variant: {metric: estimate.replicates.tolist() for metric, estimate in of.items()}
        for variant, of in found.items()
    }
    write_json(paths.replicates(name), content)


def read_estimates(
    name: int | str, record: Json, metric: str, root: Path = Path()
) -> dict[str, Estimate]:
    """Of every variant that has replicates, its distance of that name. name: of the budget, or
    ``teacher``. root: the project's folder. InputError where they are not the record's."""
    path = root / paths.replicates(name)
    content = read_json(path)
    try:
        return {
            variant: Estimate(float(record[variant][metric]), np.array(of[metric], np.float64))
            for variant, of in content.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not the replicates of {metric} of {paths.metrics(name)}; remove it, and"
            " `dvc repro` brings it back"
        ) from error
