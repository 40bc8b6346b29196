"""``boss straighten``: students of a network for some budgets, from the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from boss_core.errors import InputError
from flows.cli.options import DEVICE, SEED
from flows.cli.schedule import DIFFUSERS, parse_samples

if TYPE_CHECKING:
    from flows.straighten.network import NetworkRequest
    from flows.straighten.request import PipelineRequest, Teacher

KIND = "Network: one of two"
OWN = "Of a network of your own"
TRAINING = "Training"


# Its parameters are the options of the command line, one each.
def straighten(
    pipeline: str | None = typer.Option(
        None,
        rich_help_panel=KIND,
        help="A diffusers pipeline, a folder or a name on the hub: a LoRA of it is trained.",
    ),
    network: str | None = typer.Option(
        None,
        metavar="MODULE:NAME",
        rich_help_panel=KIND,
        help="A function in Python that returns a torch.nn.Module called as (x, t), or such a"
        " module and velocity(network, x, t), as my_code:make_network.",
    ),
    budget: list[int] = typer.Option(
        ..., help="Steps of a student, of one evaluation each; repeat for more students."
    ),
    out: Path = typer.Option(..., help="Folder for K/ with the student of each budget."),
    shape: str | None = typer.Option(
        None, metavar="CxHxW", rich_help_panel=OWN, help="The shape of a sample; needed."
    ),
    classes: int | None = typer.Option(
        None,
        min=1,
        rich_help_panel=OWN,
        help="Of a network called as (x, t, labels): labels from 0 to one below.",
    ),
    precision: str | None = typer.Option(
        None, rich_help_panel=OWN, help="Of the training: float32 (when left out), or bfloat16."
    ),
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
    dtype: str | None = typer.Option(
        None, rich_help_panel=DIFFUSERS, help="float32, bfloat16 (when left out) or float16."
    ),
    lora: list[str] = typer.Option(
        [],
        rich_help_panel=DIFFUSERS,
        help="A LoRA of yours that is part of the teacher; repeat for more.",
    ),
    accumulate: int | None = typer.Option(
        None,
        min=1,
        max=10**6,
        rich_help_panel=DIFFUSERS,
        help="Calls whose gradients make a step; 1 when left out.",
    ),
    gradient_checkpointing: bool = typer.Option(
        False,
        "--gradient-checkpointing",
        rich_help_panel=DIFFUSERS,
        help="Less memory, for a third more time.",
    ),
    compile: bool = typer.Option(
        False,
        "--compile",
        rich_help_panel=DIFFUSERS,
        help="torch.compile of the network's blocks: minutes at first, then less time a step.",
    ),
    rank: int | None = typer.Option(
        None,
        min=1,
        max=4096,
        rich_help_panel=TRAINING,
        help="Rank of a LoRA; left out, 64 of a pipeline, and all weights of another network.",
    ),
    full: bool = typer.Option(
        False, "--full", rich_help_panel=TRAINING, help="Train all weights, in place of a LoRA."
    ),
    iterations: int | None = typer.Option(
        None,
        min=1,
        max=10**9,
        rich_help_panel=TRAINING,
        help="Steps of each training; left out, 1000 of a pipeline, else 2000.",
    ),
    batch_size: int | None = typer.Option(
        None,
        min=1,
        max=10**6,
        rich_help_panel=TRAINING,
        help="Samples at a time; left out, 8 in a call of a pipeline, else 64.",
    ),
    learning_rate: float | None = typer.Option(
        None,
        min=1e-9,
        max=1,
        rich_help_panel=TRAINING,
        help="Adam's; left out, 0.0002 of a pipeline, else 0.0003, or 0.001 with --rank.",
    ),
    trajectories: int | None = typer.Option(
        None,
        min=2,
        max=10**9,
        rich_help_panel=TRAINING,
        help="Samples of the teacher to learn from; left out, 512 of a pipeline, else 1000.",
    ),
    held_out: int | None = typer.Option(
        None,
        min=1,
        max=10**6,
        rich_help_panel=TRAINING,
        help="Samples to measure each student on; left out, 16 of a pipeline, else 256.",
    ),
    grid: int = typer.Option(
        100, min=2, help="Steps of the teacher, among which a student's are chosen."
    ),
    steps: str = typer.Option(
        "search",
        help="search (by dynamic programming); uniform; or a schedule's file, or, of a network of"
        " your own, a folder with K.json.",
    ),
    solver: str | None = typer.Option(
        None, help="euler (when left out), or ab2: two-step Adams-Bashforth."
    ),
    samples: str | None = typer.Option(
        None,
        metavar="N|auto",
        help="Trajectories of the search; left out, of a pipeline auto, until the steps have"
        " settled, else 100.",
    ),
    replace: bool = typer.Option(
        False, "--replace", help="Write over students of another run in --out."
    ),
    seed: int = SEED,
    device: str = DEVICE,
) -> None:
    """Train a network to be straight between few steps: as good in K evaluations as in many.

    Without data: its own trajectories are what is learned from, a pipeline's guidance baked in.
    Stopped at any moment, the same command goes on.

    `boss straighten --pipeline ./sd3 --prompts prompts.txt --guidance 4.5 --budget 4 --out fast`

    `boss straighten --network my_code:make_network --shape 3x32x32 --budget 4 --out fast`
    """
    if (pipeline is None) == (network is None):
        raise InputError("--pipeline or --network needed, and one of them only")
    if full and rank is not None:
        raise InputError(
            f"--rank: {rank} with --full, which trains all weights; one of them needed"
        )
    common = Common(
        tuple(sorted(set(budget))), out, rank, full, iterations, batch_size, learning_rate,
        trajectories, held_out, grid, steps, solver, samples, seed, device, replace,
    )  # fmt: skip
    own = {"--shape": shape, "--classes": classes, "--precision": precision}
    of_pipeline = {
        "--prompts": prompts, "--guidance": guidance, "--size": size, "--call": call,
        "--dtype": dtype, "--lora": lora, "--accumulate": accumulate,
        "--gradient-checkpointing": gradient_checkpointing, "--compile": compile,
    }  # fmt: skip
    from flows.search.options import refuse_options

    if pipeline is None:
        refuse_options("--pipeline", of_pipeline)
        assert network is not None
        from flows.straighten.network import straighten_network

        straighten_network(network_request(network, shape, classes, precision, common))
        return
    refuse_options("--network", own)
    from boss_core.training import distributed
    from flows.straighten.pipeline import straighten_pipeline
    from flows.straighten.request import Teacher

    dtype = dtype or "bfloat16"
    teacher = Teacher(pipeline, prompts, guidance, size, tuple(call), dtype, tuple(lora), compile)
    straighten_pipeline(pipeline_request(teacher, accumulate or 1, gradient_checkpointing, common))
    distributed.leave()


@dataclass(frozen=True)
class Common:
    """The options of both kinds of network; None where each has a default of its own."""

    budgets: tuple[int, ...]
    out: Path
    rank: int | None
    full: bool
    iterations: int | None
    batch_size: int | None
    learning_rate: float | None
    trajectories: int | None
    held_out: int | None
    grid: int
    steps: str
    solver: str | None
    samples: str | None
    seed: int
    device: str
    replace: bool


def network_request(
    network: str, shape: str | None, classes: int | None, precision: str | None, asked: Common
) -> "NetworkRequest":
    """What is asked for of a network of the user's own."""
    from flows.straighten.network import NetworkRequest

    if shape is None:
        raise InputError("--shape: missing; the shape of a sample, as 3x32x32, needed")
    if precision not in (None, "float32", "bfloat16"):
        raise InputError(f"--precision: {precision!r}; float32 or bfloat16 needed")
    samples = parse_samples(asked.samples, None)
    assert samples is not None  # auto is refused of networks
    given = {
        name: getattr(asked, name)
        for name in ("iterations", "batch_size", "trajectories", "held_out")
        if getattr(asked, name) is not None
    }
    return NetworkRequest(
        network=network, shape=shape, budgets=asked.budgets, out=asked.out, steps=asked.steps,
        solver=asked.solver, classes=classes, rank=asked.rank, learning_rate=asked.learning_rate,
        grid=asked.grid, samples=samples, precision=precision or "float32",  # type: ignore[arg-type]
        seed=asked.seed, device=asked.device, replace=asked.replace, **given,
    )  # fmt: skip


def pipeline_request(
    teacher: "Teacher", accumulate: int, checkpointing: bool, asked: Common
) -> "PipelineRequest":
    """What is asked for of a pipeline."""
    from flows.search.export import read_schedule
    from flows.straighten.request import PipelineRequest, Training

    solver = asked.solver or "euler"
    if asked.solver is None and asked.steps not in ("search", "uniform"):
        solver = read_schedule(Path(asked.steps)).solver
    training = Training(
        rank=None if asked.full else asked.rank or 64,
        trajectories=asked.trajectories or 512,
        held_out=asked.held_out or 16,
        batch_size=asked.batch_size or 8,
        accumulate=accumulate,
        iterations=asked.iterations or 1000,
        learning_rate=asked.learning_rate or 2e-4,
        checkpointing=checkpointing,
    )
    return PipelineRequest(
        teacher=teacher,
        training=training,
        budgets=asked.budgets,
        grid=asked.grid,
        steps=asked.steps,
        solver=solver,
        samples=parse_samples(asked.samples, teacher.source),
        seed=asked.seed,
        device=asked.device,
        replace=asked.replace,
        out=asked.out,
    )
