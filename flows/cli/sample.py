"""``boss sample``."""

from pathlib import Path

import typer

from flows.cli.options import CHECKPOINT, CONFIG, DEVICE, RAW, SEED, SHAPE, VELOCITY


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
    shape: str | None = SHAPE,
    label: int | None = typer.Option(None, help="The class of a conditional network's images."),
    batch_size: int = typer.Option(64, min=1, help="Images at a time."),
    seed: int = SEED,
    device: str = DEVICE,
) -> None:
    """Sample images on the steps of a schedule, with its solver, and write them as one picture."""
    from boss_core.checkpoints.load import calling
    from flows.search.options import check_place, check_png, choose_device, choose_teacher
    from flows.search.sample import choose_schedule, sample_grid

    check_place("--out", out, folder=False)
    check_png("--out", out)
    on = choose_device(device)
    teacher = choose_teacher(checkpoint, config, raw_weights, velocity, shape)
    steps = choose_schedule(teacher, schedule, sigmas)
    with calling(velocity):
        sample_grid(
            teacher, steps, out, number=number, label=label, batch_size=batch_size, seed=seed,
            device=on,
        )  # fmt: skip
