"""What the card does, and what of its two ceilings the project's work reaches.

    python -m benchmarks.gpu
    torchrun --nproc-per-node 2 -m benchmarks.gpu training --batch 2048

The network is DDPM++ with nf = 64 and two blocks a level (9.86 M parameters) on random weights and
images of CIFAR-10's shape: nothing here depends on what they hold. In one process:

- ceilings: a large bf16 matrix product and a large copy, bytes read plus bytes written;
- training: the project's own loop in bf16 autocast, compiled, on one card or several. Its floors
  are the operations of all products and convolutions over the matrix rate, and the bytes over the
  bandwidth when each layer reads each input once and writes each output once, two bytes a number;
- finetuning: straightening by the same loop in batches of 64, of all weights and of an adapter;
- search: `estimate_cost_matrix` against a bare rollout of the same noise;
- sampling: `sample_images` against as many forward passes on states that are there already.
"""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from boss_core.bellman.recursion import optimal_paths
from boss_core.checkpoints.lora import add_adapter
from boss_core.checkpoints.rectified_flow import PUBLISHED
from boss_core.costs.matrix import CostSum, estimate_cost_matrix
from boss_core.evaluation.sampling import sample_images
from boss_core.io.pixels import from_uint8
from boss_core.networks.ncsnpp import NCSNpp, NCSNppConfig
from boss_core.ode.schedule import Schedule
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import uniform
from boss_core.straightening.segments import Segments
from boss_core.training.device_rows import DeviceRows
from boss_core.training.distributed import own_share
from boss_core.training.flow_matching import flow_matching_loss
from boss_core.training.loop import Trained, train
from boss_core.training.randomness import BatchShare, Loss, device_generator, step_generator
from boss_core.training.settings import TrainingSettings
from flows.measure.energy import Usage, measured

PARTS = ("training", "finetuning", "search", "sampling")
SHAPE = (3, 32, 32)
# The first pattern that a kernel's name has is its class.
KERNELS = {
    "compiled elementwise": r"^triton_poi",
    "compiled reductions": r"^triton_(red|per|mix)",
    "group norm": r"^group_norm_(forward|backward)|RowwiseMoments",
    "convolution, forward": r"_fprop_",
    "convolution, gradient of states": r"_dgrad_",
    "convolution, gradient of weights": r"_wgrad_|wgrad",
    "attention": r"sdpa|flash|fmha|attention",
    "matrix product": r"gemm|nvjet|splitk|cublas",
    "optimiser, average, clipping": r"multi_tensor|adam|lpnorm",
    "copies": r"copy",
}


def main() -> None:
    """Measure the chosen parts and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}")
    parser.add_argument("--batch", type=int, default=1024, help="images a training step")
    parser.add_argument("--samples", type=int, default=50_000, help="images to sample")
    parser.add_argument("--steps", type=int, default=20, help="training steps to time")
    parser.add_argument("--kernels", type=Path, help="file for the time of each kernel, JSON")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: no such part; {', '.join(PARTS)} needed")
    # As the stages do: the same bits each run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    state = PartialState()  # joins the processes of torchrun, each on its card
    matrix_rate, bandwidth = ceilings()
    show(
        torch.cuda.get_device_name(),
        {
            "torch": torch.__version__,
            "bf16 matrix product": f"{matrix_rate / 1e12:.0f} TFLOP/s",
            "copy, read and written": f"{bandwidth / 1e12:.2f} TB/s",
        },
    )
    network = ddpmpp()
    if "training" in chosen.parts:
        training(network, chosen, matrix_rate, bandwidth)
    if "finetuning" in chosen.parts:
        finetuning(chosen)
    network.eval().requires_grad_(False)
    if "search" in chosen.parts:
        search(network)
    if "sampling" in chosen.parts:
        sampling(network, chosen.samples)
    state.destroy_process_group()


def ddpmpp() -> NCSNpp:
    """The network of CIFAR-10, at half its width and with two blocks a level."""
    content = json.loads(PUBLISHED["cifar10"].read_text())
    settings = {**content["data"], **content["model"], "nf": 64, "num_res_blocks": 2}
    torch.manual_seed(0)
    fields = {name: settings[name] for name in NCSNppConfig.model_fields}
    return NCSNpp(NCSNppConfig.model_validate(fields)).cuda()


def ceilings() -> tuple[float, float]:
    """bf16 operations a second of a matrix product, bytes a second of a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = seconds(lambda: torch.mm(a, b), 20)
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), 20)
    return 2 * 8192**3 / product, 2 * source.nbytes / copy


def training(
    network: NCSNpp, chosen: argparse.Namespace, matrix_rate: float, bandwidth: float
) -> None:
    """The project's own loop, as the teacher stage runs it, on one card or, with torchrun, on each
    of several."""
    gpu = torch.device("cuda")
    operations, layer_bytes = floors(network)
    pixels = np.random.default_rng(0).integers(256, size=(50_000, *SHAPE), dtype=np.uint8)
    images = DeviceRows.of(pixels, gpu)
    size, of = chosen.batch, own_share().of

    def loss(network: Callable[..., Tensor], step: int, share: BatchShare) -> Tensor:
        rows = step_generator(0, step).integers(len(pixels), size=size)
        draw = device_generator(0, step, gpu)
        noise = torch.randn((size, *SHAPE), generator=draw, device=gpu)
        t = torch.rand(size, generator=draw, device=gpu)
        data = from_uint8(images.take(share.take(rows)))
        return flow_matching_loss(network, data, share.take(noise), share.take(t))

    trained, clock = run(network, loss, chosen)
    rate = size * clock.steps / clock.usage.seconds
    each = rate / of
    show(
        f"training, batch {size}, {of} card{'s' if of > 1 else ''}",
        {
            "images a second": f"{rate:,.0f}",
            "first step, compilation included": f"{clock.first:.1f} s",
            **clock.rows(),
            "operations an image": f"{operations / 1e9:.1f} G, {operations / matrix_rate * 1e6:.1f}"
            f" us, {operations * each / matrix_rate:.0%} of the matrix rate",
            "bytes of the layers an image": f"{layer_bytes / 1e6:.0f} MB,"
            f" {layer_bytes / bandwidth * 1e6:.1f} us, {layer_bytes * each / bandwidth:.0%} of the"
            " bandwidth",
            "loss": ", ".join(f"{row['loss']:.3f}" for row in trained.curve),  # of the main process
        },
    )
    kernels(clock.profiler, chosen.kernels)


def finetuning(chosen: argparse.Namespace, knots: int = 7, size: int = 64) -> None:
    """Steps of a student, which has the loss of every method at K = 6 but for its inputs."""
    gpu = torch.device("cuda")
    states = np.random.default_rng(0).standard_normal((2000, knots, *SHAPE), dtype=np.float32)
    rows, grid = DeviceRows.of(states, gpu), range(knots)
    times = tuple(uniform(knots - 1).tolist())
    steps = Schedule(timesteps=times, indices=tuple(grid), objective="uniform")
    for of, network in {"all weights": ddpmpp(), "an adapter": ddpmpp()}.items():
        if of == "an adapter":
            add_adapter(network, rank=4, seed=0)
        segments = Segments.of(rows, grid, steps)
        loss = segments.training_loss(seed=0, trajectories=len(states), batch_size=size)
        _, clock = run(network, loss, chosen, size)
        rate = size * clock.steps / clock.usage.seconds
        show(
            f"finetuning {of}, batch {size}",
            {
                "images a second": f"{rate:,.0f}",
                "first step, compilation included": f"{clock.first:.1f} s",
                **clock.rows(),
            },
        )
        kernels(clock.profiler, None)


def run(
    network: nn.Module, loss: Loss, chosen: argparse.Namespace, size: int | None = None
) -> tuple[Trained[nn.Module], "Clock"]:
    """As many steps as are timed, and a few before and after."""
    clock = Clock(chosen.steps)
    settings = TrainingSettings(
        iterations=clock.total, batch_size=size or chosen.batch, learning_rate=2e-4, warmup=5,
        learning_rate_schedule="constant", gradient_clip=1.0, ema_decay=0.9999,
    )  # fmt: skip
    trained = train(
        network, loss, settings, precision="bfloat16", compile=True, log_every=clock.total,
        on_step=clock.advance,
    )  # fmt: skip
    return trained, clock


class Clock:
    """Times the steps of a training, and profiles some more.

    first: seconds until the first was done. usage: of the timed steps, with everything compiled.
    """

    WARM, PROFILED = 10, 3

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.total = self.WARM + steps + self.PROFILED
        activities = [torch.profiler.ProfilerActivity.CUDA]
        self.profiler = torch.profiler.profile(activities=activities)
        self.measuring = measured(torch.device("cuda"))
        self.done = 0
        self.start = time.perf_counter()
        self.first = 0.0
        self.usage = Usage()

    def advance(self, steps: int) -> None:
        """As ``on_step`` of the loop; waits for the device only where a time is taken."""
        self.done += steps
        if self.done == 1:
            torch.cuda.synchronize()
            self.first = time.perf_counter() - self.start
        elif self.done == self.WARM:
            self.usage = self.measuring.__enter__()
        elif self.done == self.WARM + self.steps:
            self.measuring.__exit__(None, None, None)
            self.profiler.start()
        elif self.done == self.total:
            torch.cuda.synchronize()
            self.profiler.stop()

    def rows(self) -> dict[str, str]:
        """For the table."""
        usage = self.usage
        rows = {
            "step": f"{1e3 * usage.seconds / self.steps:.2f} ms",
            # Graphs keep theirs from the others, so what is held counts, not what is allocated.
            "memory": f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB",
        }
        if usage.energy_kwh is not None:
            rows["energy"] = f"{1e6 * usage.energy_kwh / self.steps:.1f} Wh for 1,000 steps"
        return rows


def floors(network: NCSNpp) -> tuple[int, int]:
    """Operations and bytes of one image's forward and backward pass."""
    found = []
    for batch in (1, 2):  # the weights, which a large batch shares, are in both
        x, t = torch.randn(batch, *SHAPE, device="cuda"), torch.rand(batch, device="cuda")
        with FlopCounterMode(display=False) as counter, LayerNumbers() as numbers:
            network(x, t).sum().backward()
        found.append((counter.get_total_flops(), 2 * numbers.total))
    network.zero_grad(set_to_none=True)
    return found[1][0] - found[0][0], found[1][1] - found[0][1]


class LayerNumbers(TorchDispatchMode):
    """Counts the numbers that layers read and write, each input and each output once."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if re.search(r"convolution|group_norm|attention|mm\b", str(func)):
            outputs = result if isinstance(result, tuple) else (result,)
            self.total += sum(x.numel() for x in (*args, *outputs) if isinstance(x, Tensor))
        return result


def search(network: NCSNpp) -> None:
    """100 samples, grid 100: `estimate_cost_matrix` and all budgets, against the rollout."""
    velocity, grid = inference(network), uniform(100)
    noise = torch.randn(100, *SHAPE, device="cuda")

    def full() -> None:
        matrix = estimate_cost_matrix(velocity, noise, grid, batch_size=len(noise))
        optimal_paths(matrix.cost, range(1, 21))

    def matrix() -> None:
        total = CostSum(grid, "cuda")
        total.add(velocities)
        total.result()

    velocities = torch.randn(len(grid) - 1, len(noise), noise[0].numel(), device="cuda")
    bare, whole, cost = alternate([lambda: euler(velocity, noise, grid), full, matrix], 10)
    show(
        "search, 100 samples, grid 100",
        {
            "bare rollout": f"{1e3 * bare:.1f} ms",
            "search": f"{1e3 * whole:.1f} ms, {whole / bare - 1:.1%} more",
            "cost matrix alone": f"{1e3 * cost:.1f} ms",
        },
    )


def sampling(network: NCSNpp, samples: int, budget: int = 6, batch: int = 1000) -> None:
    """`sample_images` by Euler, against the forward passes alone."""
    velocity, times = inference(network), uniform(budget)
    x, t = torch.randn(batch, *SHAPE, device="cuda"), torch.rand(batch, device="cuda")
    batches = -(-samples // batch)

    def forward() -> None:
        for _ in range(batches * budget):
            velocity(x, t)

    def sample() -> None:
        sample_images(
            velocity,
            times,
            samples=batches * batch,
            shape=SHAPE,
            seed=0,
            batch_size=batch,
            device=torch.device("cuda"),
        )

    bare, whole = alternate([torch.no_grad()(forward), sample], 2)
    show(
        f"sampling {batches * batch:,} images, K = {budget}, batch {batch}",
        {
            "forward passes": f"{bare:.2f} s, {1e6 * bare / batches / batch / budget:.1f} us each",
            "sampling": f"{whole:.2f} s, {whole / bare - 1:.1%} more",
            "images a second": f"{batches * batch / whole:,.0f}",
        },
    )


def inference(network: NCSNpp) -> Callable[[Tensor, Tensor], Tensor]:
    """The compiled velocity in bf16 autocast, for float32 states."""
    compiled = torch.compile(network, dynamic=False, fullgraph=True, mode="reduce-overhead")

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return compiled(x, t).to(x.dtype)

    return velocity


def kernels(profiler: torch.profiler.profile, file: Path | None) -> None:
    """Time on the device of a step by class of kernel. What a step takes beyond the sum is time
    that the device waits for the host."""
    steps = Clock.PROFILED
    found = sorted(
        (
            (event.self_device_time_total / steps / 1e3, event.count / steps, event.key)
            for event in profiler.key_averages()
            if event.self_device_time_total > 0  # the others are calls on the host
        ),
        reverse=True,
    )
    total = sum(time for time, _, _ in found)
    classes: dict[str, tuple[float, float]] = {}
    for duration, count, name in found:
        match = (k for k, pattern in KERNELS.items() if re.search(pattern, name, re.IGNORECASE))
        kind = next(match, "other")
        before = classes.get(kind, (0.0, 0.0))
        classes[kind] = before[0] + duration, before[1] + count
    rows = {
        kind: f"{duration:.2f} ms, {duration / total:.0%}, {count:.0f} kernels"
        for kind, (duration, count) in sorted(classes.items(), key=lambda item: -item[1][0])
    }
    show(f"where a training step's {total:.1f} ms on the device go", rows)
    if file is not None:
        file.write_text("".join(json.dumps(kernel) + "\n" for kernel in found))


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Seconds a call, over several calls that follow one another, after one to warm up."""
    function()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def alternate(functions: list[Callable[[], Any]], repeats: int) -> list[float]:
    """The median seconds of each; they take turns, so that a slow spell hits all."""
    found = [[seconds(function, 1) for function in functions] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*found, strict=True)]


def show(title: str, rows: dict[str, str]) -> None:
    """A table of two columns, of the main process."""
    if own_share().rank > 0:
        return
    table = Table(title=title, show_header=False, title_justify="left")
    for row in rows.items():
        table.add_row(*row)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
