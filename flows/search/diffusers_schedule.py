"""``boss schedule --pipeline``: the costs of a diffusers pipeline's steps."""

import inspect
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from boss_core.bellman.objectives import optimal_steps, path_values, step_costs
from boss_core.costs.cost_file import CostKey, CostSaver, read_own_costs
from boss_core.costs.matrix import CostMatrix
from boss_core.errors import InputError
from boss_core.interop.diffusers_pipelines import (
    estimate_pipeline_cost,
    pipeline_hash,
    prompt_calls,
    sample_latents,
)
from boss_core.interop.pipeline_rounding import without_rounding
from boss_core.io.files import write_bytes
from boss_core.ode.noise import COSTS, SEARCH, seed_for
from boss_core.ode.schedule import Schedule
from boss_core.ode.timesteps import Times
from boss_core.search.auto import candidates, chosen, verdict
from boss_core.search.choose import Reference, choose_sampled
from boss_core.search.distances import sliced_wasserstein
from boss_core.search.settings import HELD_OUT
from boss_core.search.steps import FoundSteps, from_costs
from flows.config import ScheduleSearch
from flows.progress import progress
from flows.records.searches import say, search_settings
from flows.search.pipeline_call import one_line, pipeline_arguments
from flows.search.schedule import COST, MEASURED, announce

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(source: str, dtype: str, device: torch.device) -> tuple[Any, str]:
    """A pipeline from a folder, or from the hub by its name, and the hash of its weights.

    InputError where diffusers is not installed, or the pipeline cannot be loaded.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype: {dtype!r}; {', '.join(DTYPES)} known")
    try:
        from diffusers import DiffusionPipeline
    except ModuleNotFoundError as error:
        raise InputError(
            "--pipeline: diffusers is not installed; pip install 'boss-flow[diffusers]' needed"
        ) from error
    try:
        # Weights come as safetensors or not at all: a pickle could run code.
        pipeline = DiffusionPipeline.from_pretrained(
            source, torch_dtype=DTYPES[dtype], use_safetensors=True
        )
    except (OSError, ValueError, AttributeError, ImportError, TypeError, KeyError) as error:
        unknown = isinstance(error, AttributeError)  # a class that this diffusers does not have
        needed = "; one of the installed diffusers, or a newer diffusers, needed" if unknown else ""
        raise InputError(f"--pipeline: {source}: {one_line(error)}{needed}") from error
    pipeline.set_progress_bar_config(disable=True)  # the search has one of its own
    weights = pipeline_hash(pipeline)  # before they are on a GPU, to be copied back
    return pipeline.to(device), weights


@dataclass(frozen=True)
class Measured:
    """What a search found at a pipeline's networks: `PipelineCost` without the costs."""

    nfe: NDArray[np.float64]
    rounding: NDArray[np.float64] | None
    discarded: float

    def evaluations(self, indices: Sequence[int]) -> float:
        """Network evaluations for one sample in steps from these grid points but the last."""
        return round(float(self.nfe[list(indices[:-1])].sum()), 6)


# A few lines longer than others: what one call rolls out and what it says belong to this search.
def pipeline_costs(
    pipeline: Any,
    key: CostKey,
    folder: Path,
    *,
    prompts: Sequence[str],
    shared: Mapping[str, Any],
    samples: int,
    batch_size: int,
    device: torch.device,
) -> tuple[CostMatrix, Measured]:
    """As `search_costs`, over the latents of a pipeline; sample i has prompt i modulo their
    number. ``shared``: further arguments of each call (guidance_scale, height, ...).

    InputError too, in a line, for what the pipeline refuses, and for guidance that it ignores."""
    total = read_own_costs(folder / COST, key, device)
    rows = range(total.samples, max(samples, total.samples))
    announce(total, len(rows), min(batch_size, max(1, len(rows))))
    _say_prompts(len(prompts), rows.stop)
    arguments = pipeline_arguments(pipeline, shared)
    measured = _read_measured(folder, key)
    if total.samples and measured is None:
        # A version without it took pipelines that it should not have, or told them other times.
        raise InputError(
            f"{folder / COST}: costs of a pipeline without {MEASURED} beside them, which says what"
            " was found at its networks; another --out, or remove the file"
        )

    def say(held: int) -> None:
        print(f"search: holding {held / 2**20:,.1f} MiB of velocities", flush=True)

    def roll_out(part: range, **options: Any) -> Measured:
        texts = [prompts[i % len(prompts)] for i in part]
        calls = prompt_calls(
            texts,
            batch_size=len(part),
            seed=seed_for(COSTS, key.seed),
            first=part.start,
            **arguments,
        )
        first = measured is None
        with _refusals(pipeline):
            found = estimate_pipeline_cost(
                pipeline, key.timesteps, calls, check=first, rounding=first, **options
            )
        return Measured(found.nfe, found.rounding, found.discarded)

    with (
        CostSaver(folder / COST, key, total) as saver,
        progress("cost", len(rows) * key.grid, "sample steps") as advance,
    ):
        for start in range(rows.start, rows.stop, batch_size):
            part = range(start, min(start + batch_size, rows.stop))
            found = roll_out(
                part,
                total=total,
                on_step=advance,
                on_memory=say if start == rows.start else None,
            )
            measured = measured or _say_measured(found, folder, key)
            saver.save_now_and_then()
    assert measured is not None  # a search has at least one sample
    return total.result(), measured


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
    content = {
        name: None if v is None else np.asarray(v).tolist() for name, v in vars(found).items()
    }
    text = json.dumps(content | {"search": asdict(key)}, indent=1)
    write_bytes(folder / MEASURED, text.encode() + b"\n")
    return found


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
            path_values(step_costs(costs, solver=schedule.solver), schedule.indices)[0]
            for costs in (matrix, clean)
        )
        share = 1.0 - without / with_it if with_it > 0 else 0.0
        largest = max(largest, share)
        line = f"rounding: {share:.1%} of the predicted error at K = {budget} is {dtype}'s"
        if objective == "l2_squared":
            best = optimal_steps(clean, [budget], solver=schedule.solver)[budget]
            if best.cost > 0:
                loss = max(0.0, without / best.cost - 1.0)
                line += f"; without it, these steps are {loss:.1%} from the best"
            else:
                line += "; too little is left without it to tell which steps are the best"
        yield line
    if largest > 0.05:
        yield "rounding: --dtype float32 has none, and takes more time and memory"


@contextmanager
def _refusals(pipeline: Any) -> Iterator[None]:
    """What a pipeline's call raises, as an InputError: its own words in a line."""
    try:
        yield
    except InputError:
        raise
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"--batch-size: out of memory ({one_line(error)}); a smaller one needed"
        ) from error
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        call = inspect.unwrap(type(pipeline).__call__).__code__
        in_call = any(frame.f_code is call for frame in frames)
        ours = str(frames[-1].f_globals.get("__name__", "")).startswith(("boss_core", "flows"))
        if ours or not (in_call or isinstance(error, TypeError)):
            raise
        raise InputError(
            f"--pipeline: {type(pipeline).__name__} refuses this call:"
            f" {type(error).__name__}: {one_line(error)}"
        ) from error


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
    *,
    prompts: Sequence[str],
    shared: Mapping[str, Any],
) -> Iterator[tuple[int, FoundSteps]]:
    """As `network_steps`; ``auto`` runs the pipeline with the steps of every candidate."""
    settings = search_settings(wanted)
    if settings.objective != "auto":
        yield from from_costs(matrix, budgets, settings)
        return

    arguments = pipeline_arguments(pipeline, shared)

    def sample(rows: Sequence[int], times: Times, solver: str) -> torch.Tensor:
        calls = (
            call
            for start in range(0, len(rows), settings.batch_size)
            for part in [rows[start : start + settings.batch_size]]
            for call in prompt_calls(
                [prompts[i % len(prompts)] for i in part], batch_size=len(part),
                seed=seed_for(SEARCH, key.seed), first=part[0], **arguments,
            )
        )  # fmt: skip
        with _refusals(pipeline):
            return sample_latents(pipeline, times, calls, solver=solver)

    def sampler(steps: dict[str, tuple[int, ...]], to: Reference) -> dict[str, torch.Tensor]:
        ends = {
            path: sample(to.noise.tolist(), matrix.timesteps[list(path)], settings.solver)
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
