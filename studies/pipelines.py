"""Which pipelines of the installed diffusers take a straightened LoRA.

    python -m studies.pipelines [--only CLASS ...] [--markdown FILE]

Finds every flow-matching pipeline class, and straightens a small random one of each kind that
`tests.helpers.more_pipelines` has components for: a teacher with guidance on a grid of 6 steps, a
LoRA of 2 steps that is trained for 10 iterations, written, and loaded by diffusers alone into a
fresh pipeline. Some six minutes on one core. It shows which pipelines the mechanism fits; random
networks say nothing of quality. ``--markdown`` writes the table as a page has it.
"""

import argparse
import inspect
import io
import re
import sys
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import estimate_pipeline_cost, sample_generators
from boss_core.interop.guidance import without_guidance
from boss_core.interop.pipeline_checks import check_told_steps
from boss_core.interop.pipeline_encodings import remember_encodings
from boss_core.interop.pipeline_lora import (
    add_lora,
    check_adaptable,
    check_adaptable_class,
    freeze,
    load_lora,
    save_lora,
)
from boss_core.interop.pipeline_sampling import sample_pipeline
from boss_core.interop.pipeline_students import Groups, train_student
from boss_core.interop.recording import DENOISERS
from boss_core.interop.teacher_forcing import straighten_call, teacher_states
from boss_core.io.files import write_bytes
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import uniform
from boss_core.training.settings import TrainingSettings
from flows.search.pipeline_call import one_line
from flows.search.refusals import pipeline_refusals
from flows.straighten.teacher import encode_all
from studies.markdown import markdown
from tests.helpers.families import Family

GRID, KNOTS = uniform(6), (0, 4, 6)
SCHEDULE = Schedule(timesteps=tuple(GRID[list(KNOTS)]), indices=KNOTS)
ITERATIONS = 10
SETTINGS = TrainingSettings(
    iterations=ITERATIONS, batch_size=1, learning_rate=1e-2, learning_rate_schedule="constant",
    warmup=0, gradient_clip=1.0, ema_decay=0.0,
)  # fmt: skip
SAME = 1e-6  # of latents that the same LoRA makes
NOT_TRIED = "not tried: no small components here"


@dataclass(frozen=True)
class Row:
    """What was found of a pipeline.

    name: its class, and in brackets in what it differs from another row of it. states: that its
    scheduler steps. guided, student: network evaluations a step. off: what turns guidance off.
    files: those of the LoRA. loss: before and after training. reload: the largest difference of
    latents, relative to the largest latent, once loaded into a fresh pipeline. reason: of a
    refusal, and then nothing else holds.
    """

    name: str
    reason: str = ""
    states: int = 0
    guided: float = 0.0
    student: float = 0.0
    off: str = ""
    files: int = 0
    loss: tuple[float, float] = (0.0, 0.0)
    reload: float = 0.0

    @property
    def trains(self) -> bool:
        return not self.reason


def flow_pipelines() -> dict[str, type]:
    """The pipeline classes of the installed diffusers that are made for a scheduler of a flow, as
    their constructors say it; by name. One that takes solvers of either kind counts where its
    network is a transformer: so PixArt-alpha is among them, which is none."""
    found: dict[str, type] = {}
    for name in sorted(dir(diffusers)):
        if "Pipeline" not in name:
            continue
        kind = getattr(diffusers, name)
        # One whose libraries are not installed is a placeholder, and of no use here.
        real = isinstance(kind, type) and issubclass(kind, DiffusionPipeline)
        if real and kind.__name__ == name and _is_of_flows(kind):
            found[name] = kind
    return found


def _is_of_flows(kind: type) -> bool:
    named = set(_schedulers(kind))
    of_either = {s for s in named if _serves_both(s)}
    if not named or not all(_is_flow(s) for s in named - of_either):
        return False
    return bool(named - of_either) or "transformer" in inspect.signature(kind.__init__).parameters


def _schedulers(kind: type) -> Iterator[type]:
    """The scheduler classes in the annotations of a pipeline's constructor."""
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name.endswith("scheduler"):
            annotation = parameter.annotation
            if isinstance(annotation, str):
                words = re.findall(r"\w+", annotation)
                yield from (c for c in (getattr(diffusers, w, None) for w in words) if _is(c))
            elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
                yield from (c for c in typing.get_args(annotation) if _is(c))
            elif _is(annotation):
                yield annotation


def _is(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, SchedulerMixin)


def _is_flow(scheduler: type) -> bool:
    return "Flow" in scheduler.__name__ or scheduler.__module__.endswith(("flow", "_rf"))


def _serves_both(scheduler: type) -> bool:
    """Any scheduler, or a solver that can be told to serve a flow."""
    settings = inspect.signature(scheduler.__init__).parameters
    return scheduler is SchedulerMixin or "use_flow_sigmas" in settings


def by_class(kind: type) -> Row:
    """Of a pipeline without small components: whether its class is not told its steps, or it and
    those of its networks, as its constructor names them, refuse a LoRA."""
    given = inspect.signature(kind.__init__).parameters
    named = {name: given[name].annotation for name in DENOISERS if name in given}
    networks = {name: part for name, part in named.items() if isinstance(part, type)}
    try:
        check_told_steps(kind)
        check_adaptable_class(kind, networks)
    except InputError as error:
        return Row(kind.__name__, reason=_reason(error))
    return Row(kind.__name__, reason=NOT_TRIED)


def _reason(error: Exception) -> str:
    return one_line(error).removeprefix("--").removeprefix("pipeline: ")


def straighten_small(name: str, small: Family) -> Row:
    """Straighten a small pipeline, or say why it cannot be."""
    pipeline = small.make()
    try:
        check_adaptable(pipeline)
        freeze(pipeline)
        with pipeline_refusals(pipeline):
            return _straightened(name, small, pipeline)
    except InputError as error:
        # Some small ones are classes derived from the pipeline's own.
        own, known = type(pipeline).__name__, name.split(" ")[0]
        return Row(name, reason=_reason(error).replace(own, known))
    except Exception as error:  # what a user would get as a traceback
        return Row(name, reason=f"**{type(error).__name__}: {one_line(error):.300}**")


def _straightened(name: str, small: Family, pipeline: Any) -> Row:
    part = range(small.samples)

    def call(**changes: Any) -> dict[str, Any]:
        generators = sample_generators(part, 3)
        one = generators if len(part) > 1 else generators[0]  # Wan-VACE takes no list
        return small.prompts(part) | {"generator": one} | changes

    estimate_pipeline_cost(pipeline, uniform(2), [call()], check=False)  # as the command does
    off, evaluations = without_guidance(pipeline, call(), SCHEDULE.timesteps)
    remember_encodings(pipeline)
    with redirect_stdout(io.StringIO()):  # what it freed
        encode_all(pipeline, [call, lambda: call(**off)])
    states, counted = teacher_states(pipeline, GRID, KNOTS, call())

    def loss() -> float:
        of_call = call(**off)
        steps = SCHEDULE.timesteps, SCHEDULE.solver
        return float(straighten_call(pipeline, *steps, of_call, states, None).mean())

    def latents(of: Any) -> torch.Tensor:
        torch.manual_seed(0)  # SD3's ControlNet draws of an image's code without the generators
        return sample_pipeline(of, SCHEDULE.timesteps, call(**off), decode=False).latents

    before = loss()
    weights = add_lora(pipeline, 4, seed=0)
    groups = Groups(lambda _: call(**off), lambda _: states, range(1))
    train_student(pipeline, SCHEDULE, weights, groups, SETTINGS, seed=0)
    after = loss()
    with tempfile.TemporaryDirectory() as folder:
        files = save_lora(pipeline, Path(folder))
        fresh = small.make()
        load_lora(fresh, Path(folder))
    here = latents(pipeline)
    apart = float((latents(fresh) - here).abs().max() / here.abs().max())
    faults = [f"**the loss goes from {before:.3g} to {after:.3g}**"] if not after < before else []
    faults += [f"**once loaded, latents differ by {apart:.1e}**"] if not apart < SAME else []
    return Row(
        name,
        reason="; ".join(faults),
        states=len(states.states),
        guided=float(counted.max()),
        student=evaluations,
        off=", ".join(f"{k}={v}" for k, v in off.items()),
        files=len(set(files.values())),
        loss=(before, after),
        reload=apart,
    )


def rows(
    small: Mapping[str, Family], only: Sequence[str] = (), on_row: Any = lambda row: None
) -> list[Row]:
    """A row for each flow pipeline of the installed diffusers, or for those asked for.

    small: by class name, with what is particular in brackets behind it. on_row: called with each.
    InputError for a name that is no such class.
    """
    known = flow_pipelines()
    for name in only:
        if name not in known:
            raise InputError(
                f"--only: {name}: no flow-matching pipeline of the installed diffusers"
            )
    found = []
    for kind in only or known:
        mine = [name for name in small if name.split(" ")[0] == kind]
        for name in mine or [kind]:
            row = straighten_small(name, small[name]) if mine else by_class(known[kind])
            on_row(row)
            found.append(row)
    return found


COLUMNS = (
    "pipeline", "evaluations a step", "guidance off by", "states", "files", "loss", "reloads to",
)  # fmt: skip


def table(found: Sequence[Row]) -> str:
    """As Markdown: those that train, those that are refused and why, and those not tried."""
    trained = [
        (
            _named(row.name),
            f"{row.guided:g} to {row.student:g}" if row.off else f"{row.student:g}",
            f"`{row.off}`" if row.off else "",
            f"{row.states}",
            f"{row.files}",
            f"{row.loss[0]:.2g} to {row.loss[1]:.2g}",
            f"{row.reload:.0e}" if row.reload else "the same",
        )
        for row in found
        if row.trains
    ]
    refused = [row for row in found if not row.trains and row.reason != NOT_TRIED]
    untried = [f"`{row.name}`" for row in found if row.reason == NOT_TRIED]
    parts = [
        f"{_classes(row for row in found if row.trains)} classes are straightened,"
        f" {_classes(refused)} refused, {len(untried)} not tried (diffusers"
        f" {diffusers.__version__}); some in several kinds.",
        markdown(COLUMNS, trained),
        markdown(("refused", "why"), [(_named(row.name), row.reason) for row in refused]),
        f"Not tried, for want of small components: {', '.join(untried) or 'none'}.",
    ]
    return "\n\n".join(parts) + "\n"


def _classes(found: Iterable[Row]) -> int:
    return len({row.name.split(" ")[0] for row in found})


def _named(name: str) -> str:
    kind, _, particular = name.partition(" ")
    return f"`{kind}` {particular}".strip()


def said(row: Row) -> str:
    """A row as it is found, in a line."""
    if not row.trains:
        return f"{row.name}: {row.reason}"
    return (
        f"{row.name}: {row.guided:g} to {row.student:g} evaluations a step"
        f" ({row.off or 'as it is'}), {row.states} states, {row.files} files,"
        f" loss {row.loss[0]:.3g} to {row.loss[1]:.3g}, reloads to {row.reload:.1e}"
    )


def main() -> None:
    """Walk, print each row as it comes, and write the table where it is asked for."""
    from tests.helpers.more_pipelines import SMALL

    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="CLASS")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    asked = parser.parse_args()
    try:
        found = rows(SMALL, asked.only, lambda row: print(said(row), flush=True))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if asked.markdown is not None:
        write_bytes(asked.markdown, table(found).encode())


if __name__ == "__main__":
    main()
