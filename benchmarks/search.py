"""How long the search for steps takes beyond the rollout that it needs anyway.

    python benchmarks/search.py

For each case, in one process and on the same inputs, the median of several runs of

- a bare Euler rollout, which is the floor: one network evaluation for each grid point;
- the search: rollout, cost matrix and all budgets. Of what is beyond the rollout, the floor is
  the Gram matrix: n^2 N D floating-point operations in float64;
- the same with the cost matrix as eq. 5 is written, every error formed in float64, which is as
  accurate: all j of an i at once ("row by row"), as one would write it, and one pair at a time,
  whose temporaries stay in the cache.

And for the default U-Net with 300 noises, budgets 2 to 10, how long steps and weights of solver
multistep take beyond the rollout, as a whole, and by the sum of its parts, each by itself: the
K - 1 evaluations for each budget of some of the noises, the costs of all steps, the exact
recursion, the rest of the fit to states that the rollout kept. The aim is at most 20 %. On a GPU,
where so small a network is a matter of launches, also for the NCSN++ that Rectified Flow has for
CIFAR-10.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

from boss_core.bellman.recursion import optimal_paths
from boss_core.checkpoints.rectified_flow import read_config
from boss_core.costs.fine_states import empty_states, fitting_noises
from boss_core.costs.fit import velocities_at
from boss_core.costs.matrix import CostMatrix, CostSum, estimate_cost_matrix
from boss_core.costs.measure import measure_costs
from boss_core.networks.ncsnpp import NCSNpp
from boss_core.networks.unet import UNet, UNetConfig
from boss_core.ode.noise import COSTS, NoiseSource, sample_noise
from boss_core.ode.solvers import euler
from boss_core.ode.timesteps import Times, uniform
from boss_core.ode.velocity import VelocityField
from boss_core.search.multistep import FineStates, with_weights
from boss_core.search.settings import SearchSettings
from boss_core.search.steps import cheapest, from_costs

BUDGETS = range(1, 21)


def main() -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=100, help="steps of the fine grid")
    parser.add_argument("--repeats", type=int, default=3, help="runs behind a U-Net's median")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--multistep", action="store_true", help="solver multistep alone")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    if not chosen.multistep:
        show_searches(chosen.grid, chosen.repeats, device)
    networks: dict[str, torch.nn.Module] = {"default U-Net": default_unet()}
    if device.type == "cuda":
        networks["NCSN++"] = NCSNpp(read_config("cifar10")[0]).eval().requires_grad_(False)
    for name, network in networks.items():
        line = measure_multistep(network.to(device), chosen.grid, chosen.repeats, device)
        print(f"multistep, {name}, 300 x 3x32x32, K = 2 to 10: {line}")


def show_searches(grid: int, repeats: int, device: torch.device) -> None:
    """Measure and print the table of searches for Euler's steps."""
    shown = Table("", "rollout", "search beyond it", "of rollout", "floor")
    shown.add_column("row by row")
    shown.add_column("pair by pair")
    cases: list[tuple[str, VelocityField, tuple[int, ...], int]] = [
        ("analytic, 100 x 3x32x32", analytic, (100, 3, 32, 32), 20),
        ("analytic, 8 x 3x128x128", analytic, (8, 3, 128, 128), 4),
        ("default U-Net, 100 x 3x32x32", default_unet().to(device), (100, 3, 32, 32), 20),
    ]
    for name, velocity, shape, batch in cases:
        noise = sample_noise(range(shape[0]), shape[1:], seed=0).to(device)
        times = repeats * (5 if velocity is analytic else 1)
        shown.add_row(name, *measure(velocity, noise, uniform(grid), batch, times))
    print(
        f"grid {grid}, budgets 1 to {BUDGETS[-1]}, {torch.get_num_threads()} threads,"
        f" {device}; 'beyond': on top of the rollout"
    )
    Console(width=120).print(shown)


def measure(
    velocity: VelocityField, noise: Tensor, grid: Times, batch: int, repeats: int
) -> list[str]:
    """The cells of one row of the table."""

    def rollout() -> None:
        for part in noise.split(batch):
            euler(velocity, part, grid)

    def search() -> None:
        matrix = estimate_cost_matrix(velocity, noise, grid, batch_size=batch)
        optimal_paths(matrix.cost, BUDGETS)

    functions: list[Callable[[], object]] = [rollout, search]
    if velocity is analytic:  # beside a real network's evaluations the difference drowns
        functions.append(lambda: optimal_paths(directly(velocity, noise, grid, False), BUDGETS))
    bare, *rest = seconds(functions, repeats, noise.device)
    if velocity is analytic:  # too slow to take turns with the others
        rows = lambda: optimal_paths(directly(velocity, noise, grid, True), BUDGETS)  # noqa: E731
        rest += seconds([rows], 1, noise.device)
    beyond, *direct = (found - bare for found in rest)
    operations = (len(grid) - 1) ** 2 * noise.numel()
    floor = operations / float64_rate(noise.device)
    ratios = [f"{found:.2f} s, {found / beyond:.1f}x" for found in reversed(direct)]
    return [f"{bare:.3f} s", f"{beyond:.3f} s", f"{beyond / bare:.1%}", f"{floor:.3f} s", *ratios]


def measure_multistep(
    velocity: VelocityField, grid: int, repeats: int, device: torch.device
) -> str:
    """What solver multistep takes beyond the rollout: as a whole, and its parts by themselves."""
    source, times = NoiseSource((3, 32, 32), 0, device), uniform(grid)
    settings = SearchSettings(solver="multistep", batch_size=100)
    noise, _ = source.draw(range(300), COSTS)
    count = fitting_noises(source.shape, grid, len(noise))
    calls = 1 + sum(budget - 1 for budget in BUDGETS[1:10])
    states = empty_states(noise, count, times)

    def rollout(of: VelocityField) -> None:
        for part in noise.split(100):
            euler(of, part, times)

    def search(of: VelocityField) -> CostMatrix:
        total = CostSum(times, device)
        measure_costs(total, of, source, samples=len(noise), batch_size=100, states=states)
        return total.result()

    def fit(of: VelocityField, matrix: CostMatrix) -> None:
        found = dict(from_costs(matrix, BUDGETS[1:10], settings))
        with_weights(of, matrix, found, settings, source, FineStates(states))

    def evaluations(of: VelocityField) -> None:
        for _ in range(calls):
            velocities_at(of, states[0], 0.5, batch_size=100)

    def both(of: VelocityField) -> list[Callable[[], object]]:
        return [lambda: rollout(of), lambda: fit(of, search(of)), lambda: evaluations(of)]

    bare, whole, evaluated = seconds(both(velocity), repeats, device)
    # The rest is hundredths of a network's time and drowns in what that varies by: with a velocity
    # that costs next to nothing it is seen.
    matrix = search(analytic)
    alone = lambda: cheapest(matrix, BUDGETS[1:10], settings, settings.objective)  # noqa: E731
    free, found, between = seconds(both(analytic), 5 * repeats, device)
    costs, recursion = seconds([lambda: search(analytic), alone], 5 * repeats, device)
    rest = found - costs - recursion - between
    parts = {
        f"{calls} evaluations of {count} noises": evaluated,
        "costs of steps": costs - free,
        "recursion": recursion,
        "rest of the weights": rest,
    }
    shown = ", ".join(f"{name} {part / bare:.1%}" for name, part in parts.items())
    beyond = f"{whole / bare - 1:.1%} of the rollout's {bare:.1f} s beyond it"
    return f"{beyond}, {sum(parts.values()) / bare:.1%} as the sum of its parts: {shown}"


def float64_rate(device: torch.device) -> float:
    """Floating-point operations a second of a large float64 matrix product, measured now."""
    size = 2000
    matrix = torch.randn(size, size, dtype=torch.float64, device=device)
    return 2 * size**3 / seconds([lambda: torch.mm(matrix, matrix)], 3, device)[0]


def seconds(
    functions: Sequence[Callable[[], object]], repeats: int, device: torch.device
) -> list[float]:
    """The median time of each function; they take turns, so that a slow spell hits all."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first is a warm-up
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def directly(velocity: VelocityField, noise: Tensor, grid: Times, rows: bool) -> np.ndarray:
    """The cost matrix from all states and velocities, held in float64: all pairs of a row at once,
    or one pair at a time."""
    velocities: list[Tensor] = []

    def keep(k: int, x: Tensor, v: Tensor | None) -> None:
        if v is not None:
            velocities.append(v)

    euler(velocity, noise, grid, observer=keep)
    v = torch.stack(velocities).flatten(2).double()
    x = torch.empty(len(grid), *v.shape[1:], dtype=v.dtype, device=v.device)
    x[0] = noise.flatten(1)
    for k, h in enumerate(np.diff(grid)):
        torch.add(x[k], v[k], alpha=float(h), out=x[k + 1])
    t = torch.from_numpy(grid).to(noise.device)
    cost = torch.zeros(len(t), len(t), dtype=x.dtype, device=x.device)
    for i in range(len(t) - 1):
        if rows:
            error = x[i + 1 :] - x[i] - (t[i + 1 :] - t[i]).view(-1, 1, 1) * v[i]
            cost[i, i + 1 :] = error.square().sum(dim=2).mean(dim=1)
            continue
        for j in range(i + 1, len(t)):
            error = x[j] - x[i] - (t[j] - t[i]) * v[i]
            cost[i, j] = error.square().sum(dim=1).mean()
    return cost.cpu().numpy()


def analytic(x: Tensor, t: Tensor) -> Tensor:
    """A smooth velocity that costs next to nothing."""
    t = t.view(-1, 1, 1, 1)
    return torch.sin(2 * x) * t + torch.cos(3 * t) - x


def default_unet() -> UNet:
    """The U-Net of params.yaml, for 3x32x32."""
    teacher = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())["teacher"]
    torch.manual_seed(0)
    network = UNet(
        UNetConfig(
            image_size=32,
            channels=3,
            base_channels=teacher["base_channels"],
            channel_multipliers=tuple(teacher["channel_multipliers"]),
            blocks=teacher["blocks"],
            attention_sizes=tuple(teacher["attention_sizes"]),
        )
    )
    return network.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
