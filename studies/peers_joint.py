"""Steps and fitted weights refined together, for `studies/peers.py`: what a search over pairs of
steps leaves to be had."""

from collections.abc import Callable

from boss_core.search.refine import OFFSETS

Indices = tuple[int, ...]


def refine_jointly(start: Indices, off: Callable[[Indices], float], *, sweeps: int = 2) -> Indices:
    """Coordinate descent over the inner knots of steps, grid indices: each is moved by 8, 4, 2 and
    1 to either side, at most ``sweeps`` times over with each of these, and what is least off stays.
    Nothing is tried twice."""
    best, least = start, off(start)
    seen = {start}
    for (offset,) in OFFSETS:
        for _ in range(sweeps):
            before = best
            for k in range(1, len(start) - 1):
                left, knot, right = best[k - 1 : k + 2]
                for node in (knot - offset, knot + offset):
                    moved = (*best[:k], node, *best[k + 1 :])
                    if not left < node < right or moved in seen:
                        continue
                    seen.add(moved)
                    if (found := off(moved)) < least:
                        best, least = moved, found
            if best == before:
                break
    return best
