"""Whether a student is nearer to its teacher than what it is compared with, and in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from flows.straighten.held_out import Sampled

LEVEL = 0.95  # of an interval that excludes chance


@dataclass(frozen=True)
class Paired:
    """The mean difference of two distances over the same prompts and noise.

    mean: below 0 where the first is nearer. error: the standard error of the mean, None of one
    sample. chance: the 95 % interval (Student's t) has 0 in it, or there is none.
    """

    mean: float
    error: float | None
    chance: bool


def paired(first: Sampled, second: Sampled, fine: Sampled) -> Paired:
    """How much farther from the fine samples the first are than the second, sample by sample."""
    differences = first.distances(fine).double() - second.distances(fine).double()
    count = len(differences)
    mean = float(differences.mean())
    if count < 2:
        return Paired(mean, None, math.isfinite(mean))
    error = float(differences.std()) / math.sqrt(count)
    half = float(stdtrit(count - 1, 0.5 + LEVEL / 2)) * error
    return Paired(mean, error, abs(mean) <= half)


def at_equal_evaluations(own: Sampled, others: Sequence[Sampled]) -> Sampled | None:
    """The guided pipeline in as many steps as the student's evaluations buy; None where they buy
    none."""
    within = [s for s in others if s.guided and s.evaluations <= own.evaluations]
    return max(within, key=lambda s: s.steps, default=None)


def before_training(own: Sampled, others: Sequence[Sampled]) -> Sampled | None:
    """The student as it was at first: the pipeline without guidance, in as many steps; None where
    there is no guidance to turn off."""
    return next((s for s in others if not s.guided and s.steps == own.steps), None)


def in_words(own: Sampled, others: Sequence[Sampled], fine: Sampled) -> list[str]:
    """What came out, in a sentence on the guided pipeline in the student's steps, one on it in the
    student's evaluations where those are fewer steps, and one on the student before its training.

    others: those of `flows.straighten.pipeline`; without guidance they are no answer to either.
    """
    guided = max((s for s in others if s.guided), key=lambda s: s.steps)
    before = before_training(own, others)
    what = "pipeline before the training" if before is None else "guided pipeline"
    sentences = [_sentence(own, guided, fine, f"{_evaluations(guided)} of the {what}")]
    equal = at_equal_evaluations(own, others)
    if equal is not None and equal is not guided:
        steps = f"{equal.steps} step{'s' if equal.steps > 1 else ''}"
        taken = f"{equal.evaluations:g} evaluation{'s' if equal.evaluations != 1 else ''}"
        sentences.append(_sentence(own, equal, fine, f"the {what} in {steps}, {taken}"))
    if before is not None:
        sentences.append(
            "Before its training the student was the pipeline without guidance, at a distance of"
            f" {before.distance(fine):.4g}; now it is at {own.distance(fine):.4g}."
        )
    return sentences


def _sentence(own: Sampled, other: Sampled, fine: Sampled, name: str) -> str:
    found = paired(own, other, fine)
    one = own.evaluations == 1
    nearer = f"come{'s' if one else ''} nearer to the teacher's samples than {name}"
    farther = f"stay{'s' if one else ''} farther from the teacher's samples than {name}"
    if not math.isfinite(found.mean):
        said = f"cannot be compared with {name}: samples are not finite"
    elif found.chance:
        said = f"{'is' if one else 'are'} as near to the teacher's samples as {name}, within chance"
    else:
        said = nearer if found.mean < 0 else farther
    count = len(own.latents)
    error = (
        "one sample, which has no interval"
        if found.error is None
        else f"paired difference {found.mean:+.3g} ± {found.error:.2g}, its standard error over"
        f" {count} samples"
    )
    return (
        f"{_evaluations(own)} of the student {said} ({own.distance(fine):.4g} against"
        f" {other.distance(fine):.4g}; {error})."
    )


def _evaluations(of: Sampled) -> str:
    return f"{of.evaluations:g} network evaluation{'s' if of.evaluations != 1 else ''}"
