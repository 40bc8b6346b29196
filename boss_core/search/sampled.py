"""Searches that evaluate the network again, on noise that is handed to them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from boss_core.bellman.recursion import Path, optimal_paths
from boss_core.costs.matrix import CostMatrix
from boss_core.errors import InputError
from boss_core.ode.solver_table import SOLVERS
from boss_core.ode.velocity import Velocity
from boss_core.search.choose import Reference, roll_out
from boss_core.search.distances import Distance
from boss_core.search.forward import oss_paths
from boss_core.search.refine import refine
from boss_core.search.settings import Progress, SearchSettings
from boss_core.search.steps import FoundSteps, cheapest, uniform_indices

# One of so many noises for the perceptual costs: n (n - 1) / 2 evaluations for each, of a network
# that is mostly larger than the teacher.
LPIPS_SHARE = 8


@dataclass(frozen=True)
class NetworkSearch:
    """The network and what is asked of it; the fields are the arguments of
    `boss_core.search.find.find_steps`."""

    velocity: Velocity
    matrix: CostMatrix
    budgets: Sequence[int]
    settings: SearchSettings
    distance: Callable[[Tensor], Distance]
    progress: Progress
    say: Callable[[str], None]

    def ends(self, noise: Tensor, labels: Tensor | None) -> Reference:
        """Where the teacher goes on the fine grid."""
        steps = len(self.matrix.timesteps) - 1
        self.say(f"schedule: {len(noise)} trajectories of {steps} steps to compare with")
        return roll_out(
            self.velocity,
            noise,
            self.matrix.timesteps,
            batch_size=self.settings.batch_size,
            labels=labels,
        )

    def refined(self, search: Reference) -> Iterator[tuple[int, FoundSteps]]:
        """The steps nearest to the teacher's samples, from the cheapest and from uniform ones."""
        distance = self.distance(search.ends)
        best = cheapest(self.matrix, self.budgets, self.settings, "l2_squared")
        for budget in self.budgets:
            starts = [best[budget].indices, uniform_indices(self.matrix, budget)]
            with self.progress(f"schedule: refine, K = {budget}", None, "evaluations") as advance:
                refined = refine(
                    self.velocity,
                    search.noise,
                    self.matrix.timesteps,
                    [start for start in starts if start is not None],
                    distance,
                    solver=self.settings.solver,
                    batch_size=self.settings.batch_size,
                    labels=search.labels,
                    on_evaluations=advance,
                )
            yield budget, FoundSteps("refine", refined.indices)

    def oss(self, noise: Tensor, labels: Tensor | None) -> dict[int, Path]:
        """The forward recursion for all budgets."""
        held = (3 + SOLVERS[self.settings.solver].looks_back) * len(self.matrix.timesteps)
        memory = held * noise.numel() * noise.element_size()
        self.say(
            f"schedule: oss on {len(noise)} noises, holding {memory / 2**20:,.0f} MiB of states"
        )
        with self.progress("schedule: oss", None, "evaluations") as advance:
            return oss_paths(
                self.velocity,
                noise,
                self.matrix.timesteps,
                self.budgets,
                solver=self.settings.solver,
                labels=labels,
                batch_size=self.settings.batch_size,
                on_step=advance,
            )

    def lpips(self, noise: Tensor, labels: Tensor | None) -> dict[int, Path]:
        """The perceptually cheapest steps, on a share of the noises."""
        # torch-fidelity takes a second to import.
        from boss_core.search.lpips import estimate_lpips_costs, load_lpips, lpips_distances

        if self.settings.lpips is None:
            raise InputError("lpips: None; the folder of its two weights files needed")
        share, steps = len(noise) // LPIPS_SHARE, len(self.matrix.timesteps) - 1
        distance = load_lpips(self.settings.lpips, noise.device)
        count = lpips_distances(steps, share)
        self.say(f"schedule: lpips on {share} noises: {count:,} perceptual distances")
        with self.progress("schedule: lpips", count, "distances") as advance:
            cost = estimate_lpips_costs(
                self.velocity,
                noise[:share],
                self.matrix.timesteps,
                distance,
                batch_size=self.settings.batch_size,
                labels=None if labels is None else labels[:share],
                on_distances=advance,
            )
        return optimal_paths(cost, self.budgets)
