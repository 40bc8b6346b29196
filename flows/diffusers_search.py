"""``boss schedule --pipeline``: the costs of a diffusers pipeline's steps."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from boss_core.cost import CostMatrix
from boss_core.distances import sliced_wasserstein
from boss_core.errors import InputError
from boss_core.pipelines import (
    estimate_pipeline_cost,
    pipeline_hash,
    prompt_calls,
    sample_latents,
)
from boss_core.selection import Reference, choose_sampled
from boss_core.timesteps import Times
from flows.chosen import Chosen, candidates, chosen_by, from_costs
from flows.config import ScheduleSearch
from flows.progress import progress
from flows.search import (
    TEST,
    Keeper,
    Search,
    announce,
    read_costs,
)

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
    except (OSError, ValueError) as error:
        raise InputError(f"--pipeline: {source}: {' '.join(str(error).split())}") from error
    pipeline.set_progress_bar_config(disable=True)  # the search has one of its own
    weights = pipeline_hash(pipeline)  # before they are on a GPU, to be copied back
    return pipeline.to(device), weights


def read_prompts(path: Path | None) -> list[str]:
    """One prompt a line; empty lines are left out."""
    if path is None:
        raise InputError("--prompts: missing; a text file with one prompt a line needed")
    try:
        prompts = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}; a text file with one prompt a line needed") from error
    if not prompts:
        raise InputError(f"{path}: no prompts in it; one a line needed")
    return prompts


def conditions(prompts: Sequence[str], shared: Mapping[str, Any], dtype: str) -> str:
    """What else than weights and noise the costs depend on, as a hash."""
    content = json.dumps([list(prompts), dict(shared), dtype], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def pipeline_costs(
    pipeline: Any,
    search: Search,
    folder: Path,
    *,
    prompts: Sequence[str],
    shared: Mapping[str, Any],
    samples: int,
    batch_size: int,
    device: torch.device,
) -> CostMatrix:
    """As `search_costs`, over the latents of a pipeline; sample i has prompt i modulo their
    number. ``shared``: further arguments of each call (guidance_scale, height, ...)."""
    total = read_costs(folder, search, device)
    rows = range(total.samples, max(samples, total.samples))
    announce(total, len(rows), min(batch_size, max(1, len(rows))))
    each = [prompts[i % len(prompts)] for i in rows]

    def say(held: int) -> None:
        print(f"search: holding {held / 2**20:,.1f} MiB of velocities", flush=True)

    with (
        Keeper(folder, search, total) as keeper,
        progress("cost", len(rows) * search.grid, "sample steps") as advance,
    ):
        for start in range(0, len(rows), batch_size):
            part = each[start : start + batch_size]
            first = rows.start + start
            calls = prompt_calls(
                part, batch_size=len(part), seed=search.seed, first=first, **shared
            )
            found = estimate_pipeline_cost(
                pipeline,
                search.timesteps,
                calls,
                total=total,
                on_step=advance,
                on_memory=say if start == 0 else None,
            )
            if start == 0:
                print(f"search: {found.nfe_per_step:g} network evaluations in a step", flush=True)
            keeper.keep()
    return total.result()


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
    search: Search,
    matrix: CostMatrix,
    budgets: Sequence[int],
    settings: ScheduleSearch,
    *,
    prompts: Sequence[str],
    shared: Mapping[str, Any],
) -> Iterator[tuple[int, Chosen]]:
    """As `find_steps`; ``auto`` runs the pipeline with the steps of every candidate."""
    if settings.objective != "auto":
        yield from from_costs(matrix, budgets, settings)
        return

    def sample(rows: Sequence[int], times: Times, solver: str) -> torch.Tensor:
        calls = (
            call
            for start in range(0, len(rows), settings.batch_size)
            for part in [rows[start : start + settings.batch_size]]
            for call in prompt_calls(
                [prompts[i % len(prompts)] for i in part], batch_size=len(part),
                seed=search.seed, first=part[0], **shared,
            )
        )  # fmt: skip
        return sample_latents(pipeline, times, calls, solver=solver)

    def sampler(steps: dict[str, tuple[int, ...]], to: Reference) -> dict[str, torch.Tensor]:
        ends = {
            path: sample(to.noise.tolist(), matrix.timesteps[list(path)], settings.solver)
            for path in set(steps.values())
        }
        return {name: ends[path] for name, path in steps.items()}

    count = 2 * settings.samples  # as `flows.chosen` holds out
    print(f"schedule: {count} trajectories of {search.grid} steps to compare with", flush=True)
    rows = range(TEST, TEST + count)
    test = Reference(torch.tensor(rows), sample(rows, matrix.timesteps, "euler"))
    for budget, steps in candidates(matrix, budgets, settings).items():
        choice = choose_sampled(sampler, search.grid, steps, test, distance=sliced_wasserstein)
        yield budget, chosen_by(choice, budget, settings.solver)
