"""What ``boss straighten --pipeline`` is asked for."""

from dataclasses import dataclass
from pathlib import Path

from boss_core.errors import InputError
from boss_core.ode.solver_table import MULTISTEP
from boss_core.training.settings import TrainingSettings
from flows.search.options import check_place


@dataclass(frozen=True)
class Teacher:
    """The pipeline that is taught from, and what its calls have: see the command's help.

    revision: the commit of a name on the hub; None for the newest one, and for a folder."""

    source: str
    prompts: Path | None
    guidance: float | None
    size: str | None
    call: tuple[str, ...]
    dtype: str
    lora: tuple[str, ...] = ()
    compile: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class Training:
    """How each student is trained.

    rank: of its LoRA; None trains all weights. batch_size: samples in one call of the pipeline.
    accumulate: calls whose gradients make a step. iterations: steps.
    """

    rank: int | None
    trajectories: int
    held_out: int
    batch_size: int
    accumulate: int
    iterations: int
    learning_rate: float
    checkpointing: bool

    def settings(self) -> TrainingSettings:
        """``batch_size`` there counts calls."""
        return TrainingSettings(
            iterations=self.iterations,
            batch_size=self.accumulate,
            learning_rate=self.learning_rate,
            learning_rate_schedule="cosine",
            warmup=min(100, self.iterations // 20),
            gradient_clip=1.0,
            ema_decay=0.99,
        )


@dataclass(frozen=True)
class PipelineRequest:
    """Everything that the options say. steps: ``search``, ``uniform``, or a schedule's file.
    samples: trajectories of the search; None for as many as it needs."""

    teacher: Teacher
    training: Training
    budgets: tuple[int, ...]
    grid: int
    steps: str
    solver: str
    samples: int | None
    seed: int
    device: str
    replace: bool
    out: Path


def check_straightening(asked: PipelineRequest) -> None:
    """InputError, before any work, for options that do not hold or do not go together."""
    if asked.solver not in MULTISTEP:
        raise InputError(
            f"--solver: {asked.solver!r}; {' or '.join(MULTISTEP)} needed to straighten for"
        )
    for budget in asked.budgets:
        if not 1 <= budget <= asked.grid:
            raise InputError(f"--budget: {budget}; 1..{asked.grid}, the steps of --grid, needed")
    if asked.training.rank is None and asked.teacher.lora:
        raise InputError(
            f"--lora: {asked.teacher.lora[0]} with --full, whose weights would be those beside it;"
            " --rank, or a pipeline saved with it fused, needed"
        )
    if asked.steps not in ("search", "uniform") and len(asked.budgets) > 1:
        raise InputError(
            f"--steps: {asked.steps}, one schedule for {len(asked.budgets)} budgets; one --budget"
            " needed with a file, or search or uniform"
        )
    most = asked.training.trajectories
    if most < asked.training.batch_size * asked.training.accumulate:
        raise InputError(
            f"--trajectories: {most}; at least one step's,"
            f" {asked.training.batch_size * asked.training.accumulate}, needed"
        )
    check_place("--out", asked.out, folder=True)
    for budget in asked.budgets:
        check_place("--out", asked.out / str(budget), folder=True)
