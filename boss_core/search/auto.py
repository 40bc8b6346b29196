"""``auto``: the objective whose steps give the samples nearest to the teacher's, on noise that no
steps were searched on."""

from collections.abc import Iterator, Sequence

from boss_core.bellman.names import OBJECTIVES
from boss_core.costs.matrix import CostMatrix
from boss_core.ode.schedule import HeldOut
from boss_core.search.choose import BASELINE, Choice, Reference, search_steps
from boss_core.search.sampled import NetworkSearch
from boss_core.search.settings import SearchSettings
from boss_core.search.steps import FoundSteps, cheapest, uniform_indices

# One of so many noises is enough for the forward recursion when it is one candidate of several: it
# takes K n evaluations for each, as many as all of the refinement.
OSS_SHARE = 4


def auto_steps(
    search: NetworkSearch, near: Reference, held_out: Reference
) -> Iterator[tuple[int, FoundSteps]]:
    """For each budget the steps of the objective whose samples are nearest to the teacher's, if
    beyond chance; else the paper's. A line for each says what came out.

    near: the teacher's samples from the noise to search on; held_out: from other noise, to compare
    on.
    """
    found = candidates(search.matrix, search.budgets, search.settings)
    share = len(near.noise) // OSS_SHARE
    labels = None if near.labels is None else near.labels[:share]
    forward = search.oss(near.noise[:share], labels)
    for budget in search.budgets:
        with search.progress(f"schedule: refine, K = {budget}", None, "evaluations") as advance:
            choice = search_steps(
                search.velocity,
                search.matrix.timesteps,
                found[budget] | {"oss": forward[budget].indices},
                near,
                held_out,
                distance=search.distance,
                solver=search.settings.solver,
                batch_size=search.settings.batch_size,
                on_evaluations=advance,
            )
        search.say(f"schedule: K = {budget}, {search.settings.solver}: {verdict(choice)}")
        yield budget, chosen(choice)


def candidates(
    matrix: CostMatrix, budgets: Sequence[int], settings: SearchSettings
) -> dict[int, dict[str, tuple[int, ...]]]:
    """For every budget, the steps of every objective of the costs, and uniform ones."""
    found = {name: cheapest(matrix, budgets, settings, name) for name in OBJECTIVES}
    named = {k: {name: paths[k].indices for name, paths in found.items()} for k in budgets}
    for k, steps in named.items():
        even = uniform_indices(matrix, k)
        if even is not None:
            steps["uniform"] = even
    return named


def chosen(choice: Choice) -> FoundSteps:
    """The steps of a comparison, with what it went by."""
    held_out = HeldOut(
        winner=choice.winner,
        gain=choice.gain,
        standard_error=choice.standard_error,
        rivals=choice.rivals,
    )
    return FoundSteps(choice.objective, choice.indices, held_out)


def verdict(choice: Choice) -> str:
    """How a comparison came out, in a line."""
    if choice.candidates[choice.winner] == choice.candidates[BASELINE]:
        return f"nothing is nearer to the teacher's samples than {BASELINE}, which stays"
    gain = (
        f"{choice.winner} is {choice.gain:.1%} nearer to the teacher's samples than {BASELINE}"
        f" (standard error {choice.standard_error:.1%}, held-out noise)"
    )
    if choice.objective == choice.winner:
        return f"{gain}: more than chance, chosen"
    return f"{gain}: not more than chance, {BASELINE} stays"
