"""A schedule: which timesteps to sample at, and where they come from."""

import itertools
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from boss_core.errors import InputError
from boss_core.ode.solver_table import SOLVERS, weights_of_steps
from boss_core.ode.timesteps import validate_timesteps

# Of the file: 2 has `weights` and their standard errors. Files of version 1 do not say theirs.
VERSION = 2
# By so much the fitted weights of a step may miss 1 together: they are written in decimals.
_SUM = 1e-6
_LARGEST = 1e100  # of one weight
# A last noise level up to this is no step before 0, but a 0 for samplers that would divide by it.
_ZERO = 1e-9


def _known(solver: str) -> str:
    if solver not in SOLVERS:
        raise ValueError(f"{solver!r} found; {', '.join(SOLVERS)} known")
    return solver


def _readable(version: int) -> int:
    if not 1 <= version <= VERSION:
        raise ValueError(f"{version} found; 1 to {VERSION} can be read, others by a newer release")
    return VERSION


# For each step as many numbers as velocities that it uses.
StepWeights = tuple[tuple[float, ...], ...]


class HeldOut(BaseModel):
    """The comparison of samples by which ``auto`` chose, on noise that no steps were searched on.

    winner: the objective whose samples are nearest to the teacher's there.
    gain: by how much nearer than those of ``l2_squared`` they are, as a share of that distance;
        standard_error: of it. Steps of the winner are chosen only where the gain is more than
        chance (`boss_core.search.choose.choose`).
    rivals: the number of different steps beside those of ``l2_squared``; more ask for more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    winner: str
    gain: float
    standard_error: float
    rivals: int


class Schedule(BaseModel):
    """K + 1 times to sample at, the solver for them, and where they come from. Immutable; equal
    when every field is.

    timesteps: K + 1 times from 0 (noise) to 1 (data). They may begin later, at a noise level below
        1: image to image, from a state (1 - t) noise + t image. Nothing here searches or samples
        such steps; solvers and exports take them.
    indices: the same as indices of the search grid, so that states and costs are looked up by
        index and never by comparing floats. Left out for times that no search found: 0 to K, these
        times being their own grid.
    solver: the fixed-step solver that these steps are for (`boss_core.ode.solver_table.SOLVERS`).
    objective: what the steps minimise (``l2_squared``), the name of a fixed grid (``uniform``),
        or ``given`` for steps that came without either.
    predicted_error: the sum of the costs of the steps (eq. 5), or None when unknown.
    standard_error: of ``predicted_error``, from the spread between groups of trajectories.
    knot_stability: for each of the timesteps, the share of bootstrap resamples of the trajectories
        whose own best steps have it within one grid step; None for steps that are not the best by
        the costs (fixed grids, ``refine``, ``oss``), for those of ``multistep``, which a resample
        takes as long to find as all trajectories, and where there was one group only.
    teacher_hash: the hash of the weights that the costs were measured on.
    settings_hash: the hash of the settings of the search.
    held_out: for steps that ``auto`` chose, the comparison by which it did.
    evaluations: network evaluations for one sample, where they were counted (pipelines: guidance
        takes two a step). None: what the solver takes.
    weights: of solver ``multistep``, for each step k those of the velocities at knots k, k - 1,
        ..., as many as it uses, which add up to 1; None for others.
    weights_error: the standard errors of ``weights``, in their form, where they are known.
    version: of the form of the file.
    """

    # JSON has no NaN and no infinity: they would come back as null.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    timesteps: tuple[float, ...]
    indices: tuple[int, ...] = Field(default_factory=lambda data: _own_grid(data))
    solver: Annotated[str, AfterValidator(_known)] = "euler"
    objective: str = "given"
    predicted_error: float | None = None
    standard_error: float | None = None
    knot_stability: tuple[float, ...] | None = None
    teacher_hash: str | None = None
    settings_hash: str | None = None
    held_out: HeldOut | None = None
    # Left out where it says nothing: files are those of before it.
    evaluations: float | None = Field(default=None, gt=0, exclude_if=lambda value: value is None)

    weights: StepWeights | None = Field(default=None, exclude_if=lambda value: value is None)
    weights_error: StepWeights | None = Field(default=None, exclude_if=lambda value: value is None)
    version: Annotated[int, AfterValidator(_readable)] = VERSION

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        validate_timesteps(self.timesteps, from_noise=False)
        if self.weights is not None or SOLVERS[self.solver].fitted:
            check_weights(self.solver, self.weights, self.steps)
        if self.weights_error is not None and (
            self.weights is None
            or [len(of) for of in self.weights_error] != [len(of) for of in self.weights]
        ):
            raise ValueError("weights_error: of another form than weights; one for each needed")
        if len(self.indices) != len(self.timesteps):
            raise ValueError(
                f"{len(self.indices)} indices for {len(self.timesteps)} timesteps; as many needed"
            )
        if self.knot_stability is not None and len(self.knot_stability) != len(self.timesteps):
            raise ValueError(
                f"knot_stability: {len(self.knot_stability)} for {len(self.timesteps)} timesteps;"
                " as many needed"
            )
        if any(j <= i for i, j in zip(self.indices, self.indices[1:], strict=False)):
            raise ValueError(f"indices {self.indices} must increase")
        return self

    @property
    def nfe(self) -> float:
        """Network evaluations for one sample."""
        if self.evaluations is not None:
            whole = self.evaluations.is_integer()
            return int(self.evaluations) if whole else self.evaluations
        return self.steps * SOLVERS[self.solver].evaluations

    @property
    def steps(self) -> int:
        """The number of steps, K for solvers that evaluate once a step."""
        return len(self.timesteps) - 1

    @property
    def step_weights(self) -> list[tuple[float, ...]]:
        """For each step of a linear multistep method the weights of the velocities at its knot and
        at those before it, the latest first: fitted, or of the solver. InputError for others."""
        if self.weights is not None:
            return list(self.weights)
        lengths = [after - before for before, after in itertools.pairwise(self.timesteps)]
        return weights_of_steps(self.solver, lengths)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels 1 - t of the linear path, from 1 (or where the schedule begins) to 0:
        the difference of the decimals, so that 0.32 leaves 0.68 and not 0.6799999999999999."""
        return tuple(_complement(t) for t in self.timesteps)

    def interval(self, groups: int) -> tuple[float, float]:
        """The 95 % interval of the predicted error, by Student's t over so many groups of
        trajectories; NaN where its standard error is not known."""
        return interval(self.predicted_error, self.standard_error, groups)

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, source: str | Path = "schedule") -> Self:
        """Parse and validate; ``source`` is named in the InputError when it does not hold."""
        try:
            # Strict: a text or a truth value is no number.
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{source}: {where or 'schedule'}: {first['msg']}") from error


def check_weights(solver: str, weights: Sequence[Sequence[float]] | None, steps: int) -> None:
    """InputError for weights that a schedule of so many steps of the solver cannot have."""
    if not SOLVERS[solver].fitted:
        raise InputError(
            f"weights: some found with solver {solver}, which has its own; none needed"
        )
    if weights is None:
        raise InputError(f"weights: none found with solver {solver}; those of each step needed")
    if len(weights) != steps:
        raise InputError(f"weights: of {len(weights)} steps for {steps} steps; as many needed")
    for k, of_step in enumerate(weights):
        most = min(k, SOLVERS[solver].looks_back) + 1
        if not 1 <= len(of_step) <= most:
            raise InputError(f"weights: {len(of_step)} of step {k}; 1 to {most} needed")
        # The sum of numbers of that size is beyond float64, which fsum raises for.
        small = all(abs(weight) <= _LARGEST for weight in of_step)
        if not small or not abs(math.fsum(of_step) - 1.0) <= _SUM:
            shown = ", ".join(f"{weight:g}" for weight in of_step)
            raise InputError(f"weights: {shown} of step {k}; weights that add up to 1 needed")


def interval(error: float | None, standard_error: float | None, groups: int) -> tuple[float, float]:
    """As `Schedule.interval`."""
    from scipy.special import stdtrit

    if error is None or standard_error is None:
        return math.nan, math.nan
    half = float(stdtrit(groups - 1, 0.975)) * standard_error
    return max(0.0, error - half), error + half


def from_sigmas(sigmas: Sequence[float], name: str = "sigmas") -> Schedule:
    """Euler steps at noise levels as samplers of others publish them: decreasing, from 1 or below,
    down to 0, which is added where the list ends before it. A last level of 1e-9 or less is a 0.

    InputError that starts with ``name`` for any other list.
    """
    levels = [float(sigma) for sigma in sigmas]
    if levels and 0 < levels[-1] <= _ZERO:
        levels[-1] = 0.0
    elif levels and levels[-1] > 0:
        levels.append(0.0)
    # As times, too: 1e-17 and 0 are both 1 there.
    falls = all(a > b and 1 - a < 1 - b for a, b in itertools.pairwise(levels))
    if len(levels) < 2 or not falls or not 0.0 == levels[-1] < levels[0] <= 1.0:
        shown = ", ".join(f"{level:g}" for level in levels[:8])
        raise InputError(
            f"{name}: {shown or 'none'}{', ...' if len(levels) > 8 else ''}; noise levels that"
            " fall, from 1 or below to 0 or above it, needed"
        )
    return Schedule(timesteps=tuple(_complement(level) for level in levels))


def _own_grid(fields: Mapping[str, Any]) -> tuple[int, ...]:
    """The indices of times that no search found; none where the times are no list of numbers."""
    return tuple(range(len(fields.get("timesteps", ()))))


def _complement(value: float) -> float:
    """1 - value in decimals, rounded once."""
    return float(1 - Decimal(repr(float(value))))
