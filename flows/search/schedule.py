"""``boss schedule``: the best steps of a network for some budgets, without the pipeline.

The folder of a search holds ``cost.npz``, the sum of costs so far, from which a search that
stopped goes on and one for other budgets starts finished; ``K.json``, a schedule for each budget;
and ``cost.png``, the heat map. What compares samples (``refine``, ``auto``) or the student's own
states (``oss``), or needs its images (``lpips``), evaluates the network once more each time.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from boss_core.bellman.names import OBJECTIVES
from boss_core.bellman.predicted import PredictedErrors
from boss_core.checkpoints.folder import Network
from boss_core.checkpoints.load import Teacher
from boss_core.costs.cost_file import CostKey, CostSaver, read_own_costs, shortened
from boss_core.costs.fine_states import empty_states, fitting_noises
from boss_core.costs.matrix import GROUPS, CostMatrix, CostSum, rollout_bytes
from boss_core.costs.measure import measure_costs
from boss_core.costs.references import REFERENCES
from boss_core.errors import InputError
from boss_core.evaluation.sampling import NEARLY_NOISE
from boss_core.io.files import write_bytes
from boss_core.ode import timesteps
from boss_core.ode.noise import COSTS, NoiseSource
from boss_core.ode.schedule import Schedule, from_sigmas, interval
from boss_core.ode.solver_table import SEARCHED, SOLVERS
from boss_core.ode.velocity import check_repeats
from boss_core.search.find import find_steps
from boss_core.search.multistep import FineStates
from boss_core.search.settings import SAMPLED, UNIFORM
from boss_core.search.steps import FoundSteps, build_schedule, hash_settings, uniform_indices
from flows.config import ScheduleSearch
from flows.progress import progress
from flows.records.searches import distance_named, say, search_settings
from flows.search.export import read_schedule
from flows.search.memory import free_bytes
from flows.search.options import check_place, parse_sigmas

COST, HEAT_MAP = "cost.npz", "cost.png"
MEASURED = "pipeline.json"  # beside the costs of a pipeline: what was found at its networks


def check_grid(grid: int) -> None:
    """InputError for a grid whose costs would not fit into memory."""
    taken = 5 * GROUPS * 8 * (grid + 1) ** 2  # Gram matrices and norms of groups, and copies
    if taken > (free := free_bytes(torch.device("cpu"))):
        raise InputError(
            f"--grid: {grid:,} steps, whose costs take {taken / 2**30:,.1f} GiB, and"
            f" {free / 2**30:,.1f} GiB are free; fewer needed (100 are the paper's)"
        )


def check_request(
    budgets: Sequence[int], grid: int, spacing: str, solver: str, objective: str, reference: str
) -> None:
    """InputError before any work for what cannot be searched."""
    if solver not in SEARCHED:
        raise InputError(f"--solver: {solver!r}; {' or '.join(SEARCHED)} needed")
    known = (*OBJECTIVES, *SAMPLED, UNIFORM)
    if objective not in known:
        raise InputError(f"--objective: {objective!r}; {', '.join(known)} known")
    if objective == UNIFORM and not SOLVERS[solver].fitted:
        raise InputError(f"--solver: {solver}; multistep needed with --objective uniform")
    largest = SOLVERS[solver].largest_grid
    if largest is not None and grid > largest:
        raise InputError(f"--grid: {grid}; at most {largest} needed with --solver {solver}")
    if objective == "lpips" and solver != "euler":
        raise InputError(f"--solver: {solver}; euler needed with --objective lpips")
    if reference not in REFERENCES:
        raise InputError(f"--reference: {reference!r}; {', '.join(REFERENCES)} known")
    if spacing not in timesteps.GRIDS:
        raise InputError(f"--spacing: {spacing!r}; {', '.join(timesteps.GRIDS)} known")
    for budget in budgets:
        if not 1 <= budget <= grid:
            raise InputError(f"--budget: {budget}; 1..{grid}, the steps of --grid, needed")


def check_folder(
    folder: Path, key: CostKey, budgets: Sequence[int], wanted: ScheduleSearch, *, replace: bool
) -> None:
    """InputError, before any work, where the results cannot be written into the folder, belong to
    other costs than those in it, or would take the place of a schedule of another solver,
    objective or network. ``replace``: they may."""
    check_place("--out", folder, folder=True)
    of_search = (COST, MEASURED) if key.shape is None else (COST,)
    for name in (*of_search, HEAT_MAP, *(f"{budget}.json" for budget in budgets)):
        check_place("--out", folder / name, folder=False)
    read_own_costs(folder / COST, key)
    for budget in budgets:
        path = folder / f"{budget}.json"
        if replace or not path.exists():
            continue
        there = read_schedule(path)
        objective = there.objective if there.held_out is None else "auto"
        copied = " and ".join(of_search)
        cure = f"another --out (with a copy of {copied} there, to save the search), or --replace,"
        cure += " needed"
        if (there.solver, objective) != (wanted.solver, wanted.objective):
            raise InputError(
                f"{path}: for {there.solver} by {objective}, and these steps would be for"
                f" {wanted.solver} by {wanted.objective}; {cure}"
            )
        if there.teacher_hash != key.teacher_hash:
            found, now = shortened(there.teacher_hash), shortened(key.teacher_hash)
            raise InputError(f"{path}: for the network {found}, and this is {now}; {cure}")


def steps_of_others(texts: Sequence[str]) -> list[Schedule]:
    """What to compare with, from noise levels as text; InputError for what is no such list, or
    does not begin at noise."""
    found = [from_sigmas(parse_sigmas("--compare", text), "--compare") for text in texts]
    for text, steps in zip(texts, found, strict=True):
        if steps.timesteps[0] > NEARLY_NOISE:
            raise InputError(f"--compare: {text!r:.80} begins at {steps.sigmas[0]:g}; 1 needed")
    return found


def compared(matrix: CostMatrix, others: Sequence[Schedule]) -> list[tuple[tuple[int, ...], str]]:
    """Steps of others on the nearest points of the grid, each with a line where these are not
    the same."""
    found, grid = [], matrix.timesteps
    for number, steps in enumerate(others, start=1):
        times = np.array(steps.timesteps)
        places = np.abs(grid[None, :] - times[:, None]).argmin(axis=1)
        places[0] = 0
        indices = tuple(sorted({int(i) for i in places}))
        moved = float(np.abs(grid[places] - times).max())
        note = ""
        if moved > 1e-12:
            note = f"--compare {number}: on the nearest points of the grid, up to {moved:.2g} away"
        if len(indices) < len(places):
            note += f"; {steps.steps} steps become {len(indices) - 1}, as some share a point"
        found.append((indices, note))
    return found


def noise_of(teacher: Teacher, seed: int, device: torch.device) -> NoiseSource:
    """Where the samples of the teacher start."""
    return NoiseSource(teacher.shape, seed, device, teacher.classes, teacher.frequencies)


def search_costs(
    teacher: Teacher,
    key: CostKey,
    folder: Path,
    source: NoiseSource,
    *,
    samples: int,
    batch_size: int,
    keep: bool = False,
) -> tuple[CostMatrix, FineStates | None]:
    """The costs over at least ``samples`` trajectories, going on from what the folder holds; and
    where ``keep`` the states of the first of them, unless some of these were rolled out before."""
    total = read_own_costs(folder / COST, key, source.device)
    rows = range(total.samples, max(samples, total.samples))
    batch_size = min(batch_size, max(1, len(rows)))
    elements = math.prod(teacher.shape)
    held = rollout_bytes(key.grid, elements, batch_size, reference=key.reference)
    announce(total, len(rows), batch_size, held, unchecked=key.teacher_hash is None)
    if isinstance(teacher.velocity, torch.nn.Module):
        teacher.velocity.to(source.device)
    if rows and not isinstance(teacher.velocity, Network):
        noise, _ = source.draw(range(rows.start, rows.start + batch_size), COSTS)
        check_repeats(teacher.velocity, noise)
    count = fitting_noises(teacher.shape, key.grid, rows.stop)
    states = None
    if keep and not total.samples and count <= rows.stop:
        states = empty_states(source.draw(range(1), COSTS)[0], count, total.timesteps)
    with (
        CostSaver(folder / COST, key, total) as saver,
        progress("cost", len(rows) * key.grid, "sample steps") as advance,
    ):
        measure_costs(
            total,
            teacher.velocity,
            source,
            samples=rows.stop,
            batch_size=batch_size,
            states=states,
            on_step=advance,
            on_batch=saver.save_now_and_then,
        )
    if states is None:
        return total.result(), None
    return total.result(), FineStates(states, source.draw(range(count), COSTS)[1])


def announce(
    total: CostSum,
    samples: int,
    batch_size: int,
    held: int | None = None,
    *,
    unchecked: bool = False,
) -> None:
    """Say what a search is about to take, before it takes it. held: bytes of velocities.
    unchecked: the network has no hash to know it again by."""
    steps = len(total.timesteps) - 1
    evaluations = samples * steps * (2 if total.reference == "heun" else 1)
    count = f"{evaluations:,} evaluations"
    if total.reference == "rk45":
        count = f"{count}, and those of RK45's own steps,"
    if total.samples:
        print(f"search: {total.samples} trajectories are in {COST} already")
        if unchecked:
            print(
                f"search: this velocity has no Python source to know it again by: if it has changed"
                f" since, remove {COST}"
            )
    if samples:
        memory = "" if held is None else f", holding {held / 2**20:,.1f} MiB of velocities"
        print(
            f"search: {samples} trajectories of {steps} steps: {count} of"
            f" the velocity for one sample, {batch_size} at a time{memory}",
            flush=True,
        )


def extractor_hash(features: Path | None, shape: Sequence[int]) -> str | None:
    """The hash of the extractor in that folder; InputError without one, or for samples that it
    cannot see."""
    if features is None:
        return None
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(
            f"--features: {features}, but samples are {'x'.join(map(str, shape))}; images of 1 or 3"
            " channels needed"
        )
    from flows.records.extractor import read_extractor  # torch-fidelity takes a second

    return read_extractor(features).hash


def network_steps(
    teacher: Teacher,
    matrix: CostMatrix,
    budgets: Sequence[int],
    wanted: ScheduleSearch,
    source: NoiseSource,
    features: Path | None = None,
    fine: FineStates | None = None,
    reference: str = "euler",
) -> Iterator[tuple[int, FoundSteps]]:
    """The best steps of a network, budget by budget. ``features``: the folder of the extractor,
    where the distance is by features. ``fine``: what `search_costs` kept, by ``reference``."""
    settings, device = search_settings(wanted), torch.device(source.device)
    distance = distance_named(wanted.distance, features or Path(), wanted.batch_size, device)
    return find_steps(
        teacher.velocity, matrix, budgets, settings, source, distance,
        fine=fine, reference=reference, progress=progress, say=say,
    )  # fmt: skip


def write_schedules(
    folder: Path,
    key: CostKey,
    matrix: CostMatrix,
    found: Iterable[tuple[int, FoundSteps]],
    wanted: ScheduleSearch,
    extractor: str | None,
    evaluations: Callable[[Sequence[int]], float] | None = None,
) -> dict[int, Schedule]:
    """The best schedule of every budget, in ``K.json`` as soon as it is found; and the heat
    map. ``extractor``: the hash of the one that samples were compared by. ``evaluations``: those
    for one sample in steps with these indices, where a step may take more than one."""
    settings = search_settings(wanted)
    errors = PredictedErrors(matrix, settings.solver, settings.order)
    of_search = hash_settings(key, matrix.samples, settings, extractor)
    schedules = {}
    for budget, steps in found:
        schedules[budget] = build_schedule(
            errors,
            steps,
            settings,
            seed=key.seed,
            teacher_hash=key.teacher_hash,
            settings_hash=of_search,
            evaluations=None if evaluations is None else evaluations(steps.indices),
        )
        path = folder / f"{budget}.json"
        if path.exists() and (before := _steps_in(path)) != schedules[budget].timesteps:
            print(f"{path}: replaced; its steps were {' '.join(f'{t:.4g}' for t in before)}")
        write_bytes(path, schedules[budget].to_json().encode() + b"\n")

    from flows.report import plots  # matplotlib takes a second

    plots.cost(folder / HEAT_MAP, matrix.cost, matrix.timesteps, schedules)
    return schedules


def report(
    folder: Path,
    matrix: CostMatrix,
    schedules: Mapping[int, Schedule],
    wanted: ScheduleSearch,
    others: Sequence[tuple[tuple[int, ...], str]] = (),
) -> None:
    """Print the schedules with their predicted errors, and where they are. others: `compared`."""
    table = Table(
        title=f"{wanted.solver}, {wanted.objective}; predicted error: the sum of squared errors of"
        f" single steps of {wanted.solver}, {matrix.samples} trajectories (compares steps of one"
        " solver, not solvers)"
    )
    auto = ("steps of", "held-out gain") if wanted.objective == "auto" else ()
    for title in ("K (NFE)", *auto, "predicted error", "95 % interval", "uniform steps"):
        table.add_column(title, justify="right")
    table.add_column("timesteps, 0 noise to 1 data")
    errors = PredictedErrors(matrix, wanted.solver, wanted.order)
    for budget, schedule in schedules.items():
        error = schedule.predicted_error
        assert error is not None
        low, high = schedule.interval(len(matrix.group_gram))
        even = uniform_indices(matrix, budget)
        nfe = "" if schedule.evaluations is None else f" ({schedule.evaluations:g})"
        table.add_row(
            f"{budget}{nfe}",
            *((schedule.objective, gain(schedule)) if auto else ()),
            f"{error:.4g}",
            "" if math.isnan(low) else f"{low:.4g} to {high:.4g}",
            "" if even is None else f"{errors.of(even)[0]:.4g}",
            " ".join(f"{t:.4g}" for t in schedule.timesteps),
        )
    for number, (indices, _) in enumerate(others, start=1):
        error, spread = errors.of(indices)
        low, high = interval(error, spread, len(matrix.group_gram))
        even = uniform_indices(matrix, len(indices) - 1)
        table.add_row(
            f"{len(indices) - 1} (--compare {number})",
            *(("given", "") if auto else ()),
            f"{error:.4g}",
            "" if math.isnan(low) else f"{low:.4g} to {high:.4g}",
            "" if even is None else f"{errors.of(even)[0]:.4g}",
            " ".join(f"{matrix.timesteps[i]:.4g}" for i in indices),
        )
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    for _, note in others:
        if note:
            print(note)
    if len(matrix.group_gram) == 1:
        print("one trajectory cannot say how sure errors and knots are: more --samples can")
    elif line := knots_line(schedules):
        print(line)
    if line := weights_line(schedules):
        print(line)
    names = ", ".join(f"{budget}.json" for budget in schedules)
    print(f"{folder}: {names}, {HEAT_MAP} (heat map), {COST} (goes on with more --samples)")


def gain(schedule: Schedule) -> str:
    """How much nearer than the paper's steps the winner's are to the teacher, and how sure."""
    found = schedule.held_out
    if found is None or found.winner == "l2_squared":
        return ""
    return f"{found.winner} {found.gain:+.1%} ± {found.standard_error:.1%}"


def knots_line(schedules: Mapping[int, Schedule]) -> str:
    """How sure the knots are that the costs chose: the share of bootstrap resamples that agree on
    the least sure; empty where there are none."""
    shares = {k: min(of.knot_stability) for k, of in schedules.items() if of.knot_stability}
    if not shares:
        return ""
    unsure = [str(k) for k, share in shares.items() if share < 0.95]
    more = f"; K = {', '.join(unsure)}: more --samples may move them" if unsure else ""
    least = min(shares.values())
    share = "all" if least == 1 else f"at least {least:.0%} of"
    return f"knots: each within a grid step of here in {share} resamples{more}"


def weights_line(schedules: Mapping[int, Schedule]) -> str:
    """How sure fitted weights are; empty where there are none."""
    errors = {k: max(map(max, of.weights_error)) for k, of in schedules.items() if of.weights_error}
    if not errors:
        return ""
    least_sure = max(errors, key=errors.__getitem__)
    return (
        f"weights: fitted, in K.json; standard errors up to {errors[least_sure]:.2g}"
        f" (K = {least_sure})"
    )


def _steps_in(path: Path) -> tuple[float, ...]:
    """The timesteps of a schedule that is to be replaced, whatever file it is."""
    try:
        return read_schedule(path).timesteps
    except InputError:
        return ()
