"""The page of `studies/peers.py`, from its rows."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from boss_core.evaluation.comparison import Best, Estimate, best_of, paired_difference
from boss_core.io.files import replacing, write_bytes
from studies.markdown import markdown, write_between
from studies.peers_methods import METHODS, OURS, TEACHER

if TYPE_CHECKING:
    from studies.peers import Cell, Row, Rows

SHOWN_BUDGET = 4
LABEL, SIDE = 170, 32  # pixels of the picture: of a method's name, and of an image at least

# Of one judge: by method and budget, and the seeds of each budget that have every method.
Found = dict[tuple[str, int], Estimate]


def write_page(rows: "Rows", setting: Mapping[str, Any], out: Path, docs: Path, name: str) -> Path:
    """Write ``results/NAME.md`` and ``.csv`` and the picture below ``docs``; returns the page's
    path. Budgets of which no seed has every method are left out."""
    found = rows.found
    judges = [column[: -len("_se")] for column in rows.columns if column.endswith("_se")]
    methods = [m for m in METHODS if any(cell.method == m for cell in found)]
    seeds = complete(found, methods)
    teacher = next((cell.budget for cell in found if cell.method == TEACHER), None)
    parts = ["## What was measured", introduction(setting, seeds, name)]
    for judge in judges:
        parts += of_judge(judge, estimates(found, judge, methods, seeds, teacher), methods, seeds)
        kid = judge.replace("frechet_", "kid_", 1)
        if kid in rows.columns:
            parts += kids(found, kid, (TEACHER, *methods), seeds, teacher)
    images = {m: path for m in (TEACHER, *methods) if (path := shown(out / "images", m, teacher))}
    if images:
        picture(docs / f"images/{name}-samples.png", images)
        budget = next((p.stem.rsplit("-", 1)[1] for m, p in images.items() if m != TEACHER), "")
        parts += [
            "### Samples",
            f"Image i starts from noise i everywhere; seed 0, K = {budget}, the teacher's"
            f" {teacher} steps on top.",
            f"![Samples of every method](../images/{name}-samples.png)",
        ]
    parts += ["### The methods", method_table(methods)]
    path = docs / f"results/{name}.md"
    write_between(path, "studies/peers.py", f"What others would pick: {name}", parts)
    write_bytes(docs / f"results/{name}.csv", rows.path.read_bytes())
    return path


def complete(found: Iterable["Cell"], methods: Sequence[str]) -> dict[int, list[int]]:
    """For each budget, in order, the seeds in which it has every method and the teacher."""
    there = {(cell.seed, cell.method, cell.budget) for cell in found}
    with_teacher = {seed for seed, method, _ in there if method == TEACHER}
    budgets = sorted({budget for _, method, budget in there if method != TEACHER})
    seeds = {
        k: [s for s in sorted(with_teacher) if all((s, method, k) in there for method in methods)]
        for k in budgets
    }
    return {k: of for k, of in seeds.items() if of}


def estimates(
    found: Mapping["Cell", "Row"],
    judge: str,
    methods: Sequence[str],
    seeds: Mapping[int, Sequence[int]],
    teacher: int | None,
) -> Found:
    """The mean distance of every method at every budget over its seeds, and the teacher's over the
    same seeds, as that of each budget."""
    means: Found = {}
    of_cell = {tuple(cell): read(row, judge) for cell, row in found.items()}
    for k, of in seeds.items():
        for method in methods:
            means[method, k] = together([of_cell[s, method, k] for s in of])
        means[TEACHER, k] = together([of_cell[s, TEACHER, teacher] for s in of])
    return means


def read(row: "Row", judge: str) -> Estimate:
    """The distance of a row, with its replicates."""
    replicates = np.array([float(value) for value in row[f"{judge}_without"].split()])
    return Estimate(float(row[judge]), replicates)


def together(of_seeds: Sequence[Estimate]) -> Estimate:
    """The mean over seeds, with as many replicates as all their blocks: leaving a block out changes
    its seed's share of the mean. With S seeds the standard error is that of independent means, the
    root of the sum of squares over S, up to (B - 1 / S) / (B - 1) in the variance."""
    count = len(of_seeds)
    mean = sum(each.value for each in of_seeds) / count
    if count == 1:
        return of_seeds[0]
    moved = [mean + (each.replicates - each.replicates.mean()) / count for each in of_seeds]
    return Estimate(mean, np.concatenate(moved))


def introduction(setting: Mapping[str, Any], seeds: Mapping[int, Sequence[int]], name: str) -> str:
    """What was done, with its counts."""
    count = "; ".join(f"K = {k}: {plural(len(of), 'seed')}" for k, of in seeds.items())
    return (
        f"One teacher, `{str(setting['teacher'])[:12]}`, as it is, nothing trained. Of a seed all"
        f" methods start from the same {setting['samples']:,} noises and take K evaluations of the"
        f" network, which are counted ({count}). Distances are to {setting['real']:,} real images."
        f" What is searched or fitted is so on {setting['costs']} other noises of the seed, by the"
        f" costs of steps against {setting['grid']} Euler steps, and by no judge's features."
        " ± is the standard error over the noises of samples, in pairs for differences, by the"
        " jackknife over blocks of them; intervals are of 95 %, each for itself: of twenty"
        " comparisons about one is beyond 0 by chance. Lower is better. Rows, with what each"
        f" distance is without each block: [{name}.csv]({name}.csv)."
    )


def of_judge(
    judge: str, found: Found, methods: Sequence[str], seeds: Mapping[int, Sequence[int]]
) -> list[str]:
    """All tables of one judge."""
    budgets = list(seeds)
    peers = [m for m in methods if not METHODS[m].ours]
    ours = [m for m in methods if METHODS[m].ours]
    best: dict[int, Best] = {}
    if peers:
        best = {k: best_of({m: found[m, k] for m in peers}) for k in budgets}
    parts = [f"### `{judge}`", distances(found, (TEACHER, *methods), budgets, best)]
    if best:
        parts += [
            "The best peer: " + "; ".join(f"K = {k}: {peers_said(best[k])}" for k in budgets) + ".",
        ]
    if best and ours:
        against = {k: best[k].name for k in budgets}
        parts += [
            "Ours against the best peer, in per cent of its distance:",
            compared(found, ours, budgets, against),
            losses(found, ours, against),
        ]
    if ours:
        parts += [
            "Ours against the teacher's own steps, in per cent of their distance:",
            compared(found, ours, budgets, dict.fromkeys(budgets, TEACHER)),
        ]
    return parts + steps_of_fitted(found, [m for m in ours if METHODS[m].fitted], budgets)


def kids(
    found: Mapping["Cell", "Row"],
    kid: str,
    methods: Sequence[str],
    seeds: Mapping[int, Sequence[int]],
    teacher: int | None,
) -> list[str]:
    """Method by K: the KID of all samples, with its spread over seeds."""
    of_cell = {tuple(cell): float(row[kid]) for cell, row in found.items()}
    lines = []
    for method in methods:
        line = [f"`{method}`"]
        for k, of in seeds.items():
            each = [1000 * of_cell[s, method, teacher if method == TEACHER else k] for s in of]
            spread = f" ({digits(float(np.std(each, ddof=1)), each[0])})" if len(each) > 1 else ""
            line.append(digits(float(np.mean(each))) + spread)
        lines.append(line)
    return [
        f"`{kid}` in thousandths, unbiased, of all samples and real images at once; in brackets"
        " its standard deviation over seeds:",
        markdown(["method", *(f"K = {k}" for k in seeds)], lines),
    ]


def peers_said(best: Best) -> str:
    """The nearest, and what is level with it."""
    others = [name for name in best.level if name != best.name]
    level = f" (level with it: {', '.join(f'`{name}`' for name in others)})" if others else ""
    return f"`{best.name}`{level}"


def distances(
    found: Found, methods: Sequence[str], budgets: Sequence[int], best: Mapping[int, Best]
) -> str:
    """Method by K: the distance, and in brackets that less the best peer's."""
    lines = []
    for method in methods:
        line = [f"`{method}`"]
        for k in budgets:
            estimate = found[method, k]
            shown = digits(estimate.value)
            if not best:
                shown += f" ± {digits(estimate.standard_error, estimate.value)}"
            elif method == best[k].name:
                shown = f"**{shown} ± {digits(estimate.standard_error, estimate.value)}**"
            else:
                less = paired_difference(estimate, found[best[k].name, k])
                error = digits(less.standard_error, estimate.value)
                shown += f" ({digits(less.value, estimate.value, sign=True)} ± {error})"
            line.append(shown)
        lines.append(line)
    title = "method: distance (less the best peer's)" if best else "method"
    return markdown([title, *(f"K = {k}" for k in budgets)], lines)


def compared(
    found: Found, methods: Sequence[str], budgets: Sequence[int], against: Mapping[int, str]
) -> str:
    """Method by K: its distance less another's in per cent of that, with the interval."""
    lines = [
        [
            f"`{method}`",
            *(
                percent(found[method, k], found[against[k], k]) if method != against[k] else "0"
                for k in budgets
            ),
        ]
        for method in methods
    ]
    return markdown(["method", *(f"K = {k}" for k in budgets)], lines)


def percent(first: Estimate, second: Estimate) -> str:
    """A paired difference in per cent of the second, with its interval."""
    less = paired_difference(first, second)
    low, high = (100 * bound / second.value for bound in less.interval())
    return f"{100 * less.value / second.value:+.0f} % ({low:+.0f} to {high:+.0f})"


def losses(found: Found, ours: Sequence[str], against: Mapping[int, str]) -> str:
    """Where ours is behind, and where it cannot be told, in words."""
    behind: dict[str, list[int]] = {}
    level: dict[str, list[int]] = {}
    for method, k in itertools.product(ours, against):
        low, high = paired_difference(found[method, k], found[against[k], k]).interval()
        if high >= 0:
            (behind if low > 0 else level).setdefault(method, []).append(k)
    return (
        f"Behind it by more than chance: {at_budgets(behind)}. Not to be told from it:"
        f" {at_budgets(level)}. What we would tell a user to take are"
        f" {' and '.join(f'`{name}`' for name in OURS)}; the others of ours are there to see which"
        " steps go with fitted weights."
    )


def at_budgets(of: Mapping[str, Sequence[int]]) -> str:
    """Methods, each with its budgets."""
    said = [f"`{method}` (K = {', '.join(map(str, budgets))})" for method, budgets in of.items()]
    return "; ".join(said) or "nothing"


def steps_of_fitted(found: Found, fitted: Sequence[str], budgets: Sequence[int]) -> list[str]:
    """Which steps go with fitted weights."""
    usual = "multistep_3_own"
    if len(fitted) < 2 or usual not in fitted:
        return []
    said = []
    for k in budgets:
        best = best_of({m: found[m, k] for m in fitted})
        said.append(f"K = {k}: {peers_said(best)}")
    return [
        f"Fitted weights on other steps, against `{usual}`:",
        compared(found, fitted, budgets, dict.fromkeys(budgets, usual)),
        f"The nearest of fitted weights: {'; '.join(said)}.",
    ]


def method_table(methods: Sequence[str]) -> str:
    """What each of them is."""
    lines = [
        [f"`{m}`", METHODS[m].about, "ours" if METHODS[m].ours else "a peer's"] for m in methods
    ]
    return markdown(["method", "what it is", "whose"], lines)


def digits(value: float, like: float | None = None, *, sign: bool = False) -> str:
    """Three significant digits of ``like``, or of the value itself."""
    of = abs(value if like is None else like)
    decimals = max(0, 2 - int(np.floor(np.log10(of)))) if of else 0
    return f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"


def plural(count: int, what: str) -> str:
    """A count with its noun."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def shown(folder: Path, method: str, teacher: int | None) -> Path | None:
    """The kept images of a method at `SHOWN_BUDGET`, or at the smallest budget there is."""
    if method == TEACHER:
        path = folder / f"{TEACHER}-{teacher}.npy"
        return path if path.is_file() else None
    path = folder / f"{method}-{SHOWN_BUDGET}.npy"
    there = list(folder.glob(f"{method}-*.npy"))
    return path if path in there else min(there, key=_budget, default=None)


def _budget(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


def picture(path: Path, images: Mapping[str, Path]) -> None:
    """A row of images for each method, with its name."""
    strips = [(name, np.load(file, allow_pickle=False)) for name, file in images.items()]
    scale = max(1, SIDE // strips[0][1].shape[-1])
    cell = scale * strips[0][1].shape[-1] + 2
    width = LABEL + cell * max(len(strip) for _, strip in strips)
    sheet = Image.new("RGB", (width, cell * len(strips)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, strip) in enumerate(strips):
        draw.text((4, row * cell + cell // 2 - 6), name, fill="black")
        for column, image in enumerate(strip):
            sheet.paste(enlarged(image, scale), (LABEL + column * cell, row * cell))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        sheet.save(part, format="PNG")


def enlarged(image: NDArray[np.uint8], scale: int) -> Image.Image:
    """(C, H, W) with 1 or 3 channels, as a picture with each pixel so many wide."""
    pixels = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(np.ascontiguousarray(large))
