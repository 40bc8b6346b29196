"""``boss schedule``: the options of a search, and its steps one after another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from boss_core.bellman.names import GITS_GAMMA
from boss_core.errors import InputError
from boss_core.ode.solver_table import LARGEST_ORDER
from boss_core.search.settings import FEWEST
from flows.cli.options import CHECKPOINT, CONFIG, DEVICE, NETWORK, RAW, SEED, SHAPE, VELOCITY
from flows.config import ScheduleSearch

if TYPE_CHECKING:
    from boss_core.costs.matrix import CostMatrix
    from boss_core.ode.schedule import Schedule

SPACINGS = ("uniform", "karras", "quadratic", "shifted")
DIFFUSERS = "Of a diffusers pipeline"
PIPELINE = typer.Option(
    None,
    rich_help_panel=NETWORK,
    help="Instead of a checkpoint: a diffusers pipeline, a folder or a name on the hub.",
)


# Its parameters are the options of the command line, one each; what they ask for is `Request`.
def schedule(
    checkpoint: Path | None = CHECKPOINT,
    budget: list[int] = typer.Option(
        ..., help="Steps: network evaluations (NFE) where one takes one; repeat for more."
    ),
    config: str | None = CONFIG,
    raw_weights: bool = RAW,
    velocity: str | None = VELOCITY,
    shape: str | None = SHAPE,
    grid: int = typer.Option(100, min=1, help="Steps of the fine grid to choose from."),
    pipeline: str | None = PIPELINE,
    prompts: Path | None = typer.Option(
        None,
        rich_help_panel=DIFFUSERS,
        help="A text file, one prompt a line, or JSON lines, whose rows may have arguments of their"
        " own; needed.",
    ),
    guidance: float | None = typer.Option(
        None, rich_help_panel=DIFFUSERS, help="Its guidance_scale."
    ),
    size: str | None = typer.Option(
        None, metavar="HxW", rich_help_panel=DIFFUSERS, help="Height and width of the images."
    ),
    call: list[str] = typer.Option(
        [],
        metavar="NAME=VALUE",
        rich_help_panel=DIFFUSERS,
        help="Another argument of its call, as true_cfg_scale=4, negative_prompt=blurred,"
        " num_frames=33 or image=photo.png; repeat for more.",
    ),
    dtype: str | None = typer.Option(
        None, rich_help_panel=DIFFUSERS, help="float32, bfloat16 (when left out) or float16."
    ),
    spacing: str = typer.Option("uniform", help=f"Fine grid: {', '.join(SPACINGS)}."),
    reference: str = typer.Option(
        "euler", help="Fine trajectories to measure on: euler (the paper), heun or rk45."
    ),
    solver: str = typer.Option(
        "euler",
        help="euler (the paper); ab2: two-step Adams-Bashforth, better samples from as many"
        " evaluations; multistep: its weights fitted to the network, better still.",
    ),
    order: int = typer.Option(
        LARGEST_ORDER, min=2, max=LARGEST_ORDER, help="Velocities of a step of --solver multistep."
    ),
    objective: str = typer.Option(
        "l2_squared",
        help="What the steps are best for: l2_squared (the paper), l2, minimax, gits, oss, refine,"
        " auto, which compares samples of all these, or lpips, which needs weights files; with"
        " --solver multistep also uniform, equal steps.",
    ),
    gamma: float = typer.Option(GITS_GAMMA, min=0.01, max=10, help="Of --objective gits."),
    lpips_weights: Path = typer.Option(
        Path("inputs/lpips"), help="Of --objective lpips: the folder of its two weights files."
    ),
    noises: int = typer.Option(
        256,
        min=FEWEST,
        max=10**9,
        help="Samples that oss, refine and auto search on; auto compares on twice as many others,"
        " and lpips takes an eighth of them.",
    ),
    features: Path | None = typer.Option(
        None,
        help="What refine and auto compare samples by: a folder with card.json and an extractor, as"
        " models/features. Without it they go by pixels, which on photographs may mislead.",
    ),
    samples: str | None = typer.Option(
        None,
        metavar="N|auto",
        help="Trajectories to measure, 100 when left out; with --pipeline auto then: as many as it"
        " takes until more would hardly change the steps, 20 to 100.",
    ),
    batch_size: int | None = typer.Option(
        None,
        min=1,
        max=10**9,
        help="Trajectories at a time, in all that is searched. Left out: up to 512, by the memory"
        " that is free; with --pipeline 20.",
    ),
    seed: int = SEED,
    device: str = DEVICE,
    compare: list[str] = typer.Option(
        [],
        metavar="SIGMAS",
        help="Steps of others to show beside: noise levels, as 1,0.65,0.3,0; repeat for more.",
    ),
    replace: bool = typer.Option(
        False,
        "--replace",
        help="Write over schedules of another solver, objective or network in --out.",
    ),
    out: Path = typer.Option(Path("schedules"), help="Folder for K.json, cost.npz and cost.png."),
) -> None:
    """Find the best K steps of a network, for each budget K: no training, no data.

    Rolls out trajectories on the fine grid, measures what every possible step would cost,
    and finds the cheapest K. Stopped, it goes on from where it was; asked for other budgets, it
    need not measure again. What oss, refine, auto and lpips sample beyond that is not kept.

    `boss schedule --checkpoint checkpoint_8.pth --config cifar10 --budget 4 --budget 8`
    """
    asked = Request(
        network=NetworkOptions(checkpoint, config, raw_weights, velocity, shape),
        pipeline=PipelineOptions(pipeline, prompts, guidance, size, call, dtype),
        budgets=tuple(sorted(set(budget))),
        grid=grid,
        spacing=spacing,
        reference=reference,
        solver=solver,
        order=order,
        objective=objective,
        gamma=gamma,
        lpips_weights=lpips_weights,
        noises=noises,
        features=features,
        samples=parse_samples(samples, pipeline),
        batch_size=batch_size,
        seed=seed,
        device=device,
        compare=tuple(compare),
        replace=replace,
        out=out,
    )
    check_options(asked)
    if asked.pipeline.source is None:
        search_network(asked)
    else:
        search_pipeline(asked, asked.pipeline.source)


@dataclass(frozen=True)
class NetworkOptions:
    """Options that name a network, or a callable."""

    checkpoint: Path | None
    config: str | None
    raw_weights: bool
    velocity: str | None
    shape: str | None


@dataclass(frozen=True)
class PipelineOptions:
    """Options that name a diffusers pipeline, by its ``source``, and what each call of it has."""

    source: str | None
    prompts: Path | None
    guidance: float | None
    size: str | None
    call: Sequence[str]
    dtype: str | None


@dataclass(frozen=True)
class Request:
    """What the options of the command ask for, see its help."""

    network: NetworkOptions
    pipeline: PipelineOptions
    budgets: tuple[int, ...]
    grid: int
    spacing: str
    reference: str
    solver: str
    order: int
    objective: str
    gamma: float
    lpips_weights: Path
    noises: int
    features: Path | None
    samples: int | None  # None: until the steps have settled
    batch_size: int | None
    seed: int
    device: str
    compare: tuple[str, ...]
    replace: bool
    out: Path

    def settings(self, batch_size: int) -> ScheduleSearch:
        """What the steps are searched by, so many samples at a time."""
        return ScheduleSearch(
            solver=self.solver,
            order=self.order,
            objective=self.objective,
            gamma=self.gamma,
            distance="sliced_wasserstein" if self.features is None else "features",
            lpips=str(self.lpips_weights),
            samples=self.noises,
            batch_size=batch_size,
        )


def parse_samples(text: str | None, pipeline: str | None) -> int | None:
    """The trajectories to measure; None where the search is to end by itself."""
    if text is None:
        return 100 if pipeline is None else None
    if text == "auto" and pipeline is None:
        raise InputError("--samples: auto, which only goes with --pipeline; a number needed")
    if text == "auto":
        return None
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:20]) <= 1 << 40):
        raise InputError(f"--samples: {text!r:.60}; a number of 1 to 2^40, or auto, needed")
    return int(text)


def check_options(asked: Request) -> None:
    """InputError for options that do not go together, or that no search can have."""
    from flows.search.options import refuse_options
    from flows.search.schedule import check_grid, check_request, steps_of_others

    network, pipeline = asked.network, asked.pipeline
    if pipeline.source is None:
        if network.checkpoint is None and network.velocity is None:
            raise InputError("--checkpoint, --velocity or --pipeline needed")
        of_pipeline = {
            "--prompts": pipeline.prompts,
            "--guidance": pipeline.guidance,
            "--size": pipeline.size,
            "--call": pipeline.call,
            "--dtype": pipeline.dtype,
        }
        refuse_options("--pipeline", of_pipeline)
    else:
        of_checkpoint = {"--config": network.config, "--raw-weights": network.raw_weights}
        refuse_options("--checkpoint", of_checkpoint)
        refuse_options("--velocity", {"--shape": network.shape})
    steps_of_others(asked.compare)
    check_grid(asked.grid)
    check_request(
        asked.budgets, asked.grid, asked.spacing, asked.solver, asked.objective, asked.reference
    )


def search_network(asked: Request) -> None:
    """Search the steps of a network, or of a callable, and write and report them."""
    from boss_core.checkpoints.load import calling
    from boss_core.costs.cost_file import network_key
    from boss_core.networks.threads import limit_threads
    from boss_core.ode.solver_table import SOLVERS
    from flows.search.memory import search_batch
    from flows.search.options import choose_device, choose_teacher
    from flows.search.schedule import (
        check_folder,
        extractor_hash,
        network_steps,
        noise_of,
        search_costs,
        write_schedules,
    )

    of, out, reference = asked.network, asked.out, asked.reference
    on = choose_device(asked.device, float64=True)
    teacher = choose_teacher(of.checkpoint, of.config, of.raw_weights, of.velocity, of.shape)
    if asked.features is None:  # an extractor is larger
        limit_threads(teacher.velocity, teacher.shape, on)
    extractor = extractor_hash(asked.features, teacher.shape)
    source = noise_of(teacher, asked.seed, on)
    key = network_key(source, teacher.hash, asked.grid, spacing=asked.spacing, reference=reference)
    check_folder(out, key, asked.budgets, asked.settings(1), replace=asked.replace)
    size = asked.batch_size or search_batch(teacher.shape, asked.grid, on, reference=reference)
    wanted = asked.settings(size)
    assert asked.samples is not None  # see `parse_samples`
    with calling(of.velocity):
        matrix, fine = search_costs(
            teacher, key, out, source, samples=asked.samples, batch_size=size,
            keep=SOLVERS[asked.solver].fitted,
        )  # fmt: skip
        found = network_steps(
            teacher, matrix, asked.budgets, wanted, source, asked.features, fine, reference
        )
        schedules = write_schedules(out, key, matrix, found, wanted, extractor)
    show(asked, matrix, schedules)


def search_pipeline(asked: Request, source: str) -> None:
    """Search the steps of a diffusers pipeline, and write and report them."""
    from flows.search.diffusers_schedule import (
        check_pipeline_request,
        pipeline_key,
        rounding_lines,
        search_pipeline_steps,
    )
    from flows.search.options import choose_device, parse_shape
    from flows.search.pipeline_call import SampleCalls, call_arguments, read_prompts
    from flows.search.pipeline_loading import load_pipeline

    of, wanted = asked.pipeline, asked.settings(asked.batch_size or 20)
    on = choose_device(asked.device, float64=True)
    check_pipeline_request(asked.objective, asked.reference, asked.features)
    if asked.network.checkpoint is not None or asked.network.velocity is not None:
        raise InputError("--pipeline: with --checkpoint or --velocity; one of them needed")
    dtype = of.dtype or "bfloat16"
    rows = read_prompts(of.prompts)
    size = None if of.size is None else parse_shape(of.size, 2)
    calls = SampleCalls(rows, call_arguments(of.guidance, size, of.call))
    pipeline, weights = load_pipeline(source, dtype, on)
    key = pipeline_key(
        weights, calls, dtype, grid=asked.grid, spacing=asked.spacing, seed=asked.seed
    )
    found = search_pipeline_steps(
        pipeline, key, calls, asked.out, budgets=asked.budgets, wanted=wanted,
        samples=asked.samples, replace=asked.replace,
    )  # fmt: skip
    show(asked, found.matrix, found.schedules)
    for line in rounding_lines(
        found.measured, found.matrix, found.schedules, asked.objective, dtype
    ):
        print(line)


def show(asked: Request, matrix: "CostMatrix", schedules: "Mapping[int, Schedule]") -> None:
    """Print what was found, beside the steps of others that were given."""
    from flows.search.schedule import compared, report, steps_of_others

    others = compared(matrix, steps_of_others(asked.compare))
    report(asked.out, matrix, schedules, asked.settings(1), others)
