"""``boss straighten``: students of a network for some budgets, from the command line."""

from pathlib import Path

import typer

from flows.cli.options import DEVICE, NETWORK, SEED
from flows.cli.schedule import parse_samples

DIFFUSERS = "Of a diffusers pipeline"
TRAINING = "Training"


# Its parameters are the options of the command line, one each.
def straighten(
    pipeline: str | None = typer.Option(
        None,
        rich_help_panel=NETWORK,
        help="A diffusers pipeline, a folder or a name on the hub: a LoRA of it is trained.",
    ),
    budget: list[int] = typer.Option(..., help="Steps of a student; repeat for more students."),
    prompts: Path | None = typer.Option(
        None,
        rich_help_panel=DIFFUSERS,
        help="A text file, one prompt a line, or JSON lines with arguments of their own; needed.",
    ),
    guidance: float | None = typer.Option(
        None, rich_help_panel=DIFFUSERS, help="The teacher's guidance_scale, to be baked in."
    ),
    size: str | None = typer.Option(
        None, metavar="HxW", rich_help_panel=DIFFUSERS, help="Height and width of the images."
    ),
    call: list[str] = typer.Option(
        [],
        metavar="NAME=VALUE",
        rich_help_panel=DIFFUSERS,
        help="Another argument of its call, as true_cfg_scale=4 or num_frames=33; repeat for more.",
    ),
    dtype: str = typer.Option(
        "bfloat16", rich_help_panel=DIFFUSERS, help="float32, bfloat16 or float16."
    ),
    lora: list[str] = typer.Option(
        [],
        rich_help_panel=DIFFUSERS,
        help="A LoRA of yours that is part of the teacher; repeat for more.",
    ),
    rank: int = typer.Option(
        64, min=1, max=4096, rich_help_panel=TRAINING, help="Rank of each student's LoRA."
    ),
    full: bool = typer.Option(
        False, "--full", rich_help_panel=TRAINING, help="Train all weights, in place of a LoRA."
    ),
    iterations: int = typer.Option(
        1000, min=1, max=10**9, rich_help_panel=TRAINING, help="Steps of the optimiser."
    ),
    learning_rate: float = typer.Option(
        2e-4, min=1e-9, max=1, rich_help_panel=TRAINING, help="At its peak."
    ),
    trajectories: int = typer.Option(
        512,
        min=1,
        max=10**9,
        rich_help_panel=TRAINING,
        help="Samples of the teacher to learn from.",
    ),
    batch_size: int = typer.Option(
        8, min=1, max=10**6, rich_help_panel=TRAINING, help="Samples in one call of the pipeline."
    ),
    accumulate: int = typer.Option(
        1, min=1, max=10**6, rich_help_panel=TRAINING, help="Calls whose gradients make a step."
    ),
    gradient_checkpointing: bool = typer.Option(
        False,
        "--gradient-checkpointing",
        rich_help_panel=TRAINING,
        help="Less memory, for a third more time.",
    ),
    held_out: int = typer.Option(
        16, min=1, max=10**6, rich_help_panel=TRAINING, help="Samples to measure each student on."
    ),
    grid: int = typer.Option(
        100, min=2, help="Steps of the teacher, among which those of students are."
    ),
    steps: str = typer.Option(
        "search", help="search (by dynamic programming), uniform, or a schedule's file."
    ),
    solver: str = typer.Option("euler", help="euler, or ab2: two-step Adams-Bashforth."),
    samples: str = typer.Option(
        "auto", help="Trajectories of the search: a number, or auto, until the steps have settled."
    ),
    seed: int = SEED,
    device: str = DEVICE,
    replace: bool = typer.Option(
        False, "--replace", help="Write over students of another run in --out."
    ),
    out: Path = typer.Option(Path("students"), help="Folder for a folder of each student."),
) -> None:
    """Train a network to be straight between few steps: as good in K evaluations as in many.

    Without data: the teacher's own trajectories are what is learned from, guidance baked in.
    Stopped at any moment, the same command goes on.

    `boss straighten --pipeline ./sd3 --prompts prompts.txt --guidance 4.5 --budget 4 --budget 8`
    """
    from flows.straighten.pipeline import straighten_pipeline
    from flows.straighten.request import PipelineRequest, Teacher, Training

    if pipeline is None:
        from boss_core.errors import InputError

        raise InputError("--pipeline: missing; a folder or a name on the hub needed")
    straighten_pipeline(
        PipelineRequest(
            teacher=Teacher(pipeline, prompts, guidance, size, tuple(call), dtype, tuple(lora)),
            training=Training(
                rank=None if full else rank,
                trajectories=trajectories,
                held_out=held_out,
                batch_size=batch_size,
                accumulate=accumulate,
                iterations=iterations,
                learning_rate=learning_rate,
                checkpointing=gradient_checkpointing,
            ),
            budgets=tuple(sorted(set(budget))),
            grid=grid,
            steps=steps,
            solver=solver,
            samples=parse_samples(samples, pipeline),
            seed=seed,
            device=device,
            replace=replace,
            out=out,
        )
    )
