"""``boss usage``."""

import sys

from flows.config import load_params


def usage() -> None:
    """Print what the stages took when they last ran here: time, memory and, on a GPU, energy."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from flows.measure.usage import amounts, read_usage, stages

    params = load_params()
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("")
    for title in ("seconds", "images/s", "peak GiB", "Wh", "g CO2"):
        shown.add_column(title, justify="right")
    for stage in stages(params.budgets):
        for name, record in read_usage(stage).items():
            found = amounts(record, params.tracking.grid_intensity)
            cells = (
                (found["seconds"], ",.2f"),
                (found.get("images_per_second"), ",.0f"),
                (found["peak_memory_bytes"] / 2**30, ".2f"),
                (1000 * found["energy_kwh"] if "energy_kwh" in found else None, ".3g"),
                (found.get("co2_grams"), ".3g"),
            )
            texts = ("" if number is None else f"{number:{form}}" for number, form in cells)
            shown.add_row(f"{stage.replace('-', '@')} {name}", *texts)
    Console(width=None if sys.stdout.isatty() else 150).print(shown)
    print("Of stages that DVC restored there is nothing to print; energy is a GPU's own counter.")
