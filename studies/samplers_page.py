"""The page, plots and table of `studies/samplers.py`, from its rows alone."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from boss_core.io.files import write_bytes
from flows.report.plots import figure, log_scale
from studies.markdown import grid_table, markdown, mean_and_error, value, write_between

# What the page calls each solver, objective and metric, in the order of its tables.
SOLVERS = {"euler": "Euler", "ab2": "Adams-Bashforth 2", "heun": "Heun", "rk45": "RK45"}
EXTRACTORS = ("classifier", "inception", "efficientnet_lite0")
METRICS = ("frechet", "fid", "kid", "sliced_wasserstein", "energy", "endpoint_error")
BASELINE = ("euler", "l2_squared")  # the paper's
CELL = ["network", "solver", "objective", "budget"]

# Okabe and Ito's colours, told apart by colour-blind readers too.
MAIN = {
    ("euler", "uniform"): ("#999999", "--"),
    ("euler", "l2_squared"): ("#E69F00", "-"),
    ("euler", "refine"): ("#D55E00", "-"),
    ("heun", "uniform"): ("#CC79A7", "--"),
    ("ab2", "uniform"): ("#56B4E9", "--"),
    ("ab2", "l2_squared"): ("#009E73", "-"),
    ("ab2", "refine"): ("#0072B2", "-"),
    ("ab2", "refine_features"): ("#000000", "-"),
}


def write_page(rows: pd.DataFrame, setting: dict[str, object], docs: Path, name: str) -> Path:
    """Write ``results/NAME.md`` and ``.csv``, and the plots in ``images``, below ``docs``; returns
    the path of the page."""
    columns = metrics(rows)
    score = columns[0]
    table = rows.drop(columns="indices").assign(
        indices=[" ".join(map(str, indices)) for indices in rows["indices"]]
    )
    write_bytes(docs / f"results/{name}.csv", table.to_csv(index=False).encode())
    teacher = rows[rows["network"] == "teacher"]
    few = teacher[~teacher["floor"]]
    several = few["seed"].nunique() > 1  # of one nothing says what is chance
    images = [plot_score(docs / f"images/{name}-score.png", teacher, score)]
    ranks = rank_correlations(few, score)
    if len(ranks):
        images.append(plot_ranks(docs / f"images/{name}-ranking.png", ranks, score))
    parts = [
        introduction(rows, setting, score, name),
        *(f"![{title}](../images/{image})" for image, title in images),
        *solver_tables(teacher, score),
        *(winner_tables(few, score) if several else []),
        *(metric_table(few, columns) if several else []),
        *rank_table(ranks, score),
        *student_table(rows, score),
        *cost_table(few),
    ]
    path = docs / f"results/{name}.md"
    made = ["## What was measured", *parts]
    write_between(path, "studies/samplers.py", "Samplers and schedules compared", made)
    return path


def metrics(rows: pd.DataFrame) -> list[str]:
    """The measured columns; the first is the score that samplers are ranked by."""
    return [
        column
        for name in METRICS
        for column in rows.columns
        if column in (name, *(f"{name}_{extractor}" for extractor in EXTRACTORS))
    ]


# Statistics over seeds.


def changes(rows: pd.DataFrame, metric: str, against: tuple[str, str] = BASELINE) -> pd.DataFrame:
    """``rows`` with ``change``: in percent, against a solver and objective of the teacher at the
    same seed and budget, hence from the same noise. Rows without such a partner are left out."""
    solver, objective = against
    chosen = (
        (rows["solver"] == solver) & (rows["objective"] == objective)
        & (rows["network"] == "teacher")
    )  # fmt: skip
    base = rows[chosen].set_index(["seed", "budget"])[metric].rename("base")
    joined = rows.join(base, on=["seed", "budget"], how="inner")
    return joined.assign(change=100 * (joined[metric] / joined["base"] - 1))


def verdicts(changed: pd.DataFrame, metric: str) -> pd.DataFrame:
    """For every cell of `changes` its mean ``change`` and ``error`` over seeds, and ``verdict``:
    -1 where the metric is lower by more than two standard errors of the difference, 1 where
    higher, 0 otherwise."""
    found = {}
    for cell, part in changed.groupby(CELL, sort=False):
        gain, error = mean_and_error(part[metric] - part["base"])
        verdict = int(np.sign(gain)) if abs(gain) > 2 * error else 0
        found[cell] = (*mean_and_error(part["change"]), verdict)
    index = pd.MultiIndex.from_tuples(found, names=CELL)
    return pd.DataFrame(found.values(), index=index, columns=["change", "error", "verdict"])


def rank_correlations(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """Spearman's correlation of every predictor with the score over the different schedules of
    one solver, budget and seed; nothing where there are fewer than three."""
    predictors = [column for column in rows.columns if column.startswith("predicted_")]
    found = []
    for (solver, budget, seed), part in rows.groupby(["solver", "budget", "seed"]):
        different = part[~part["indices"].map(tuple).duplicated()]
        for predictor in predictors:
            values = different[[predictor, score]].dropna()
            if len(values) < 3 or values.nunique().min() < 2:
                continue
            rank = spearmanr(values[predictor], values[score]).statistic
            name = predictor.removeprefix("predicted_")
            found.append((solver, budget, seed, name, len(values), rank))
    columns = ["solver", "budget", "seed", "predictor", "schedules", "correlation"]
    return pd.DataFrame(found, columns=columns)


# Parts of the page.


def introduction(rows: pd.DataFrame, setting: dict[str, object], score: str, name: str) -> str:
    """What was done, with its counts."""
    teacher = rows[(rows["network"] == "teacher") & ~rows["floor"]]
    students = int((rows["network"] == "student").sum())
    seeds = teacher["seed"].nunique()
    spread = " Values are means over seeds ± one standard error." if seeds > 1 else ""
    against = (
        "" if setting["extractor"] is None
        else f"; features are those of the {setting['extractor']} network"
    )  # fmt: skip
    return (
        f"Network `{str(setting['checkpoint'])[:12]}`; budgets of"
        f" {', '.join(map(str, sorted(teacher['budget'].unique())))} evaluations a sample;"
        f" {len(teacher)} measurements of the teacher on"
        f" {teacher.groupby(['seed', 'solver', 'budget'])['indices'].apply(distinct).sum()}"
        f" different schedules, {students} of straightened students;"
        f" {seeds} seed{'s' if seeds > 1 else ''}. A seed draws its own"
        f" {setting['search_samples']} noises to search on and, apart from them,"
        f" {setting['samples']:,} to evaluate from. Reference path: {setting['grid']} Euler steps."
        f" Distances are to {setting['reference_samples']:,} real images{against}; the endpoint"
        " error is the root mean square difference from the reference path's end, from the same"
        " noise. Samplers are ranked by"
        f" `{score}`; lower is better everywhere.{spread} All numbers: [{name}.csv]({name}.csv)."
    )


def samplers(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs of solver and objective, in the order of the rows."""
    return list(dict.fromkeys(zip(rows["solver"], rows["objective"], strict=True)))


def distinct(indices: Iterable[Sequence[int]]) -> int:
    """How many different schedules."""
    return len({tuple(found) for found in indices})


def solver_tables(rows: pd.DataFrame, score: str) -> list[str]:
    """For each solver the score and its change, objectives against budgets; then the floors."""
    few = rows[~rows["floor"]]
    changed = verdicts(changes(few, score), score).droplevel("network")
    parts = []
    for solver in in_order(few["solver"].unique(), SOLVERS):
        of_solver = few[few["solver"] == solver]
        budgets = sorted(of_solver["budget"].unique())
        objectives = list(dict.fromkeys(of_solver["objective"]))
        values = {
            (objective, budget): value(part[score])
            for (objective, budget), part in of_solver.groupby(["objective", "budget"])
        }
        parts += [
            f"### {SOLVERS[solver]}: `{score}`",
            grid_table("objective", objectives, budgets, values),
            f"{SOLVERS[solver]}: change in percent against the paper's schedule (Euler,"
            " `l2_squared`) at the same budget:",
            grid_table("objective", objectives, budgets, {
                (objective, budget): percent(*changed.loc[solver, objective, budget][:2])
                for objective, budget in values
                if (solver, objective, budget) in changed.index
            }),
        ]  # fmt: skip
    floors = rows[rows["floor"]]
    if len(floors):
        lines = [
            [SOLVERS[solver], f"{part['evaluations'].mean():.0f}",
             *(value(part[metric]) for metric in metrics(rows))]
            for solver, part in floors.groupby("solver", sort=False)
        ]  # fmt: skip
        parts += [
            "### Floors: the teacher with many evaluations",
            markdown(["solver", "evaluations", *(f"`{m}`" for m in metrics(rows))], lines),
        ]
    return parts


def winner_tables(rows: pd.DataFrame, score: str) -> list[str]:
    """Who beats the paper's schedule, and uniform steps of the same solver, beyond chance."""
    against_paper = changes(rows, score)
    against_uniform = pd.concat(
        changes(rows[rows["solver"] == solver], score, (solver, "uniform"))
        for solver in rows["solver"].unique()
    )
    means = rows.groupby(["solver", "objective", "budget"])[score].mean()
    lowest = means[means == means.groupby("budget").transform("min")]  # of equals all
    columns = [
        "solver", "objective", "best of all at K", "against the paper's: better / worse / of",
        "mean change", "against its own uniform steps: better / worse / of", "mean change",
    ]  # fmt: skip
    lines = []
    for solver, objective in samplers(rows):
        best_at = [str(k) for s, o, k in lowest.index if (s, o) == (solver, objective)]
        line = [SOLVERS[solver], f"`{objective}`", ", ".join(best_at)]
        for changed in (against_paper, against_uniform):
            part = changed[(changed["solver"] == solver) & (changed["objective"] == objective)]
            if not len(part):
                line += ["", ""]
                continue
            counts = verdicts(part, score)["verdict"]
            line += [
                f"{(counts < 0).sum()} / {(counts > 0).sum()} / {len(counts)}",
                percent(*mean_and_error(part.groupby("seed")["change"].mean())) + " %",
            ]
        lines.append(line)
    return [
        "### Winners",
        f"By `{score}`. Better and worse: by more than two standard errors of the change over"
        " seeds, at so many budgets of so many. The mean change is over budgets, its standard"
        " error over seeds.",
        markdown(columns, lines),
    ]


def metric_table(rows: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """Whether the other metrics say the same as the score."""
    found = {metric: verdicts(changes(rows, metric), metric)["verdict"] for metric in columns}
    lines = []
    for solver, objective in samplers(rows):
        line = [SOLVERS[solver], f"`{objective}`"]
        for verdict in found.values():
            own = verdict[
                (verdict.index.get_level_values("solver") == solver)
                & (verdict.index.get_level_values("objective") == objective)
            ]
            line.append(f"{(own < 0).sum()} / {(own > 0).sum()} / {len(own)}")
        lines.append(line)
    return [
        "### The other metrics",
        "Against the paper's schedule: better / worse beyond chance / of so many budgets.",
        markdown(["solver", "objective", *(f"`{metric}`" for metric in columns)], lines),
    ]


def rank_table(ranks: pd.DataFrame, score: str) -> list[str]:
    """Which predictor puts schedules in the order of their quality."""
    if not len(ranks):
        return []
    solvers = in_order(ranks["solver"].unique(), SOLVERS)
    names = list(dict.fromkeys(ranks["predictor"]))
    values = {
        (name, SOLVERS[solver]): value(part.groupby("seed")["correlation"].mean(), decimals=2)
        for (name, solver), part in ranks.groupby(["predictor", "solver"])
    }
    lowest = {
        (name, SOLVERS[solver]): f"{part.groupby('budget')['correlation'].mean().min():.2f}"
        for (name, solver), part in ranks.groupby(["predictor", "solver"])
    }
    titles = [SOLVERS[solver] for solver in solvers]
    lines = [
        [f"`{name}`", *itertools.chain.from_iterable(
            (values.get((name, t), ""), lowest.get((name, t), "")) for t in titles)]
        for name in names
    ]  # fmt: skip
    columns = ["predictor", *itertools.chain.from_iterable((t, "worst K") for t in titles)]
    return [
        "### Which predictor ranks schedules by their quality",
        f"Spearman's rank correlation with `{score}` over the different schedules of a solver,"
        f" budget and seed ({ranks['schedules'].mean():.1f} on average); mean over budgets,"
        " standard error over seeds, and the mean of the worst budget. Predictors see the search"
        " noise only; the distances among them are to the reference path's ends.",
        markdown(columns, lines),
    ]


def student_table(rows: pd.DataFrame, score: str) -> list[str]:
    """What straightening adds to each sampler."""
    students = rows[rows["network"] == "student"]
    if not len(students):
        return []
    lines = []
    for (solver, objective, budget), part in students.groupby(
        ["solver", "objective", "budget"], sort=False
    ):
        teacher = rows[rows["network"] == "teacher"]
        both = pd.concat([teacher[teacher["seed"].isin(part["seed"])], part])
        own = verdicts(changes(both, score, (solver, objective)), score)
        paper = verdicts(changes(both, score), score)
        before = both[
            (both["network"] == "teacher") & (both["solver"] == solver)
            & (both["objective"] == objective) & (both["budget"] == budget)
        ]  # fmt: skip
        cell = ("student", solver, objective, budget)
        lines.append([
            str(budget), SOLVERS[solver], f"`{objective}`", str(len(part)), value(before[score]),
            value(part[score]), percent(*own.loc[cell][:2]) if cell in own.index else "",
            percent(*paper.loc[cell][:2]) if cell in paper.index else "",
        ])  # fmt: skip
    lines.sort(key=lambda line: int(line[0]))
    return [
        "### Straightened or not",
        f"`{score}` of teacher and student at the same steps and from the same noise; changes in"
        " percent.",
        markdown(
            ["K", "solver", "objective", "seeds", "teacher", "student", "change",
             "against the paper's steps, teacher"], lines
        ),
    ]  # fmt: skip


def cost_table(rows: pd.DataFrame) -> list[str]:
    """What a search costs."""
    lines = []
    for (solver, objective), part in rows.groupby(["solver", "objective"], sort=False):
        seeds = part.groupby("seed")
        own = seeds["search_evaluations"].max() if part["search_shared"].iloc[0] else (
            seeds["search_evaluations"].sum()
        )  # fmt: skip
        evaluations = (own + seeds["search_path"].max()).mean()
        seconds = seeds["search_seconds"].sum().mean()
        noises = int(part["search_samples"].max())
        lines.append([
            SOLVERS[solver], f"`{objective}`", f"{evaluations:,.0f}", str(noises),
            f"{evaluations * noises:,.0f}", f"{seconds:.1f}",
        ])  # fmt: skip
    return [
        "### What the search costs",
        "Evaluations of the network for each sample of the search noise, for all budgets of this"
        " study together, the reference path included, and the number of those noises. Seconds:"
        " beyond that path and the costs of steps, which searches share. Means over seeds.",
        markdown(
            ["solver", "objective", "evaluations a sample", "noises", "in all", "seconds"], lines
        ),
    ]


# Plots.


def plot_score(path: Path, rows: pd.DataFrame, score: str) -> tuple[str, str]:
    """The score of the main samplers against the budget, and the floors."""
    few = rows[~rows["floor"]]
    with figure(path, 8.4, 4.2) as ax:
        for (solver, objective), (colour, dashes) in MAIN.items():
            part = few[(few["solver"] == solver) & (few["objective"] == objective)]
            points = [(k, *mean_and_error(p[score])) for k, p in part.groupby("budget")]
            if not points:
                continue
            budgets, means, errors = np.array(points).T
            ax.errorbar(budgets, means, np.nan_to_num(errors), fmt=dashes, marker="o", ms=4,
                        color=colour, label=f"{SOLVERS[solver]}, {objective}")  # fmt: skip
        for style, (solver, part) in zip(
            (":", "-.", "--"), rows[rows["floor"]].groupby("solver", sort=False), strict=False
        ):
            label = f"{SOLVERS[solver]}, {part['evaluations'].mean():.0f} evaluations"
            ax.axhline(part[score].mean(), color="black", lw=0.8, ls=style, label=label)
        ax.set(xlabel="network evaluations for one sample (NFE)", ylabel=score)
        log_scale(ax)
        ax.set_xticks(sorted(few["budget"].unique()))
        # Beside the curves, which fill the plot.
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return path.name, f"{score} against the number of evaluations"


def plot_ranks(path: Path, ranks: pd.DataFrame, score: str) -> tuple[str, str]:
    """The rank correlation of every predictor, a mark for each solver."""
    names = list(dict.fromkeys(ranks["predictor"]))[::-1]
    solvers = in_order(ranks["solver"].unique(), SOLVERS)
    with figure(path, 5.6, 0.36 * len(names) + 1.2) as ax:
        for shift, (solver, colour) in enumerate(
            zip(solvers, ("#E69F00", "#0072B2", "#CC79A7"), strict=False)
        ):
            part = ranks[ranks["solver"] == solver]
            own = [part[part["predictor"] == name].groupby("seed") for name in names]
            found = [mean_and_error(seeds["correlation"].mean()) for seeds in own]
            means, errors = np.array(found).T
            height = np.arange(len(names)) + 0.12 * (shift - (len(solvers) - 1) / 2)
            ax.errorbar(means, height, xerr=np.nan_to_num(errors), fmt="o", ms=5, color=colour,
                        label=SOLVERS[solver])  # fmt: skip
        ax.set_yticks(range(len(names)), names)
        ax.axvline(0, color="black", lw=0.5)
        ax.set(xlabel=f"rank correlation with {score}", xlim=(None, 1.05))
        ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return path.name, f"Rank correlation of predictors with {score}"


# Text.


def percent(mean: float, error: float) -> str:
    """A change in percent with its sign; without a decimal where the error is 1 or more."""
    if not np.isfinite(mean):
        return ""
    decimals = 0 if error >= 1 else 1
    shown = f"{mean:+.{decimals}f}"
    if not float(shown):
        shown = shown[1:]
    return shown + (f" ± {error:.{decimals}f}" if np.isfinite(error) else "")


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names in the order of the known ones."""
    present = set(names)
    return [name for name in known if name in present]
