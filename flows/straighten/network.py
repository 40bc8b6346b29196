"""``boss straighten --network``: students of a network of one's own, a folder for each budget.

The folder has ``run.json``, what was asked for; ``K/``, the student of each budget
(`boss_core.checkpoints.student`); ``report.json``, what came out; and, while it runs, ``work/``:
the costs of the search, the trajectories and the checkpoints, from which a killed run goes on.
"""

import copy
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from boss_core.bellman.predicted import PredictedErrors
from boss_core.checkpoints.load import MadeNetwork, calling, import_network, mismatch
from boss_core.checkpoints.lora import adaptable_layers, adapter_tensors, add_adapter
from boss_core.checkpoints.student import Student, load_student, network_hash
from boss_core.costs.cost_file import CostSaver, network_key, read_own_costs
from boss_core.costs.measure import measure_costs
from boss_core.errors import InputError
from boss_core.io.files import write_bytes
from boss_core.networks.threads import limit_threads
from boss_core.ode.noise import EVALUATION, NoiseSource
from boss_core.ode.schedule import Schedule
from boss_core.ode.solver_table import MULTISTEP
from boss_core.ode.solvers import SOLVERS
from boss_core.ode.timesteps import uniform
from boss_core.search.settings import SearchSettings
from boss_core.search.steps import build_schedule, from_costs, hash_settings
from boss_core.straightening.rollout import on_one_grid, roll_out
from boss_core.straightening.straighten import (
    StraightenSettings,
    checkpoints,
    distance,
    ends,
    evaluating,
    teacher_velocity,
    train_student,
    usual_training,
)
from boss_core.training.settings import Precision
from flows.search.export import read_schedule
from flows.search.options import check_place, choose_device, parse_shape
from flows.straighten.timing import announced

RUN, REPORT, WORK = "run.json", "report.json", "work"
# The largest that few networks diverge with, of all weights and of an adapter, which starts at 0.
LEARNING_RATE, ADAPTERS_RATE = 3e-4, 1e-3


@dataclass(frozen=True)
class NetworkRequest:
    """What the options of the command ask for, see its help."""

    network: str
    shape: str
    budgets: tuple[int, ...]
    out: Path
    steps: str = "search"
    solver: str | None = None
    classes: int | None = None
    rank: int | None = None
    iterations: int = 2000
    batch_size: int = 64
    learning_rate: float | None = None
    trajectories: int = 1000
    grid: int = 100
    samples: int = 100
    held_out: int = 256
    precision: Precision = "float32"
    seed: int = 0
    device: str = "auto"
    replace: bool = False

    def settings(self) -> StraightenSettings:
        """What the students are trained by."""
        usual = LEARNING_RATE if self.rank is None else ADAPTERS_RATE
        training = usual_training(
            iterations=self.iterations,
            batch_size=self.batch_size,
            learning_rate=usual if self.learning_rate is None else self.learning_rate,
        )
        return StraightenSettings(
            training, self.rank, self.trajectories, self.grid, precision=self.precision
        )


@dataclass(frozen=True)
class _Job:
    """A request with all that it names: the network called as a velocity, on its device."""

    asked: NetworkRequest
    made: MadeNetwork
    velocity: Any
    source: NoiseSource
    hash: str
    settings: StraightenSettings

    @property
    def work(self) -> Path:
        return self.asked.out / WORK


def straighten_network(asked: NetworkRequest) -> None:
    """Search the steps of each budget, straighten a student for each, compare all with the network
    itself, and write and print it. Killed, it goes on when it is asked for the same again.

    InputError, before any work, for what cannot be had, and for a folder of another run.
    """
    shape, given = check_request(asked)
    device = choose_device(asked.device, float64=True)
    made = import_network(asked.network)
    _check_signature(asked, made)
    made.network.to(device)
    limit_threads(made.network, shape, device)
    with calling(asked.network):
        source = NoiseSource(shape, asked.seed, classes=asked.classes)
        velocity, source = teacher_velocity(made.network, source, made.velocity)
        job = _Job(asked, made, velocity, source, network_hash(made.network), asked.settings())
        trained = _trained(job)
        if _is_done(job, given):
            print(f"straighten: {asked.out} has it already")
        else:
            announce(job, given, trained)
            with evaluating(made.network):
                schedules = given or searched(job)
            write_report(job, make_students(job, schedules))
    show(asked.out)


def check_request(asked: NetworkRequest) -> tuple[tuple[int, ...], dict[int, Schedule]]:
    """The shape of a sample, and the steps that were given, by their number; none where they are
    searched. InputError for what no network could be straightened by."""
    shape = parse_shape(asked.shape)
    solver = asked.solver or "euler"
    known = MULTISTEP
    if solver not in known:
        raise InputError(f"--solver: {solver!r}; {' or '.join(known)} needed")
    for budget in asked.budgets:
        if not 1 <= budget <= asked.grid:
            raise InputError(f"--budget: {budget}; 1..{asked.grid}, the steps of --grid, needed")
    if asked.trajectories < 2:
        raise InputError(f"--trajectories: {asked.trajectories}; at least 2 needed")
    if asked.precision not in ("float32", "bfloat16"):
        raise InputError(f"--precision: {asked.precision!r}; float32 or bfloat16 needed")
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise InputError(
            f"straighten: started as {processes} processes; one needed (several can call"
            " boss_core.straighten)"
        )
    check_place("--out", asked.out, folder=True)
    if asked.out.is_dir() and not (asked.out / RUN).exists() and any(asked.out.iterdir()):
        raise InputError(f"--out: {asked.out} holds something else; a new or empty folder needed")
    if asked.steps == "search":
        return shape, {}
    return shape, {budget: _given_steps(asked, budget, solver) for budget in asked.budgets}


def _given_steps(asked: NetworkRequest, budget: int, solver: str) -> Schedule:
    """Uniform ones, or those of a file, or of ``K.json`` in a folder as `boss schedule` has it."""
    if asked.steps == "uniform":
        return Schedule(timesteps=tuple(uniform(budget)), solver=solver, objective="uniform")
    path = Path(asked.steps)
    if path.is_dir() and (path / f"{budget}.json").is_file():
        path = path / f"{budget}.json"
    if not path.exists():
        raise InputError(f"--steps: {asked.steps}: no such file; search, uniform or a file needed")
    found = read_schedule(path)
    if found.steps != budget:
        raise InputError(f"--budget: {budget}, but {path} has {found.steps} steps; these needed")
    if asked.solver not in (None, found.solver):
        raise InputError(f"--solver: {solver}, but {path} is for {found.solver}; that needed")
    if found.solver not in MULTISTEP:
        raise InputError(f"{path}: for {found.solver}; {' or '.join(MULTISTEP)} needed")
    if found.timesteps[0] != 0:
        raise InputError(f"{path}: begins at t = {found.timesteps[0]:g}; 0 needed")
    return found


def _check_signature(asked: NetworkRequest, made: MadeNetwork) -> None:
    """InputError where the network, or the function that calls it, takes other arguments."""
    names = ["x", "t"] if asked.classes is None else ["x", "t", "labels"]
    called: Callable[..., Any] = made.network.forward
    if made.velocity is not None:
        called, names = made.velocity, ["network", *names]
    if (takes := mismatch(called, len(names))) is not None:
        cure = "--classes for a network of labels, none for one without, or a velocity of its own"
        raise InputError(
            f"--network: {asked.network!r} takes {takes}, and is called as"
            f" ({', '.join(names)}); {cure}, needed"
        )


def _is_done(job: _Job, given: Mapping[int, Schedule]) -> bool:
    """Whether the folder has the result of this run; InputError where it has another's."""
    asked = job.asked
    run = {
        name: value
        for name, value in asdict(asked).items()
        if name not in ("out", "device", "replace")
    }
    run |= {"weights": job.hash, "code": job.made.source_hash}
    run |= {"given": {str(k): s.model_dump(mode="json") for k, s in given.items()}}
    run = json.loads(json.dumps(run))
    path = asked.out / RUN
    if path.exists():
        try:
            there = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: truncated or altered; another --out needed") from error
        differ = sorted(k for k in run.keys() | there.keys() if run.get(k) != there.get(k))
        if not differ:
            return (asked.out / REPORT).is_file()
        if not asked.replace:
            raise InputError(
                f"--out: {asked.out} holds another run ({', '.join(differ)} differ); another"
                " --out, or --replace, needed"
            )
        _remove_run(asked.out, there)
    write_bytes(path, json.dumps(run, indent=1).encode() + b"\n")
    return False


def _remove_run(out: Path, there: Mapping[str, Any]) -> None:
    """What a run left: its students, of the budgets that it was asked for, and all beside them."""
    budgets = [k for k in there.get("budgets", ()) if isinstance(k, int)]  # no path of somebody's
    for name in (WORK, *map(str, budgets)):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / REPORT).unlink(missing_ok=True)


def announce(job: _Job, given: Mapping[int, Schedule], trained: str) -> None:
    """Say what is about to be done, before it takes its time."""
    asked = job.asked
    print(f"straighten: K = {', '.join(map(str, asked.budgets))}; {trained}")
    fine = asked.grid if not given else len(on_one_grid(list(given.values()), asked.grid)[0]) - 1
    search = "" if given else f"{asked.samples * asked.grid:,} to search, "
    compared = asked.held_out * (asked.grid + 3 * sum(asked.budgets))
    print(
        f"straighten: {search}{asked.trajectories * fine:,} for trajectories and {compared:,} to"
        " compare are evaluations for one sample"
    )
    print(
        f"straighten: training: {len(asked.budgets)} x {asked.iterations:,} steps of"
        f" {asked.batch_size} samples, forward and backward",
        flush=True,
    )


def _trained(job: _Job) -> str:
    """What of the network is trained, in words; InputError where there is nothing to adapt."""
    total = sum(p.numel() for p in job.made.network.parameters())
    if job.asked.rank is None:
        return f"{total:,} parameters, all weights trained"
    if not adaptable_layers(job.made.network):
        raise InputError("--rank: the network has no Linear or convolution to adapt; none needed")
    network = add_adapter(copy.deepcopy(job.velocity), job.asked.rank, seed=0)
    count = sum(p.numel() for _, p in adapter_tensors(network))
    share = f"{100 * count / total:.3g} % of the network's {total:,}"
    return f"{count:,} parameters trained, in an adapter: {share}"


def searched(job: _Job) -> dict[int, Schedule]:
    """The best steps by the costs of the network (paper, eqs. 5 to 8), for every budget."""
    asked, path = job.asked, job.work / "cost.npz"
    key = network_key(job.source, job.hash, asked.grid)
    total = read_own_costs(path, key, job.source.device)
    size = min(job.settings.rollout_batch, asked.samples)
    steps = max(0, asked.samples - total.samples) * asked.grid
    with (
        CostSaver(path, key, total) as saver,
        announced("search", steps, "sample steps", size) as advance,
    ):
        measure_costs(
            total, job.velocity, job.source, samples=asked.samples, batch_size=size,
            on_step=advance, on_batch=saver.save_now_and_then,
        )  # fmt: skip
    matrix, settings = total.result(), SearchSettings(solver=asked.solver or "euler")
    errors = PredictedErrors(matrix, settings.solver)
    return {
        budget: build_schedule(
            errors, found, settings, seed=asked.seed, teacher_hash=job.hash,
            settings_hash=hash_settings(key, matrix.samples, settings),
        )
        for budget, found in from_costs(matrix, asked.budgets, settings)
    }  # fmt: skip


def make_students(job: _Job, schedules: Mapping[int, Schedule]) -> list[dict[str, Any]]:
    """Train and save the students, from one rollout; what is to be said of each."""
    asked, settings = job.asked, job.settings
    wanted = list(schedules.values())
    fine = len(on_one_grid(wanted, asked.grid)[0]) - 1
    with (
        evaluating(job.made.network),
        announced(
            "trajectories", asked.trajectories * fine, "sample steps", settings.rollout_batch
        ) as advance,
    ):
        rollout = roll_out(
            job.velocity, wanted, job.source, trajectories=asked.trajectories, grid=asked.grid,
            batch_size=settings.rollout_batch, folder=job.work / "trajectories",
            teacher_hash=job.hash, on_step=advance,
        )  # fmt: skip
    teacher = _ends(job, job.velocity, uniform(asked.grid), "euler")
    rows = []
    for number, (budget, schedule) in enumerate(schedules.items()):
        path = job.work / f"{budget}.json"
        if path.exists():  # written after the student, which is whole then
            rows.append(json.loads(path.read_text()))
            continue
        start = time.monotonic()
        label = f"training, K = {budget}"
        kept = checkpoints(job.work, rollout, number, settings, job.source, print)
        with announced(label, asked.iterations, "steps") as advance:
            student = train_student(
                job.velocity, rollout, number, job.source, settings, teacher_hash=job.hash,
                checkpoints=kept, on_step=advance,
            )  # fmt: skip
        student = replace(student, schedule=schedule)
        student.save(asked.out / str(budget))
        rows.append(_compared(job, student, teacher) | {"seconds": time.monotonic() - start})
        write_bytes(path, json.dumps(rows[-1]).encode())
        kept.remove()
    return rows


def _compared(job: _Job, student: Student, teacher: Tensor) -> dict[str, Any]:
    """How far the student, as it was saved, and the network itself in as many evaluations are
    from the network's fine steps."""
    schedule, solver = student.schedule, student.schedule.solver
    folder = job.asked.out / str(schedule.steps)
    loaded = load_student(folder, copy.deepcopy(job.made.network), job.made.velocity)
    even, own = uniform(schedule.steps), schedule.timesteps
    return {
        "steps": schedule.steps,
        "evaluations": schedule.nfe,
        "solver": solver,
        "objective": schedule.objective,
        "timesteps": list(own),
        "distance": {
            "network, uniform steps": distance(_ends(job, job.velocity, even, solver), teacher),
            "network, these steps": distance(_ends(job, job.velocity, own, solver), teacher),
            "student": distance(_ends(job, loaded.velocity, own, solver), teacher),
        },
        "curve": student.curve,
    }


def _ends(job: _Job, velocity: Any, timesteps: Any, solver: str) -> Tensor:
    """Samples from noise that nothing was searched or trained on."""
    with evaluating(velocity):
        return ends(
            velocity, partial(SOLVERS[solver], timesteps=timesteps), job.source,
            range(job.asked.held_out), EVALUATION, job.settings.rollout_batch,
        )  # fmt: skip


def write_report(job: _Job, rows: list[dict[str, Any]]) -> None:
    """``report.json``; what was needed to go on is removed once it is there."""
    settings = asdict(job.settings) | {"training": job.settings.training.model_dump()}
    # peft comes with an extra, and computes where an adapter is trained only.
    libraries = ("torch", "safetensors", *(() if job.asked.rank is None else ("peft",)))
    report = {
        "network": job.asked.network,
        "teacher_hash": job.hash,
        "versions": {name: version(name) for name in libraries},
        "held_out": job.asked.held_out,
        "settings": settings,
        "students": rows,
    }
    write_bytes(job.asked.out / REPORT, json.dumps(report, indent=1).encode() + b"\n")
    shutil.rmtree(job.work, ignore_errors=True)


def show(out: Path) -> None:
    """Print what came out, and where it is."""
    report = json.loads((out / REPORT).read_text())
    table = Table(
        title="mean squared distance to the network's own fine samples, on"
        f" {report['held_out']} noises that nothing was trained on"
    )
    names = ("network, uniform steps", "network, these steps", "student")
    for title in ("K", "solver", *names):
        table.add_column(title, justify="right")
    for row in report["students"]:
        found = (f"{row['distance'][name]:.4g}" for name in names)
        table.add_row(str(row["steps"]), row["solver"], *found)
    Console(width=110).print(table)
    for row in report["students"]:
        far = row["distance"]
        if not far["student"] < min(far[name] for name in names[:2]):
            print(
                f"warning: K = {row['steps']}: the student is no nearer than the network; more"
                " --iterations or --trajectories, or another --learning-rate, may help"
            )
    print(f"{out}: K/student.safetensors, K/schedule.json, K/card.json and {REPORT}")
    print(
        f"In Python: boss_core.load_student('{out}/K', network, velocity), with what the function"
        " of --network returns; .sample(noise)"
    )
    asked = json.loads((out / RUN).read_text())
    if len(shape := parse_shape(asked["shape"])) == 3 and shape[0] in (1, 3):
        labels = f" --classes {asked['classes']}" if asked["classes"] else ""
        print(
            f"Pictures: boss sample --network {asked['network']} --checkpoint {out}/K --shape"
            f" {asked['shape']}{labels}"
        )
