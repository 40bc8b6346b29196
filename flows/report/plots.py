"""The plots of the reports. Each function draws one figure; most write it as a PNG."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from boss_core.evaluation.comparison import Estimate
from boss_core.io.files import replacing
from boss_core.ode.schedule import Schedule
from flows.records.variants import Variant

if TYPE_CHECKING:
    import pandas as pd  # of the pipeline alone, whose tables these are

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

# Okabe and Ito's colours and five of Tol's, told apart by colour-blind readers too.
COLOURS = {
    "pretrained_uniform": "#999999",
    "pretrained_bellman": "#E69F00",
    "pretrained_fewer": "#DDCC77",
    "pretrained_unguided": "#661100",
    "straightened_uniform": "#56B4E9",
    "boss": "#D55E00",
    "boss_lora": "#882255",
    "reflow_uniform": "#999933",
    "reflow_distill": "#332288",
    "multistep": "#44AA99",
    "chosen_uniform": "#CC79A7",
    "chosen": "#0072B2",
    "chosen_straightened": "#009E73",
}
SMALLEST_COST = 1e-200  # of a scale; matplotlib takes smaller ones for 0
MOMENTS, QUIETEST = 300, 1e-12  # columns of a spectrogram, and a power whose logarithm is shown
UNIFORM, BELLMAN, CHOSEN = (COLOURS[name] for name in ("pretrained_uniform", "boss", "chosen"))


@contextmanager
def figure(path: Path, width: float, height: float, **layout: Any) -> Iterator[Any]:
    """Axes to draw on; the figure is written to ``path`` at the end."""
    with (
        replacing(path) as temporary,
        open(temporary, "wb") as file,
        drawing(file, width, height, **layout) as axes,
    ):
        yield axes


@contextmanager
def drawing(file: IO[bytes], width: float, height: float, **layout: Any) -> Iterator[Any]:
    """As `figure`, into an open file."""
    style: Any = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    with plt.rc_context(style):
        drawn, axes = plt.subplots(figsize=(width, height), layout="constrained", **layout)
        try:
            yield axes
            drawn.savefig(file, format="png", dpi=160)
        finally:
            plt.close(drawn)


def log_scale(ax: Axes) -> None:
    """Logarithmic y, with plain numbers at 1, 2 and 5 of each decade."""
    ax.set_yscale("log")
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for set_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def frechet(
    path: Path,
    budgets: Sequence[int],
    variants: Mapping[str, Variant],
    by_metric: Mapping[str, tuple[Estimate, Mapping[str, Sequence[Estimate]]]],
    along: str = "network evaluations for one sample (NFE)",
) -> None:
    """Frechet distance of every variant against its budget, with the teacher's floor, a panel for
    each judge. Bars are of one standard error.

    by_metric: for the name of a distance the teacher's floor and the values of each variant."""
    with figure(path, 8.4, 3.4 * len(by_metric) + 0.4, nrows=len(by_metric), squeeze=False) as axes:
        for ax, (metric, (floor, values)) in zip(axes[:, 0], by_metric.items(), strict=True):
            for name, variant in variants.items():
                ax.errorbar(
                    budgets, [each.value for each in values[name]],
                    yerr=[each.standard_error for each in values[name]],
                    fmt="o-" if variant.trained else "o--", ms=4, elinewidth=0.7,
                    color=COLOURS[name], label=variant.title,
                )  # fmt: skip
            ax.axhline(floor.value, color="black", lw=0.8, ls=":",
                       label="the teacher on the fine grid")  # fmt: skip
            log_scale(ax)
            ax.set(xlabel=along, ylabel=f"{metric} (lower is better)")
            ax.set_xticks(list(budgets))
        # Beside the curves, of which there can be too many to leave it a place.
        axes[0, 0].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def schedules(path: Path, found: Mapping[int, Mapping[str, Schedule]]) -> None:
    """The timesteps of every budget as steps: uniform, Bellman's and the chosen ones."""
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    with figure(path, 2.2 * columns + 0.4, 2.3 * rows, nrows=rows, ncols=columns,
                squeeze=False, sharey=True) as axes:  # fmt: skip
        for ax in axes.flat[len(found) :]:
            ax.set_axis_off()
        for ax, (budget, named) in zip(axes.flat, found.items(), strict=False):
            for name, colour in (("uniform", UNIFORM), ("bellman", BELLMAN), ("chosen", CHOSEN)):
                if name not in named:
                    continue
                times = named[name].timesteps
                ax.stairs(times[1:], np.arange(len(times)), baseline=None, color=colour, lw=1.6,
                          label=name)  # fmt: skip
                ax.hlines(0, 0, budget, color="black", lw=0.5)
            ax.set(title=f"K = {budget}", xlabel="step", xlim=(0, budget), ylim=(0, 1.03))
            ax.set_xticks(range(0, budget + 1, max(1, budget // 4)))
        axes.flat[0].set_ylabel("time reached (0 noise, 1 data)")
        axes.flat[0].legend(frameon=False, fontsize=8, loc="upper left")


def cost(
    path: Path,
    matrix: NDArray[np.float64],
    grid: NDArray[np.float64],
    found: Mapping[int, Schedule],
) -> None:
    """The cost of every step as a heat map, with the steps of each budget on it, those of the
    largest as points: a path goes right along a step, and down to where the next one starts."""
    with figure(path, 4.9, 4.3) as ax:
        positive = np.where(matrix > 0, matrix, np.nan)
        # A network whose paths are straight costs nothing anywhere: then any scale will do.
        top = float(matrix.max())
        top = top if top > SMALLEST_COST else 1.0
        norm = LogNorm(top * 1e-8, top, clip=True)
        mesh = ax.pcolormesh(grid, grid, positive, norm=norm, cmap="viridis", shading="nearest")
        ax.figure.colorbar(mesh, label="squared error of one step (log scale)")
        shades = plt.get_cmap("autumn")(np.linspace(0, 0.9, len(found)))
        for shade, (budget, schedule) in zip(shades, sorted(found.items()), strict=True):
            times = np.array(schedule.timesteps)
            ax.step(np.repeat(times, 2)[1:], np.repeat(times, 2)[:-1], color=shade, lw=0.9)
            ax.plot(times[1:], times[:-1], "o", ms=4.5, mfc="white", mec=shade, mew=1.3,
                    label=f"K = {budget}")  # fmt: skip
        solver = next(iter(found.values())).solver
        ax.set(xlabel="to time t_j", ylabel="from time t_i", aspect="equal")
        ax.set_title(f"the cost of one Euler step, and the steps found for {solver}", fontsize=9)
        ax.invert_yaxis()
        ax.legend(frameon=False, fontsize=8, loc="lower left")


def predicted_error(path: Path, table: "pd.DataFrame", budgets: Sequence[int]) -> None:
    """The summed cost of the best path against K: which budget is worth paying for."""
    with figure(path, 4.9, 3.4) as ax:
        for name, colour in (("uniform", UNIFORM), ("bellman", BELLMAN)):
            ax.plot(table["nfe"], table[name], color=colour, label=name)
            chosen = table[table["nfe"].isin(budgets)]
            ax.plot(chosen["nfe"], chosen[name], "o", ms=4, color=colour)
        ax.set(xlabel="network evaluations (NFE)", ylabel="predicted error (sum of eq. 5)")
        ax.set_yscale("log")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False, fontsize=8)


def measured(
    path: Path, table: "pd.DataFrame", variants: Mapping[str, Variant], metric: str
) -> None:
    """Predicted error with its interval against measured distance, one point for each budget and
    schedule of the teacher; a line joins the budgets of one kind of steps.

    table: columns ``nfe``, ``variant``, ``predicted``, ``low``, ``high`` and ``measured``.
    """
    with figure(path, 4.9, 3.6) as ax:
        for name, variant in variants.items():
            rows = table[table["variant"] == name]
            if rows.empty:
                continue
            error = rows[["predicted"]].to_numpy().T - rows[["low", "high"]].to_numpy().T
            ax.errorbar(rows["predicted"], rows["measured"], xerr=np.abs(error), fmt="o-", ms=4,
                        lw=0.8, color=COLOURS[name], label=variant.title)  # fmt: skip
            for row in rows.itertuples():
                ax.annotate(f"{row.nfe}", (row.predicted, row.measured), fontsize=7,
                            xytext=(4, 3), textcoords="offset points")  # fmt: skip
        ax.set(xlabel="predicted error (summed squared errors of the steps)",
               ylabel=f"measured: {metric}", xscale="log", yscale="log")  # fmt: skip
        ax.legend(frameon=False, fontsize=7)


def training(
    path: Path, curves: "Mapping[int, pd.DataFrame]", variants: Mapping[str, Variant]
) -> None:
    """Validation loss of every student, a panel for each method: losses of different methods do
    not compare."""
    shown = {name: variant for name, variant in variants.items() if variant.trained}
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with figure(path, 2.5 * columns + 0.8, 2.4 * rows + 0.3, nrows=rows, ncols=columns,
                squeeze=False) as axes:  # fmt: skip
        shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(curves)))
        for ax in axes.flat[len(shown) :]:
            ax.set_axis_off()
        for ax, (name, variant) in zip(axes.flat, shown.items(), strict=False):
            for shade, (budget, table) in zip(shades, curves.items(), strict=True):
                ax.plot(table["step"], table[f"{name}_validation_loss"], ".-", color=shade,
                        label=f"K = {budget}")  # fmt: skip
            ax.set(xlabel="finetuning step", yscale="log")
            ax.set_title(variant.title, fontsize=8)
        for ax in axes[:, 0]:
            ax.set_ylabel("validation loss")
        handles, names = axes.flat[0].get_legend_handles_labels()
        axes.flat[0].figure.legend(handles, names, frameon=False, fontsize=7,
                                   loc="outside right center")  # fmt: skip


def student_loss(curve: Sequence[Mapping[str, float]]) -> Image.Image:
    """The loss of one student against the steps of its training, and on calls held out."""
    steps = [row["step"] for row in curve]
    file = io.BytesIO()
    with drawing(file, 4.9, 2.9) as ax:
        for column, colour, label in (
            ("loss", UNIFORM, "training, mean since the point before"),
            ("validation_loss", BELLMAN, "validation, of the averaged weights"),
        ):
            if any(column in row for row in curve):
                marker = "o-" if len(curve) < 30 else "-"
                values = [row.get(column, np.nan) for row in curve]
                ax.plot(steps, values, marker, ms=3, color=colour, label=label)
        ax.set(xlabel="step of the optimiser", ylabel="loss")
        log_scale(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False, fontsize=8)
    return Image.open(file)


def spectrogram(wave: NDArray[np.float64], rate: int | None) -> Image.Image:
    """Time to the right, frequency upwards, and power in decibels below a sine of amplitude 1.

    wave: (channels, N), whose powers are averaged. rate: samples a second; None leaves the axes in
    samples.
    """
    from scipy import signal  # half a second

    # No more rows and columns than the picture has pixels for: a thin line would fall between them.
    window = min(512, 2 ** max(1, int(np.log2(wave.shape[1] / 4))))
    frequencies, _, power = signal.spectrogram(
        wave, fs=rate or 1, window="hann", nperseg=window, noverlap=window // 2,
        scaling="spectrum", detrend=False,
    )  # fmt: skip
    power = power.mean(axis=0)
    together = -(-power.shape[1] // MOMENTS)
    starts = np.arange(0, power.shape[1], together)
    counts = np.diff(np.append(starts, power.shape[1]))
    decibels = 10 * np.log10(2 * np.add.reduceat(power, starts, axis=1) / counts + QUIETEST)
    edges = 0, wave.shape[1] / (rate or 1), 0, frequencies[-1] / (1000 if rate else 1)
    file = io.BytesIO()
    with drawing(file, 3.2, 1.9) as ax:
        shown = ax.imshow(
            decibels, origin="lower", aspect="auto", extent=edges, vmin=-100, vmax=0,
            cmap="magma",
        )  # fmt: skip
        ax.set(xlabel="s" if rate else "samples", ylabel="kHz" if rate else "1 / samples")
        ax.figure.colorbar(shown, label="dB")
    return Image.open(file)
