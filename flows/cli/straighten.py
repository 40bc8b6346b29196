"""``boss straighten``: a network that follows few steps, from the network alone."""

from pathlib import Path

import typer

from flows.cli.options import DEVICE, SEED


# Its parameters are the options of the command line, one each; what they ask for is
# `flows.straighten.network.NetworkRequest`.
def straighten(
    network: str = typer.Option(
        ...,
        metavar="MODULE:NAME",
        help="A function in Python that returns a torch.nn.Module called as (x, t), or such a"
        " module and velocity(network, x, t), as my_code:make_network.",
    ),
    shape: str = typer.Option(..., metavar="CxHxW", help="The shape of a sample."),
    budget: list[int] = typer.Option(
        ..., help="Steps: network evaluations (NFE) a sample; repeat for more."
    ),
    out: Path = typer.Option(..., help="A new folder, for K/ with the student of each budget."),
    steps: str = typer.Option(
        "search", help="search; uniform; or a schedule's file, or a folder with K.json."
    ),
    solver: str | None = typer.Option(
        None, help="euler, or ab2: two-step Adams-Bashforth. Left out: as --steps has it, or euler."
    ),
    classes: int | None = typer.Option(
        None, min=1, help="Of a network called as (x, t, labels): labels from 0 to one below."
    ),
    rank: int | None = typer.Option(
        None, min=1, help="Train a LoRA adapter of this rank. Left out: all weights."
    ),
    iterations: int = typer.Option(2000, min=1, help="Steps of each training."),
    batch_size: int = typer.Option(64, min=1, help="Samples in each of them."),
    learning_rate: float | None = typer.Option(
        None, min=1e-9, max=1, help="Adam's; left out: 0.0003, or 0.001 with --rank."
    ),
    trajectories: int = typer.Option(1000, min=2, help="Trajectories to train on."),
    grid: int = typer.Option(100, min=1, help="Fine steps of each."),
    samples: int = typer.Option(100, min=1, help="Trajectories to search the steps on."),
    held_out: int = typer.Option(256, min=1, help="Samples to compare on."),
    precision: str = typer.Option("float32", help="Of the training: float32, or bfloat16."),
    seed: int = SEED,
    device: str = DEVICE,
) -> None:
    """Straighten a network for few steps: finetuned on its own trajectories, without any data.

    Searches the best K steps, rolls the network out once, and trains a student for each K. Killed,
    it goes on from where it was when it is asked for the same again.

    `boss straighten --network my_code:make_network --shape 3x32x32 --budget 4 --out fast`
    """
    from flows.straighten.network import NetworkRequest, straighten_network

    straighten_network(
        NetworkRequest(
            network=network,
            shape=shape,
            budgets=tuple(sorted(set(budget))),
            out=out,
            steps=steps,
            solver=solver,
            classes=classes,
            rank=rank,
            iterations=iterations,
            batch_size=batch_size,
            learning_rate=learning_rate,
            trajectories=trajectories,
            grid=grid,
            samples=samples,
            held_out=held_out,
            precision=precision,  # type: ignore[arg-type]
            seed=seed,
            device=device,
        )
    )
