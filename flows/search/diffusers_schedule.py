"""``boss schedule --pipeline``: the costs of a diffusers pipeline's steps."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from boss_core.bellman.objectives import optimal_steps
from boss_core.bellman.predicted import PredictedErrors
from boss_core.costs.cost_file import CostKey, CostSaver, read_own_costs
from boss_core.costs.fit import FEWEST_NOISES
from boss_core.costs.matrix import CostMatrix, CostSum
from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import estimate_pipeline_cost, sample_latents
from boss_core.interop.pipeline_fit import fit_pipeline_weights
from boss_core.interop.pipeline_rounding import without_rounding
from boss_core.interop.teacher_forcing import teacher_states
from boss_core.io.files import write_bytes
from boss_core.ode.noise import COSTS, SEARCH, seed_for
from boss_core.ode.schedule import Schedule
from boss_core.ode.solver_table import LARGEST_ORDER, SOLVERS
from boss_core.ode.timesteps import Times
from boss_core.search.auto import candidates, chosen, verdict
from boss_core.search.choose import Reference, choose_sampled
from boss_core.search.distances import sliced_wasserstein
from boss_core.search.settings import HELD_OUT
from boss_core.search.settled import Look, look
from boss_core.search.steps import FoundSteps, from_costs
from flows.config import ScheduleSearch
from flows.progress import progress
from flows.records.searches import say, search_settings
from flows.search.pipeline_arguments import prepare_calls
from flows.search.pipeline_call import SampleCalls, conditions
from flows.search.refusals import pipeline_refusals
from flows.search.schedule import COST, MEASURED, announce, check_folder, write_schedules

# Samples that weights are fitted to: latents have thousands of elements each.
FITTED = 20


@dataclass(frozen=True)
class Measured:
    """What a search found at a pipeline's networks: `PipelineCost` without the costs."""

    nfe: NDArray[np.float64]
    rounding: NDArray[np.float64] | None
    discarded: float

    def evaluations(self, indices: Sequence[int]) -> float:
        """Network evaluations for one sample in steps from these grid points but the last."""
        return round(float(self.nfe[list(indices[:-1])].sum()), 6)


@dataclass(frozen=True)
class PipelineSteps:
    """What `search_pipeline_steps` found: a schedule for each budget, the costs that they are by,
    and what was seen at the networks."""

    schedules: dict[int, Schedule]
    matrix: CostMatrix
    measured: Measured


def search_pipeline_steps(
    pipeline: Any,
    key: CostKey,
    calls: SampleCalls,
    folder: Path,
    *,
    budgets: Sequence[int],
    wanted: ScheduleSearch,
    samples: int | None = None,
    replace: bool = False,
) -> PipelineSteps:
    """Search the steps of a pipeline for every budget, going on from what the folder holds, and
    write them there: ``cost.npz``, ``pipeline.json``, ``K.json`` and ``cost.png``.

    pipeline: on its device and in its dtype
    (`flows.search.pipeline_loading.load_pipeline`); its scheduler is put back. key:
    `pipeline_key`. samples: trajectories to measure; None: until the steps have settled
    (`boss_core.search.settled`). replace: schedules of another search may be written over.

    InputError in a line, and nothing written, for what the folder, the pipeline or its call refuse.
    """
    check_folder(folder, key, budgets, wanted, replace=replace)
    calls = prepare_calls(pipeline, calls, wanted.batch_size)
    matrix, measured = pipeline_costs(
        pipeline, key, folder, calls, budgets=budgets, wanted=wanted, samples=samples
    )
    found = find_pipeline_steps(pipeline, key, matrix, budgets, wanted, calls)
    schedules = write_schedules(folder, key, matrix, found, wanted, None, measured.evaluations)
    return PipelineSteps(schedules, matrix, measured)


def pipeline_key(
    weights: str, calls: SampleCalls, dtype: str, *, grid: int, spacing: str, seed: int
) -> CostKey:
    """What the costs of a pipeline depend on. weights: their hash, of `load_pipeline`."""
    return CostKey(weights, grid, spacing, seed, conditions=conditions(calls, dtype))


def pipeline_costs(
    pipeline: Any,
    key: CostKey,
    folder: Path,
    calls: SampleCalls,
    *,
    budgets: Sequence[int],
    wanted: ScheduleSearch,
    samples: int | None,
) -> tuple[CostMatrix, Measured]:
    """As `search_costs`, over the latents of a pipeline; sample i has row i modulo their number.
    calls: of `prepare_calls`. samples, None: in rounds, until the steps of the budgets settle.

    InputError too, in a line, for what the pipeline refuses."""
    total = read_own_costs(folder / COST, key, pipeline.device)
    measured = _read_measured(folder, key)
    if total.samples and measured is None:
        # A version without it took pipelines that it should not have, or told them other times.
        raise InputError(
            f"{folder / COST}: costs of a pipeline without {MEASURED} beside them, which says what"
            " was found at its networks; another --out, or remove the file"
        )

    def plan() -> Look:
        if samples is not None:
            return Look(max(samples, total.samples))
        settings = search_settings(wanted)
        if SOLVERS[settings.solver].fitted:
            # Whose own costs take as long in each resample as in all trajectories.
            settings = replace(settings, solver="ab2")
        return look(total, budgets, settings, batch_size=wanted.batch_size, seed=key.seed)

    rolled = _RollOuts(pipeline, key, calls, folder, measured)
    there = total.samples
    with CostSaver(folder / COST, key, total) as saver:
        while (next_look := plan()).samples > total.samples:
            rows = range(total.samples, next_look.samples)
            if total.samples == there:
                announce(total, len(rows), min(wanted.batch_size, len(rows)))
            _say_prompts(len(calls.rows), rows.stop)
            with progress("cost", len(rows) * key.grid, "sample steps") as advance:
                for part in calls.parts(rows, wanted.batch_size):
                    rolled.add(total, part, advance)
                    saver.save_now_and_then()
    if total.samples == there:
        announce(total, 0, wanted.batch_size)
    if samples is None:
        print(f"search: {total.samples} trajectories: {next_look.reason}", flush=True)
    assert rolled.measured is not None  # a search has at least one sample
    return total.result(), rolled.measured


class _RollOuts:
    """Adds trajectories of a pipeline to a sum, and keeps what is found at its networks.

    What is written to the folder is of all samples so far: rows whose own arguments ask for other
    guidance may take other evaluations."""

    def __init__(
        self, pipeline: Any, key: CostKey, calls: SampleCalls, folder: Path,
        measured: Measured | None,
    ) -> None:  # fmt: skip
        self.pipeline, self.key, self.calls, self.folder = pipeline, key, calls, folder
        self.measured = measured
        # Sets of arguments whose velocity is known to be one of state and time.
        self.checked: set[frozenset[str]] = set()

    def add(self, total: CostSum, part: range, advance: Callable[[int], None]) -> None:
        first = self.measured is None
        names = frozenset(self.calls.arguments(part.start))
        check = names not in self.checked and (first or bool(self.checked))
        self.checked.add(names)
        call = self.calls.call(part, seed=seed_for(COSTS, self.key.seed))
        before = total.samples
        with pipeline_refusals(self.pipeline):
            found = estimate_pipeline_cost(
                self.pipeline, self.key.timesteps, [call], total=total, check=check,
                rounding=first, on_step=advance, on_memory=_say_memory if first else None,
            )  # fmt: skip
        seen = Measured(found.nfe, found.rounding, found.discarded)
        if self.measured is None:
            self.measured = _say_measured(seen, self.folder, self.key)
        elif not np.array_equal(seen.nfe, self.measured.nfe):
            share = len(part) / (before + len(part))
            mean = self.measured.nfe + share * (seen.nfe - self.measured.nfe)
            self.measured = replace(self.measured, nfe=mean)
            _write_measured(self.measured, self.folder, self.key)


def _say_memory(held: int) -> None:
    print(f"search: holding {held / 2**20:,.1f} MiB of velocities", flush=True)


def _say_prompts(count: int, trajectories: int) -> None:
    """That prompts are used more than once, where they are."""
    if count >= trajectories:
        return
    most = -(-trajectories // count)
    times = f"{most}" if trajectories % count == 0 else f"up to {most}"
    print(
        f"search: {count} prompt{'s' if count > 1 else ''} for {trajectories} trajectories: each"
        f" is used for {times} of them, with other noise"
    )


def _say_measured(found: Measured, folder: Path, key: CostKey) -> Measured:
    print(f"search: {found.nfe.mean():g} network evaluations in a step", flush=True)
    if found.discarded:
        print(
            f"search: {found.discarded:.0%} of the latents are overwritten by the pipeline; they"
            " are not in the costs"
        )
    _write_measured(found, folder, key)
    return found


def _write_measured(found: Measured, folder: Path, key: CostKey) -> None:
    content = {
        name: None if v is None else np.asarray(v).tolist() for name, v in vars(found).items()
    }
    text = json.dumps(content | {"search": asdict(key)}, indent=1)
    write_bytes(folder / MEASURED, text.encode() + b"\n")


def _read_measured(folder: Path, key: CostKey) -> Measured | None:
    """That of the same search, where there is one."""
    try:
        content = json.loads((folder / MEASURED).read_text())
        if content["search"] != asdict(key):
            return None
        nfe, rounding = np.array(content["nfe"]), content["rounding"]
        return Measured(nfe, None if rounding is None else np.array(rounding), content["discarded"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def rounding_lines(
    measured: Measured,
    matrix: CostMatrix,
    schedules: Mapping[int, Schedule],
    objective: str,
    dtype: str,
) -> Iterator[str]:
    """How far the errors and the steps of a search in half precision can be trusted."""
    if measured.rounding is None:
        yield f"rounding: what the network rounds in {dtype} could not be measured; compare with"
        yield "  --dtype float32 before you trust differences of short steps"
        return
    if not measured.rounding.any():
        return
    clean = without_rounding(matrix, measured.rounding)
    largest = 0.0
    for budget, schedule in schedules.items():
        with_it, without = (
            PredictedErrors(costs, schedule.solver, _order(schedule)).of(schedule.indices)[0]
            for costs in (matrix, clean)
        )
        share = 1.0 - without / with_it if with_it > 0 else 0.0
        largest = max(largest, share)
        line = f"rounding: {share:.1%} of the predicted error at K = {budget} is {dtype}'s"
        if objective == "l2_squared":
            best = optimal_steps(clean, [budget], solver=schedule.solver, order=_order(schedule))[
                budget
            ]
            if best.cost > 0:
                loss = max(0.0, without / best.cost - 1.0)
                line += f"; without it, these steps are {loss:.1%} from the best"
            else:
                line += "; too little is left without it to tell which steps are the best"
        yield line
    if largest > 0.05:
        yield "rounding: --dtype float32 has none, and takes more time and memory"


def _order(schedule: Schedule) -> int:
    """The velocities of a step; 2 and 3 are the same where there are no more."""
    return max(2, max(map(len, schedule.weights))) if schedule.weights else LARGEST_ORDER


def check_pipeline_request(objective: str, reference: str, features: Path | None) -> None:
    """InputError for what needs the network at states of its own, which a pipeline, a sampler
    from noise by Euler's steps, does not give, or images, which latents are not."""
    if reference != "euler":
        raise InputError(f"--reference: {reference}; with --pipeline euler needed")
    if features is not None:
        raise InputError(f"--features: {features}; with --pipeline none, as latents are no images")
    if objective in ("oss", "refine", "lpips"):
        raise InputError(
            f"--objective: {objective}; with --pipeline one of the costs, or auto, which"
            " compares samples of their steps, needed"
        )


def find_pipeline_steps(
    pipeline: Any,
    key: CostKey,
    matrix: CostMatrix,
    budgets: Sequence[int],
    wanted: ScheduleSearch,
    calls: SampleCalls,
) -> Iterator[tuple[int, FoundSteps]]:
    """As `network_steps`; ``auto`` runs the pipeline with the steps of every candidate."""
    settings = search_settings(wanted)
    if SOLVERS[settings.solver].fitted:
        yield from fitted_pipeline_steps(pipeline, key, matrix, budgets, wanted, calls)
        return
    if settings.objective != "auto":
        yield from from_costs(matrix, budgets, settings)
        return

    def sample(rows: range, times: Times, solver: str) -> torch.Tensor:
        ends = []
        for part in calls.parts(rows, settings.batch_size):
            call = calls.call(part, seed=seed_for(SEARCH, key.seed))
            with pipeline_refusals(pipeline):
                ends.append(sample_latents(pipeline, times, [call], solver=solver))
        shapes = {tuple(each.shape[1:]) for each in ends}
        if len(shapes) > 1:
            raise InputError(
                f"--objective: auto, but the prompts ask for latents of several shapes"
                f" ({', '.join(map(str, sorted(shapes)))}), which it cannot compare; one needed"
            )
        return torch.cat(ends)

    def sampler(steps: dict[str, tuple[int, ...]], to: Reference) -> dict[str, torch.Tensor]:
        ends = {
            path: sample(rows, matrix.timesteps[list(path)], settings.solver)
            for path in set(steps.values())
        }
        return {name: ends[path] for name, path in steps.items()}

    rows = range(HELD_OUT * settings.samples)  # none of them was searched on
    say(f"schedule: {len(rows)} trajectories of {key.grid} steps to compare with")
    test = Reference(torch.tensor(rows), sample(rows, matrix.timesteps, "euler"))
    for budget, steps in candidates(matrix, budgets, settings).items():
        choice = choose_sampled(sampler, key.grid, steps, test, distance=sliced_wasserstein)
        say(f"schedule: K = {budget}, {settings.solver}: {verdict(choice)}")
        yield budget, chosen(choice)


def fitted_pipeline_steps(
    pipeline: Any,
    key: CostKey,
    matrix: CostMatrix,
    budgets: Sequence[int],
    wanted: ScheduleSearch,
    calls: SampleCalls,
) -> Iterator[tuple[int, FoundSteps]]:
    """The steps of ``multistep``, as `boss_core.search.find.find_steps` has them, and their
    weights, fitted in calls of the pipeline with the first samples of the costs."""
    settings = search_settings(wanted)
    if settings.objective == "auto":
        of_ab2 = wanted.model_copy(update={"solver": "ab2"})
        paths = dict(find_pipeline_steps(pipeline, key, matrix, budgets, of_ab2, calls))
    else:
        paths = dict(from_costs(matrix, budgets, settings))
    knots = sorted({i for path in paths.values() for i in path.indices})
    parts = list(
        calls.parts(range(min(FITTED, max(matrix.samples, FEWEST_NOISES))), settings.batch_size)
    )
    samples, grid = sum(map(len, parts)), key.grid
    passes = sum(k * (k + 1) // 2 - 1 for k in budgets)
    say(
        f"schedule: weights fitted to {samples} samples: their fine trajectories again, and"
        f" {passes} steps for each"
    )

    def made() -> Iterator[dict[str, Any]]:
        return (calls.call(part, seed=seed_for(COSTS, key.seed)) for part in parts)

    with (
        pipeline_refusals(pipeline),
        progress("schedule: trajectories to fit weights to", samples * grid, "sample steps") as on,
    ):
        teachers = [
            teacher_states(pipeline, key.timesteps, knots, call, on_step=on)[0] for call in made()
        ]
    with progress("schedule: weights", samples * passes, "sample steps") as advance:
        for budget, path in paths.items():
            places = [knots.index(i) for i in path.indices]
            with pipeline_refusals(pipeline):
                fitted = fit_pipeline_weights(
                    pipeline,
                    matrix.timesteps[list(path.indices)],
                    made,
                    [states.at(places) for states in teachers],
                    order=settings.order,
                    on_call=advance,
                )
            yield budget, replace(path, fitted=fitted)
