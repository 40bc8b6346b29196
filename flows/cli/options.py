"""The options that several commands have, and how wide their tables may be."""

import os
import sys

import typer

NETWORK = "Network: one of these"
CHECKPOINT = typer.Option(
    None,
    rich_help_panel=NETWORK,
    help="A folder with model.safetensors and card.json, or a Rectified Flow .pth (with --config).",
)
CONFIG = typer.Option(
    None,
    rich_help_panel=NETWORK,
    help="Architecture of a .pth: a published name (cifar10, afhq_cat, celeba_hq, lsun_church,"
    " lsun_bedroom) or a JSON file.",
)
RAW = typer.Option(
    False,
    "--raw-weights",
    rich_help_panel=NETWORK,
    help="Of a .pth, the raw weights instead of the EMA's.",
)
VELOCITY = typer.Option(
    None,
    metavar="MODULE:NAME",
    rich_help_panel=NETWORK,
    help="Instead of a checkpoint: a callable v(x, t) in Python, as my_code.flow:velocity.",
)
SHAPE = typer.Option(
    None,
    metavar="CxHxW",
    rich_help_panel=NETWORK,
    help="With --velocity or --network: the shape of a sample.",
)
SEED = typer.Option(
    0, min=0, max=2**63 - 1, help="Seed of the noise; sample i depends on it and i alone."
)
DEVICE = typer.Option("auto", help="auto, cpu, cuda, cuda:1 (the second GPU) or, to sample, mps.")
PRESET = typer.Option(
    [],
    "--preset",
    metavar="NAME",
    help="The parameters of configs/NAME.yaml over those of params.yaml: digits, cifar10, photos64,"
    " smoke, or a file of yours. Repeat for more: a later one goes over an earlier one, and --set"
    " over all.",
)


def line_width(needed: int) -> int | None:
    """Of a table, in characters, for rich: None for the terminal's. Where there is none the number
    in COLUMNS, as of a log with narrow lines, else ``needed``: a row must not be folded."""
    if sys.stdout.isatty():
        return None
    asked = os.environ.get("COLUMNS", "")
    return int(asked) if asked.isdecimal() and int(asked) else needed
