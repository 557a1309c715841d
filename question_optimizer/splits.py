"""Train, dev and locked test set: whole documents, near 30/30/40, and never moved once assigned.

Neighbouring chunks share text, so a random split of chunks leaks the test set into the training
set; splitting by document is what keeps the verdict honest.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import product

from question_optimizer.records import Chunk, Split

SHARES: dict[Split, float] = {"train": 0.3, "dev": 0.3, "test": 0.4}
_ENUMERATED = 7  # groups whose 3^7 placements are all tried
MIN_GROUPS = 3  # fewer documents than this cannot fill three sides


def assign(
    sizes: Mapping[str, int], *, seed: int, kept: Mapping[str, Split] | None = None
) -> dict[str, Split]:
    """A side for each group (document or section), with item shares as near to SHARES as found.

    `sizes` counts items per group. Groups in `kept` stay where they are; the others are placed
    largest first on the side that lacks most, then improved by single moves and swaps until no one
    of them lowers the squared distance to the targets; up to 7 are placed as well as can be. Ties
    are broken by `seed`.
    """
    kept = dict(kept or {})
    sides: dict[str, Split] = {group: side for group, side in kept.items() if group in sizes}
    total = sum(sizes.values())
    lack = {side: share * total for side, share in SHARES.items()}
    for group, side in sides.items():
        lack[side] -= sizes[group]
    free = sorted(group for group in sizes if group not in sides)
    random.Random(seed).shuffle(free)
    free.sort(key=lambda group: -sizes[group])
    for group in free:
        side = max(lack, key=lambda side: lack[side])
        sides[group] = side
        lack[side] -= sizes[group]
    if len(free) <= _ENUMERATED:
        _place_best(sides, free, sizes, lack)
    else:
        _improve(sides, free[:200], sizes, lack)
    _fill_empty_sides(sides, free, sizes)
    return kept | sides


def _place_best(
    sides: dict[str, Split], free: list[str], sizes: Mapping[str, int], lack: dict[Split, float]
) -> None:
    """The best of all placements, for a few groups: most sides filled, then least sum(lack²)."""
    for group in free:
        lack[sides[group]] += sizes[group]
    held = {side for group, side in sides.items() if group not in free}

    def rank(chosen: tuple[Split, ...]) -> tuple[int, float]:
        after = dict(lack)
        for group, side in zip(free, chosen, strict=True):
            after[side] -= sizes[group]
        return -len(held | {*chosen}), round(sum(v * v for v in after.values()), 6)

    best = min(product(SHARES, repeat=len(free)), key=rank)
    sides.update(zip(free, best, strict=True))


def _improve(
    sides: dict[str, Split], free: list[str], sizes: Mapping[str, int], lack: dict[Split, float]
) -> None:
    """Hill-climb on sum(lack²). `lack` is what each side still needs, in items."""

    def gain(moves: list[tuple[str, Split]]) -> float:
        after = dict(lack)
        for group, side in moves:
            after[sides[group]] += sizes[group]
            after[side] -= sizes[group]
        return sum(v * v for v in lack.values()) - sum(v * v for v in after.values())

    def apply(moves: list[tuple[str, Split]]) -> None:
        for group, side in moves:
            lack[sides[group]] += sizes[group]
            lack[side] -= sizes[group]
        for group, side in moves:
            sides[group] = side

    for _ in range(1000):  # each round strictly improves; the bound only guards the arithmetic
        candidates = [[(group, side)] for group in free for side in SHARES if side != sides[group]]
        candidates += [
            [(a, sides[b]), (b, sides[a])]
            for i, a in enumerate(free)
            for b in free[i + 1 :]
            if sides[a] != sides[b] and sizes[a] != sizes[b]
        ]
        best = max(candidates, key=gain, default=None)
        if best is None or gain(best) <= 1e-9:
            return
        apply(best)


def _fill_empty_sides(sides: dict[str, Split], free: list[str], sizes: Mapping[str, int]) -> None:
    """An empty side makes a phase impossible: give it the smallest free group to be spared."""
    for side in SHARES:
        if side in sides.values():
            continue
        count = Counter(sides.values())
        spare = [group for group in free if count[sides[group]] > 1]
        if spare:
            sides[min(spare, key=lambda group: (sizes[group], group))] = side


def grouped_by(unit: str, chunks: Iterable[Chunk]) -> dict[str, str]:
    """{chunk id: group} where whole units of "document", "section" or "chunk" are kept together."""
    group: Callable[[Chunk], str] = {
        "document": lambda chunk: chunk.document,
        "section": lambda chunk: " › ".join([chunk.document, *chunk.headings]),
        "chunk": lambda chunk: str(chunk.chunk_id),
    }[unit]
    return {str(chunk.chunk_id): group(chunk) for chunk in chunks}


def groups_of(chunks: Iterable[Chunk]) -> tuple[dict[str, str], str]:
    """({chunk id: group}, unit): group by document, or by section or chunk where too few exist.

    unit is "document", "section" or "chunk"; a corpus of one or two documents is split by section,
    and one without headings by chunk.
    """
    chunks = list(chunks)
    for unit in ("document", "section"):
        groups = grouped_by(unit, chunks)
        if len(set(groups.values())) >= MIN_GROUPS:
            return groups, unit
    return grouped_by("chunk", chunks), "chunk"
