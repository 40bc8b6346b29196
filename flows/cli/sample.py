"""``boss sample``."""

from pathlib import Path

import typer

from boss_core.errors import InputError
from flows.cli.options import CHECKPOINT, CONFIG, DEVICE, NETWORK, RAW, SEED, SHAPE, VELOCITY


# Its parameters are the options of the command line: one each.
def sample(
    checkpoint: Path | None = CHECKPOINT,
    schedule: Path | None = typer.Option(
        None, help="A schedule's JSON, or a student's folder; its own steps when left out."
    ),
    sigmas: str | None = typer.Option(
        None, help="Instead: noise levels for Euler, as 1,0.65,0.3,0; a last 0 is added."
    ),
    number: int = typer.Option(64, "--number", "-n", min=1, help="Images."),
    out: Path = typer.Option(Path("samples.png"), help="The PNG to write: a grid of all images."),
    config: str | None = CONFIG,
    raw_weights: bool = RAW,
    velocity: str | None = VELOCITY,
    network: str | None = typer.Option(
        None,
        metavar="MODULE:NAME",
        rich_help_panel=NETWORK,
        help="What `boss straighten --network` was given; with --checkpoint its student's folder,"
        " as fast/4, or with --schedule the network itself.",
    ),
    shape: str | None = SHAPE,
    classes: int | None = typer.Option(
        None,
        min=1,
        rich_help_panel=NETWORK,
        help="With --network, where it is called as (x, t, labels).",
    ),
    label: int | None = typer.Option(None, help="The class of a conditional network's images."),
    batch_size: int = typer.Option(64, min=1, help="Images at a time."),
    seed: int = SEED,
    device: str = DEVICE,
) -> None:
    """Sample images on the steps of a schedule, with its solver, and write them as one picture."""
    from boss_core.checkpoints.load import calling
    from flows.search.options import (
        check_place,
        check_png,
        choose_device,
        choose_student,
        choose_teacher,
        refuse_options,
    )
    from flows.search.sample import choose_schedule, sample_grid

    check_place("--out", out, folder=False)
    check_png("--out", out)
    on = choose_device(device)
    if network is None:
        refuse_options("--network", {"--classes": classes})
        teacher = choose_teacher(checkpoint, config, raw_weights, velocity, shape)
    else:
        for option, value in {
            "--velocity": velocity,
            "--config": config,
            "--raw-weights": raw_weights,
        }.items():
            if value:
                raise InputError(f"--network: {network}, with {option}; one of them needed")
        teacher = choose_student(network, checkpoint, shape, classes)
    steps = choose_schedule(teacher, schedule, sigmas)
    with calling(velocity or network):
        sample_grid(
            teacher, steps, out, number=number, label=label, batch_size=batch_size, seed=seed,
            device=on,
        )  # fmt: skip
