"""``boss``: what is not a stage. Stages run through DVC, by `boss run` or ``dvc repro``."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import typer

from flows import paths
from flows.config import TIMEOUT, WORKERS, load_params
from flows.errors import reported

TARGETS = ("diffusers", "diffusers-fixed", "comfyui", "flow_matching", "json")
SPACINGS = ("uniform", "karras", "quadratic", "shifted")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def boss() -> None:
    """Bellman Optimal Stepsize Straightening: fewer network evaluations for each sample."""


@app.command()
def check() -> None:
    """Check params.yaml and the inputs that it names."""
    from flows.stages.check import check as check_inputs

    check_inputs(load_params())


@app.command()
def repro() -> None:
    """Bring every stage up to date with `dvc repro`, in order, and print the table."""
    from flows.orchestration.repro import closing_lines
    from flows.orchestration.repro import repro as run_stages

    code = run_stages()
    if code:
        raise SystemExit(code)
    table()
    print(closing_lines())


@app.command()
def run(
    overrides: list[str] = typer.Option(
        [],
        "--set",
        metavar="NAME=VALUE",
        help="A parameter to change, as budgets=[4,6]; repeat for more. The run works in a copy"
        " and becomes a DVC experiment; this folder stays as it is.",
    ),
    targets: list[str] = typer.Option(
        [], "--target", metavar="STAGE", help="A stage to bring up to date, with what it needs."
    ),
    workers: int = typer.Option(WORKERS, min=1, help="Stages side by side, on GPUs too."),
    timeout: float = typer.Option(TIMEOUT, min=1, help="Seconds for one stage."),
    name: str | None = typer.Option(None, help="Name of the experiment, with --set."),
) -> None:
    """Run the Prefect flow: every stage a task, budgets side by side; then print the table."""
    from flows.orchestration.launch import launch
    from flows.orchestration.repro import closing_lines

    launch(overrides, targets, workers, timeout, name)
    if not overrides and not targets:
        table()
        print(closing_lines())


@app.command()
def server() -> None:
    """Start Prefect's server on this machine, in the background, at the address in
    PREFECT_API_URL; comes back when it answers."""
    from flows.orchestration.server import start

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends what it has begun to start
    print(start())


@app.command()
def deploy(
    pool: str = typer.Option(
        "local", help="A process work pool of the Prefect server; `local` is made where missing."
    ),
) -> None:
    """Register the deployments of prefect.yaml with the Prefect server, for this folder."""
    from flows.orchestration.launch import deploy as register

    register(pool)


@app.command()
def table() -> None:
    """Print the table of the last run: Frechet distance for every budget and variant."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from flows.records.json_files import frechet_name, read_json
    from flows.records.variants import recorded

    params = load_params()
    floor = read_json(paths.metrics("teacher"))
    metric = frechet_name(floor)
    print(
        f"{metric} (lower is better): {floor['samples']:,} samples against"
        f" {floor['reference_samples']:,} real images"
    )
    records = {k: read_json(paths.metrics(k)) for k in sorted(params.budgets)}
    variants = {name: found for r in records.values() for name, found in recorded(r).items()}
    # Seven columns fit into 100 characters with one word a line and little around it, all ten
    # into 140.
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("NFE", justify="right")
    for variant in variants.values():
        words = variant.title.replace(",", "").replace(":", "").split()
        shown.add_column("\n".join(words), justify="right", vertical="bottom")
    for budget, record in records.items():
        values = {v: record[v][metric] for v in recorded(record)}
        best = min(values.values())
        cells = (f"{values[v]:.4g}" if v in values else "" for v in variants)
        marked = (f"[bold]{x}[/bold]" if x == f"{best:.4g}" else x for x in cells)
        shown.add_row(str(budget), *marked)
    shown.add_section()
    shown.add_row(str(floor["nfe"]), f"{floor['fine'][metric]:.4g}", "(the floor)")
    # In a log there is no terminal to fit into: a row must not be folded.
    Console(width=None if sys.stdout.isatty() else 150).print(shown)


@app.command()
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


@app.command()
def verify(
    remove: bool = typer.Option(
        False, "--remove", help="Take away what is altered, so that the next run makes it anew."
    ),
) -> None:
    """Read every output and its copy in DVC's cache, and say which are not what their stage made:
    DVC itself goes by their size and time."""
    from flows.workspace.integrity import verify as verify_outputs

    if verify_outputs(Path(), remove=remove) and not remove:
        raise SystemExit(2)


@app.command()
def track(
    rebuild: bool = typer.Option(
        False, help="Fail when MLflow cannot be reached, where otherwise a warning is enough."
    ),
) -> None:
    """Log the recorded metrics of every budget to MLflow, as into an empty database; what is
    there already stays as it is."""
    from boss_core.errors import InputError
    from flows.tracking.links import lacking
    from flows.tracking.runs import track_budget

    params = load_params()
    found = paths.metrics("").parent.glob("*.json")
    measured = {int(path.stem) for path in found if path.stem.isdecimal()}
    for budget in sorted(measured):
        if budget not in params.budgets:
            print(f"K={budget}: not logged: not among the budgets of params.yaml")
            continue
        lack = lacking(budget)
        if lack:
            print(f"K={budget}: not logged: {lack}; `boss run` makes it")
            continue
        try:
            print(track_budget(params, budget))
        except InputError as error:
            if rebuild:
                raise
            print(f"warning: {error}", file=sys.stderr)


NETWORK, DIFFUSERS = "Network: one of three", "Of a diffusers pipeline"
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
    help="With --velocity: the shape of a sample.",
)
PIPELINE = typer.Option(
    None,
    rich_help_panel=NETWORK,
    help="Instead of a checkpoint: a diffusers pipeline, a folder or a name on the hub.",
)
SEED = typer.Option(
    0, min=0, max=2**63 - 1, help="Seed of the noise; sample i depends on it and i alone."
)
DEVICE = typer.Option("auto", help="auto, cpu, cuda, cuda:1 (the second GPU) or, to sample, mps.")


@app.command()
def schedule(
    checkpoint: Path | None = CHECKPOINT,
    budget: list[int] = typer.Option(
        ..., help="Steps: network evaluations (NFE) where one takes one; repeat for more."
    ),
    config: str | None = CONFIG,
    raw_weights: bool = RAW,
    velocity: str | None = VELOCITY,
    shape: str | None = SHAPE,
    grid: int = typer.Option(100, min=1, help="Steps of the fine grid to choose from."),
    pipeline: str | None = PIPELINE,
    prompts: Path | None = typer.Option(
        None, rich_help_panel=DIFFUSERS, help="A text file, one prompt a line; needed."
    ),
    guidance: float | None = typer.Option(
        None, rich_help_panel=DIFFUSERS, help="Its guidance_scale."
    ),
    size: str | None = typer.Option(
        None, metavar="HxW", rich_help_panel=DIFFUSERS, help="Height and width of the images."
    ),
    call: list[str] = typer.Option(
        [],
        metavar="NAME=VALUE",
        rich_help_panel=DIFFUSERS,
        help="Another argument of its call, as true_cfg_scale=4, negative_prompt=blurred,"
        " num_frames=33 or image=photo.png; repeat for more.",
    ),
    dtype: str | None = typer.Option(
        None, rich_help_panel=DIFFUSERS, help="float32, bfloat16 (when left out) or float16."
    ),
    spacing: str = typer.Option("uniform", help=f"Fine grid: {', '.join(SPACINGS)}."),
    reference: str = typer.Option(
        "euler", help="Fine trajectories to measure on: euler (the paper), heun or rk45."
    ),
    solver: str = typer.Option(
        "euler",
        help="euler, or ab2: two-step Adams-Bashforth, better samples from as many evaluations.",
    ),
    objective: str = typer.Option(
        "l2_squared",
        help="What the steps are best for: l2_squared (the paper), l2, minimax, gits, oss, refine,"
        " auto, which compares samples of all these, or lpips, which needs weights files.",
    ),
    gamma: float = typer.Option(1.15, min=0.01, max=10, help="Of --objective gits."),
    lpips_weights: Path = typer.Option(
        Path("inputs/lpips"), help="Of --objective lpips: the folder of its two weights files."
    ),
    noises: int = typer.Option(
        256,
        min=20,
        help="Samples that oss, refine and auto search on; auto compares on twice as many others,"
        " and lpips takes an eighth of them.",
    ),
    features: Path | None = typer.Option(
        None,
        help="What refine and auto compare samples by: a folder with card.json and an extractor, as"
        " models/features. Without it they go by pixels, which on photographs may mislead.",
    ),
    samples: int = typer.Option(100, min=1, max=1 << 40, help="Trajectories to measure."),
    batch_size: int | None = typer.Option(
        None,
        min=1,
        help="Trajectories at a time, in all that is searched. Left out: up to 512, by the memory"
        " that is free; with --pipeline 20.",
    ),
    seed: int = SEED,
    device: str = DEVICE,
    compare: list[str] = typer.Option(
        [],
        metavar="SIGMAS",
        help="Steps of others to show beside: noise levels, as 1,0.65,0.3,0; repeat for more.",
    ),
    replace: bool = typer.Option(
        False,
        "--replace",
        help="Write over schedules of another solver, objective or network in --out.",
    ),
    out: Path = typer.Option(Path("schedules"), help="Folder for K.json, cost.npz and cost.png."),
) -> None:
    """Find the best K steps of a network, for each budget K: no training, no data.

    Rolls out trajectories on the fine grid, measures what every possible step would cost,
    and finds the cheapest K. Stopped, it goes on from where it was; asked for other budgets, it
    need not measure again. What oss, refine, auto and lpips sample beyond that is not kept.

    `boss schedule --checkpoint checkpoint_8.pth --config cifar10 --budget 4 --budget 8`
    """
    from boss_core.checkpoints.load import calling
    from boss_core.costs.cost_file import CostKey, network_key
    from boss_core.errors import InputError
    from flows.config import ScheduleSearch
    from flows.search.memory import search_batch
    from flows.search.options import choose_device, choose_teacher, parse_shape, refuse_options
    from flows.search.schedule import (
        check_folder,
        check_grid,
        check_request,
        compared,
        extractor_hash,
        network_steps,
        noise_of,
        report,
        search_costs,
        steps_of_others,
        write_schedules,
    )

    if pipeline is None:
        if checkpoint is None and velocity is None:
            raise InputError("--checkpoint, --velocity or --pipeline needed")
        of_pipeline = {"--prompts": prompts, "--guidance": guidance, "--size": size}
        refuse_options("--pipeline", of_pipeline | {"--call": call, "--dtype": dtype})
    else:
        refuse_options("--checkpoint", {"--config": config, "--raw-weights": raw_weights})
        refuse_options("--velocity", {"--shape": shape})
    dtype = dtype or "bfloat16"
    others = steps_of_others(compare)
    check_grid(grid)
    check_request(budget, grid, spacing, solver, objective, reference)
    wanted = ScheduleSearch(
        solver=solver,
        objective=objective,
        gamma=gamma,
        distance="sliced_wasserstein" if features is None else "features",
        lpips=str(lpips_weights),
        samples=noises,
        batch_size=batch_size or 20,
    )
    budgets = sorted(set(budget))
    on = choose_device(device, float64=True)
    extractor = evaluations = None
    if pipeline is not None:
        from flows.search.diffusers_schedule import (
            call_arguments,
            check_pipeline_request,
            conditions,
            find_pipeline_steps,
            load_pipeline,
            pipeline_costs,
            read_prompts,
            rounding_lines,
        )

        check_pipeline_request(objective, reference, features)
        if checkpoint is not None or velocity is not None:
            raise InputError("--pipeline: with --checkpoint or --velocity; one of them needed")
        texts = read_prompts(prompts)
        pixels = None if size is None else parse_shape(size, 2)
        shared = call_arguments(guidance, pixels, call)
        of_call = conditions(texts, shared, dtype)
        pipe, weights = load_pipeline(pipeline, dtype, on)
        search = CostKey(weights, grid, spacing, seed, conditions=of_call)
        check_folder(out, search, budgets, wanted, replace=replace)
        matrix, measured = pipeline_costs(
            pipe, search, out, prompts=texts, shared=shared, samples=samples,
            batch_size=wanted.batch_size, device=on,
        )  # fmt: skip
        found = find_pipeline_steps(
            pipe, search, matrix, budgets, wanted, prompts=texts, shared=shared
        )
        evaluations = measured.evaluations
    else:
        teacher = choose_teacher(checkpoint, config, raw_weights, velocity, shape)
        extractor = extractor_hash(features, teacher.shape)
        source = noise_of(teacher, seed, on)
        search = network_key(source, teacher.hash, grid, spacing=spacing, reference=reference)
        check_folder(out, search, budgets, wanted, replace=replace)
        if batch_size is None:
            at_a_time = search_batch(teacher.shape, grid, on, reference=reference)
            wanted = wanted.model_copy(update={"batch_size": at_a_time})
        with calling(velocity):
            matrix = search_costs(
                teacher, search, out, source, samples=samples, batch_size=wanted.batch_size
            )
        found = network_steps(teacher, matrix, budgets, wanted, source, features)
    with calling(velocity):
        schedules = write_schedules(out, search, matrix, found, wanted, extractor, evaluations)
    report(out, matrix, schedules, wanted, compared(matrix, others))
    if pipeline is not None:
        for line in rounding_lines(measured, matrix, schedules, objective, dtype):
            print(line)


@app.command()
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


@app.command()
def export(
    schedule: Path = typer.Argument(help="A schedule's JSON, or the folder of a student."),
    to: str = typer.Option(..., help=f"{', '.join(TARGETS)}."),
    out: Path | None = typer.Option(None, help="File to write; printed when left out."),
    scheduler: Path | None = typer.Option(
        None,
        help="The folder of a diffusers pipeline or scheduler: say what it would do to the steps.",
    ),
    mu: float | None = typer.Option(None, help="With --scheduler: mu of dynamic shifting."),
) -> None:
    """Write a schedule for the sampler of another tool: a snippet to paste, or JSON."""
    from boss_core.errors import InputError
    from flows.search.export import export_notes, export_schedule, scheduler_lines

    if mu is not None and scheduler is None:
        raise InputError("--mu: only goes with --scheduler; add that, or leave --mu out")
    if out is not None:
        from flows.search.options import check_place  # imports torch, which printing does not need

        check_place("--out", out, folder=False)
    text = export_schedule(schedule, to)
    for line in export_notes(schedule, to):
        print(line, file=sys.stderr)
    if scheduler is not None:
        for line in scheduler_lines(schedule, scheduler, mu):
            print(line, file=sys.stderr)
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        from boss_core.files import write_bytes

        write_bytes(out, text.encode())


@app.command()
def merge(
    adapter: Path = typer.Argument(help="An adapter's folder, as models/student/6/boss_lora."),
    teacher: Path = typer.Option(..., help="The folder of the network that it was trained on."),
    out: Path = typer.Option(..., help="A new folder: a checkpoint of the whole student."),
) -> None:
    """Merge an adapter into its teacher's weights: a student like any other, with its steps."""
    from boss_core.checkpoints.folder import save_checkpoint
    from boss_core.checkpoints.lora import load_adapter
    from boss_core.errors import InputError

    if out.exists():
        raise InputError(f"--out: {out} is there already; a new folder needed")
    network, card = load_adapter(adapter, teacher)
    save_checkpoint(out, network, teacher_hash=card.teacher_hash, schedule=card.schedule)
    print(f"{out}: the teacher {card.teacher_hash[:12]} with the adapter {adapter}")


@app.command()
def ui(port: int = typer.Option(5000, help="Port on this machine.")) -> None:
    """Open the MLflow UI on the runs of this project; Ctrl-C ends it."""
    from flows.tracking.links import without_password
    from flows.tracking.runs import prepare_database, tracking_uri

    uri = tracking_uri(load_params())
    prepare_database(uri)
    shown = without_password(uri)
    print(f"MLflow UI: http://127.0.0.1:{port} (Ctrl-C to stop), showing {shown}")
    raise SystemExit(_serve(uri, port))


def _serve(uri: str, port: int) -> int:
    """MLflow's exit code; it ends with this process, whatever ends that."""
    from flows.telemetry import TELEMETRY_OFF
    from flows.workspace.guard import guarded

    command = ["mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | TELEMETRY_OFF | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["MLFLOW_BACKEND_STORE_URI"] = uri  # a command line with a password is seen by all
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen(
        guarded([sys.executable, "-m", *command]), env=environment, start_new_session=True
    )
    try:
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def main() -> None:
    with reported():
        app()


if __name__ == "__main__":
    main()
