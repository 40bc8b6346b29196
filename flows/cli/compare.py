"""``boss compare``."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from boss_core.errors import InputError
from flows.cli.options import line_width
from flows.cli.table import FLOOR
from flows.config import ScheduleSearch
from flows.strict_yaml import shown

if TYPE_CHECKING:
    from flows.records.judges import Judge
    from flows.workspace.revisions import Revision

# Of the difference of two distances. They have the noise in common, which makes the difference
# surer than this takes it for: of many rows fewer than one in twenty is marked by chance.
SURE = 2.0  # standard errors
LEGEND = (
    "± one standard error. * lower than every other of its row by more than"
    f" {SURE:g} standard errors of the difference. In brackets: not ranked by this judge, whose"
    " features the steps were searched by."
)

Cell = tuple[float, float, bool]  # distance, its standard error, and whether the judge may rank it


def compare(
    names: list[str] = typer.Argument(
        help="Experiments, commits, or `workspace`, this folder; of one alone it is beside that."
    ),
) -> None:
    """Print experiments side by side: the Frechet distance of every budget and method, and the
    parameters in which they differ."""
    from flows.workspace.revisions import WORKSPACE

    asked = list(dict.fromkeys(names))
    if len(asked) == 1 and asked != [WORKSPACE]:
        side_by_side([WORKSPACE, *asked], asked)
    else:
        side_by_side(asked, asked)


def side_by_side(names: "Sequence[str]", needed: "Sequence[str]") -> None:
    """Print experiments, commits or the folder side by side.

    needed: those that have to have recorded something; InputError where one has not, and where
    nothing was measured alike."""
    from flows.workspace.revisions import read_revision

    found = [read_revision(Path(), name) for name in names]
    for revision in found:
        if not revision.records:
            if revision.name not in needed:  # it was not asked for
                continue
            raise InputError(f"{revision.name}: no metrics recorded; a run that measured needed")
    measured = [revision for revision in found if revision.records]
    judge, name = _judge(iter(measured))
    for line in (*_differences(found), *_unlike(measured, name)):
        print(line)
    for revision in found:
        if revision not in measured:
            print(f"{revision.name}: nothing measured yet; `boss repro` does")
    print(f"{judge} (lower is better), by {name}")
    _show(measured, judge)
    print(LEGEND)


def _judge(found: "Iterator[Revision]") -> tuple[str, str]:
    """The distance that is compared, and who measures it: the first judge of the first revision
    that all have."""
    from flows.records.json_files import frechet_of

    measured = {revision.name: [judge.name for judge in _judges(revision)] for revision in found}
    first = next(iter(measured.values()))
    for name in first:
        if all(name in names for names in measured.values()):
            return frechet_of(name), name
    said = "; ".join(f"{name} by {', '.join(names)}" for name, names in measured.items())
    raise InputError(f"evaluate.judges: no distance in common: measured are {said}")


def _judges(revision: "Revision") -> "list[Judge]":
    from pydantic import ValidationError

    from flows.records.judges import judges

    try:
        wanted = ScheduleSearch.model_validate(revision.params.get("schedule"))
        return judges(dict(_any_record(revision)), wanted)
    except (ValidationError, KeyError) as error:
        raise InputError(
            f"{revision.name}: recorded by another version of this project; a run of this one"
            " needed"
        ) from error


def _any_record(revision: "Revision") -> Mapping[str, Any]:
    return revision.records.get("teacher") or next(iter(revision.records.values()))


def _differences(found: "Sequence[Revision]") -> Iterator[str]:
    """What of the parameters differs, a line for each that is not the first."""
    from flows.records.passwords import without_password

    first = dict(_flat(found[0].params))
    for revision in found[1:]:
        own = dict(_flat(revision.params))
        names = [n for n in {**own, **first} if own.get(n) != first.get(n)]
        differs = ", ".join(f"{n}={shown(own.get(n))} ({shown(first.get(n))})" for n in names)
        said = without_password(differs)
        print_as = f"{revision.name}: {said or 'the same parameters'}"
        yield f"{print_as}; in brackets those of {found[0].name}" if names else print_as


def _flat(block: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in block.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _unlike(found: "Sequence[Revision]", judge: str) -> Iterator[str]:
    """What makes distances of two revisions no measure of the same."""
    of = {r.name: _any_record(r) for r in found}
    first_name, first = next(iter(of.items()))
    for name, record in of.items():
        hashes = [
            r["extractor_hash"] if r["extractor"] == judge else r["judges"][judge]
            for r in (first, record)
        ]
        if hashes[0] != hashes[1]:
            yield f"warning: {name}: its {judge} is not that of {first_name}: no common measure"
        if record["reference_hash"] != first["reference_hash"]:
            yield f"warning: {name}: measured against other images than {first_name}"
        if record["samples"] != first["samples"]:
            yield (
                f"warning: {name}: {record['samples']:,} samples, {first_name}"
                f" {first['samples']:,}; of fewer samples distances are larger"
            )


def _rows(found: "Sequence[Revision]", metric: str) -> Iterator[tuple[str, str, dict[str, Cell]]]:
    """Budget, title of the method, and what each revision has of it."""
    from flows.records.variants import recorded

    judging = {r.name: next(j for j in _judges(r) if j.metric == metric) for r in found}
    budgets = {int(k) for r in found for k in r.records if k.isdecimal()}
    for budget in sorted(budgets):
        cells: dict[str, dict[str, Cell]] = {}
        for revision in found:
            record = dict(revision.records.get(str(budget), {}))
            for name, variant in recorded(record).items():
                value, error = record[name][metric], record[name][f"{metric}_se"]
                ranked = judging[revision.name].ranks(variant)
                cells.setdefault(variant.title, {})[revision.name] = value, error, ranked
        for title, of in cells.items():
            yield str(budget), title, of
    fine: dict[str, dict[str, Cell]] = {}
    for revision in found:
        if "teacher" in revision.records:
            floor = revision.records["teacher"]
            value, error = floor["fine"][metric], floor["fine"][f"{metric}_se"]
            fine.setdefault(str(floor["nfe"]), {})[revision.name] = value, error, True
    for nfe, cell in fine.items():
        yield nfe, FLOOR, cell


def _show(found: "Sequence[Revision]", metric: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    pipeline = any("reference" in r.records.get("teacher", {}) for r in found)
    table.add_column("steps" if pipeline else "NFE", justify="right")
    table.add_column("method")
    for revision in found:
        table.add_column(revision.name, justify="right", overflow="fold")
    before = ""
    for budget, title, of in _rows(found, metric):
        if before not in ("", budget):
            table.add_section()
        best = _best(of)
        cells = (_cell(of.get(r.name), best == r.name) for r in found)
        table.add_row("" if budget == before else budget, title, *cells)
        before = budget
    width = line_width(60 + sum(max(20, len(r.name) + 2) for r in found))
    Console(width=width).print(table, highlight=False)


def _best(of: Mapping[str, Cell]) -> str | None:
    """The revision that is lower than every other by more than chance; None where none is."""
    ranked = {name: cell for name, cell in of.items() if cell[2]}
    if len(ranked) < 2:
        return None
    name = min(ranked, key=lambda each: ranked[each][0])
    value, error, _ = ranked[name]
    ahead = all(
        other - value > SURE * (error**2 + others**2) ** 0.5
        for each, (other, others, _) in ranked.items()
        if each != name
    )
    return name if ahead else None


def _cell(cell: Cell | None, best: bool) -> str:
    if cell is None:
        return ""
    value, error, ranked = cell
    text = f"{value:.4g}" if ranked else f"({value:.4g})"
    return f"[bold]{text}*[/bold] ±{error:.2g}" if best else f"{text} ±{error:.2g}"
