"""What a run found, in words: for each budget what is nearest to the real images, and how to sample
it."""

from collections.abc import Mapping
from dataclasses import dataclass

from boss_core.evaluation.comparison import Estimate
from flows import paths
from flows.records.judges import Judge, best
from flows.records.variants import Variant


@dataclass(frozen=True)
class Conclusion:
    """Of one budget. sentence: what is nearest, and whether by more than chance. command: what
    samples it, or, of a pipeline, writes its scheduler."""

    budget: int
    sentence: str
    command: str


def conclude(
    judge: Judge,
    variants: Mapping[str, Variant],
    estimates: Mapping[int, Mapping[str, Estimate]],
    floor: Estimate,
    *,
    of_pipeline: bool,
) -> list[Conclusion]:
    """A conclusion for each budget of which the judge may rank something.

    estimates: of every budget and variant, by this judge. floor: of the teacher on the fine grid.
    of_pipeline: whether samples are a diffusers pipeline's, which `boss sample` does not run.
    """
    found = []
    for budget, of in estimates.items():
        nearest = best(judge, variants, of)
        if nearest is None:
            continue
        first = of[nearest.name]
        of_floor = f"{first.value / floor.value:.2f} times the teacher's on the fine grid"
        value = f"{first.value:.4g} ± {first.standard_error:.2g}, {of_floor}"
        title = variants[nearest.name].title
        others = [variants[name].title for name in nearest.level if name != nearest.name]
        if others:
            sentence = f"{title} ({value}); {listed(others)} cannot be told from it."
        else:
            sentence = f"{title} ({value}), ahead of all others by more than chance."
        steps = variants[nearest.name].schedule
        command = commanded(nearest.name, budget, steps, variants[nearest.name], of_pipeline)
        found.append(Conclusion(budget, sentence, command))
    return found


def listed(names: list[str]) -> str:
    """In words, with a semicolon between: titles have commas of their own."""
    return names[0] if len(names) == 1 else "; ".join(names[:-1]) + "; and " + names[-1]


def commanded(name: str, budget: int, steps: str, variant: Variant, of_pipeline: bool) -> str:
    """The command for one variant of one budget."""
    student = paths.student(budget) / name
    of_run = f"{paths.SCHEDULES}#{budget}/{steps}"
    if of_pipeline:
        return f"boss export {student if variant.trained else of_run} --to diffusers-fixed"
    if variant.trained:
        return f"boss sample --checkpoint {student}"
    return f"boss sample --checkpoint {paths.TEACHER} --schedule {of_run}"
