"""``boss schedule --pipeline``: the costs of a diffusers pipeline's steps."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from boss_core.cost import CostMatrix
from boss_core.errors import InputError
from boss_core.pipelines import estimate_pipeline_cost, pipeline_hash, prompt_calls
from flows.progress import progress
from flows.search import Keeper, Search, announce, read_costs

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
