"""Quotas: how many questions of each type, format and length a corpus gets, and which chunk which.

    targets, is_even    the shares aimed at: even, from a file of weights, or those of a gold set
    targets_for, plan_for
                        those of a run, by what was asked for; its plan
    planned             shares as whole numbers, by largest remainders
    QuotaPlan           deals cells to batches of chunks, so that the whole keeps to the shares
    total_variation, by_pair, plan_table
                        how far what came out is from what was aimed at

What a question asks for and how it is put make a set diverse; who asks does little (DataMorgana's
ablation, arXiv 2501.12789: without question categories self-repetition rises from 0.37 to 0.91,
without user categories to 0.40).
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from question_optimizer import files
from question_optimizer.errors import UserError
from question_optimizer.gold import read_gold
from question_optimizer.records import GoldItem, QueryType
from question_optimizer.words import word_count

log = logging.getLogger(__name__)

# Words, lowest and highest. DataMorgana's phrasing axis calls a natural question concise below 10
# words and verbose from 10 on, a search query long from 7 on; here verbose is parted once more, and
# keywords end at the six that prompts ask for. All lie within the bounds of `gates`.
LENGTHS: dict[str, dict[str, tuple[int, int]]] = {
    "formal question": {"short": (5, 9), "medium": (10, 15), "long": (16, 25)},
    "keywords": {"short": (2, 3), "medium": (4, 4), "long": (5, 6)},
}
LENGTH_NAMES = ("short", "medium", "long")
_EVEN: dict[str, dict[str, float]] = {
    "types": dict.fromkeys(QueryType.members, 1.0),
    "formats": {"formal question": 2.0, "keywords": 1.0},
    "lengths": dict.fromkeys(LENGTH_NAMES, 1.0),
}
Pair = tuple[str, str]  # type, format
Key = TypeVar("Key")


class Cell(NamedTuple):
    """What kind of question a slot is to get."""

    query_type: str
    query_format: str
    query_length: str

    @property
    def pair(self) -> Pair:
        return self.query_type, self.query_format


def length_of(question: str, query_format: str) -> str:
    """short, medium or long, by words; what lies outside every range belongs to the nearest."""
    words = word_count(question)
    ranges = LENGTHS[query_format]
    return next((name for name in LENGTH_NAMES if words <= ranges[name][1]), LENGTH_NAMES[-1])


# ---------------------------------------------------------------------- shares aimed at


def targets(spec: str | Path, gold: Sequence[GoldItem] = ()) -> dict[Cell, float]:
    """Shares of cells, which add up to 1; those of share 0 are left out.

    `spec` is "even" (types and lengths alike, two questions for each set of keywords), "gold" (the
    mix of `gold`: type and format together, lengths within the format), or a JSON file of weights
    {"types": {…}, "formats": {…}, "lengths": {…}}. There a missing part is as in "even", and a name
    that a part leaves out gets nothing. UserError where the file or the gold set cannot serve.
    """
    if spec == "gold":
        return _as_gold(gold)
    parts = _EVEN if spec == "even" else _read_weights(Path(spec))
    weights = {
        Cell(query_type, query_format, length): of_type * of_format * of_length
        for query_type, of_type in _shares(parts["types"]).items()
        for query_format, of_format in _shares(parts["formats"]).items()
        for length, of_length in _shares(parts["lengths"]).items()
    }
    return _shares(weights)


def is_even(aimed_at: Mapping[Cell, float]) -> bool:
    """Whether these shares are those of "even"."""
    return aimed_at == targets("even")


def _as_gold(gold: Sequence[GoldItem]) -> dict[Cell, float]:
    """A hundred items say little about 36 cells; 12 pairs and 6 lengths they can tell."""
    pairs: Counter[Pair] = Counter()
    lengths: dict[str, Counter[str]] = {name: Counter() for name in LENGTHS}
    for item in gold:
        if item.query_type and item.query_format:
            pairs[str(item.query_type), str(item.query_format)] += 1
            length = length_of(item.gold_question, item.query_format)
            lengths[str(item.query_format)][length] += 1
    if not pairs:
        raise UserError(
            f"none of {len(gold)} gold items tells its query_type and query_format, so that there "
            "is no mix to follow; take even quotas or a file of weights"
        )
    return _shares(
        {
            Cell(*pair, length): count * share
            for pair, count in sorted(pairs.items())
            for length, share in _shares(lengths[pair[1]]).items()
        }
    )


def _read_weights(path: Path) -> dict[str, dict[str, float]]:
    read = files.read_json(path, made_by=None)
    if not isinstance(read, dict):
        raise UserError(f"{path}: must be an object with {', '.join(_EVEN)}; correct the file")
    _refuse_unknown(f"{path}", read, _EVEN)
    parts = dict(_EVEN)
    for part, weights in read.items():
        if not isinstance(weights, dict):
            raise UserError(f"{path}: {part} must be an object of weights; correct the file")
        _refuse_unknown(f"{path}: {part}", weights, _EVEN[part])
        for name, weight in weights.items():
            if not _is_weight(weight):
                raise UserError(
                    f"{path}: {part}: weight of {name!r} must be a number, not negative; "
                    "correct the file"
                )
        if not any(weights.values()):
            raise UserError(f"{path}: {part} has no weight above 0; correct the file")
        parts[part] = {name: float(weight) for name, weight in weights.items()}
    return parts


def _refuse_unknown(where: str, names: Collection[str], allowed: Collection[str]) -> None:
    for name in names:
        if name not in allowed:
            raise UserError(f"{where}: {name[:80]!r} is none of: {', '.join(allowed)}")


def _is_weight(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e100  # NaN fails both


def _shares(weights: Mapping[Key, float]) -> dict[Key, float]:
    """Weights made to add up to 1, without those that are 0."""
    total = math.fsum(weights.values())
    return {key: weight / total for key, weight in weights.items() if weight > 0}


def most_per_chunk(targets: Mapping[Cell, float]) -> int:
    """How many questions a chunk may get: each has a type and format of its own."""
    return len(by_pair(_shares(targets)))


def exact_per_chunk(targets: Mapping[Cell, float]) -> int:
    """How many it may get so that the shares can be met.

    With more, the likeliest pair would have to be asked twice of a chunk; it is asked once, and the
    others get more than their share.
    """
    return int(1 / max(by_pair(_shares(targets)).values()) + 1e-9)


# ---------------------------------------------------------------------- whole numbers


def planned(targets: Mapping[Cell, float], total: int) -> dict[Cell, int]:
    """`total` slots by the shares: Hamilton's largest remainders, over pairs of type and format,
    then over the lengths of each.

    In two steps, because over single cells the remainders of ten slots all fall to the commonest
    format.
    """
    counts: dict[Cell, int] = {}
    tree = _tree(targets)
    for (share_of, _), slots in zip(
        tree, _largest_remainder([share for _, share in tree], total), strict=True
    ):
        shares = _shares(share_of)
        counts |= zip(shares, _largest_remainder([*shares.values()], slots), strict=True)
    return counts


def _tree(targets: Mapping[Cell, float]) -> list[tuple[dict[Cell, float], float]]:
    """For each pair its cells with their shares, and the pair's share of all.

    In a scattered order, so that no type comes first wherever remainders are equal.
    """
    cells: dict[Pair, dict[Cell, float]] = {}
    for cell, share in _shares(targets).items():
        cells.setdefault((cell[0], cell[1]), {})[Cell(*cell)] = share
    return [
        (dict(sorted(cells[pair].items(), key=_scattered)), sum(cells[pair].values()))
        for pair in sorted(cells, key=_scattered)
    ]


def _scattered(key: object) -> bytes:
    return hashlib.sha256(repr(key).encode("utf-8", "replace")).digest()


def _largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to `total`: each share's rounded down, and one more for the largest
    remainders, the first of equal ones first."""
    counts = [int(share * total + 1e-9) for share in shares]
    remainders = [
        round(share * total - count, 6) for share, count in zip(shares, counts, strict=True)
    ]
    best = sorted(range(len(shares)), key=lambda place: -remainders[place])
    for place in best[: total - sum(counts)]:
        counts[place] += 1
    return counts


# ---------------------------------------------------------------------- dealing


class QuotaPlan:
    """Deals cells to the slots of chunks; what was dealt keeps to the targets after every batch.

    Of each pair of type and format as many are dealt as the largest remainders of all slots so far
    ask for, give or take one; of each cell give or take two. What `give_back` takes back is dealt
    again. Who gets what within a batch is chance, by `seed` and by what was dealt before, and by
    nothing else: a run that goes on with `taken` from its ledger deals as one that never stopped.
    Keeps nothing but counts. For one thread at a time.
    """

    def __init__(
        self,
        targets: Mapping[Cell, float],
        *,
        seed: int,
        taken: Mapping[Cell, int] | Mapping[tuple[str, str, str], int] | None = None,
    ):
        tree = _tree(targets)
        self.targets = {cell: share for cells, _ in tree for cell, share in cells.items()}
        self.taken: Counter[Cell] = Counter({Cell(*cell): n for cell, n in (taken or {}).items()})
        self._seed = seed
        self._shares = [share for _, share in tree]
        self._cells = [list(_shares(cells).items()) for cells, _ in tree]
        self._pairs = [next(iter(cells)).pair for cells, _ in tree]
        self._places = {pair: place for place, pair in enumerate(self._pairs)}
        self._total = sum(self.taken.values())
        self._dealt = [sum(self.taken[cell] for cell in cells) for cells, _ in tree]  # by pair

    def assign(
        self, wanted: Sequence[int], avoid: Sequence[Collection[Pair]] = ()
    ) -> list[list[Cell]]:
        """Deal `wanted[i]` cells to chunk i, no two of one pair, and none of a pair in `avoid[i]`.

        These come first, so that a batch may miss its shares by what they leave no choice in; the
        next one makes up for it. ValueError where a chunk wants more than the pairs left to it.
        """
        chance = self._chance(len(wanted))
        due = self._due(sum(wanted))
        order = list(range(len(wanted)))
        chance.shuffle(order)
        if avoid or len({*wanted}) > 1:  # who has the least choice comes first
            order.sort(key=lambda i: (len(avoid[i]) if avoid else 0) + wanted[i], reverse=True)
        dealt: list[list[Cell]] = [[] for _ in wanted]
        every = list(range(len(self._pairs)))
        for i in order:
            open_to = every
            if avoid and avoid[i]:
                open_to = [place for place in every if self._pairs[place] not in avoid[i]]
            if wanted[i] > len(open_to):
                raise ValueError(f"{wanted[i]} questions wanted, {len(open_to)} pairs left")
            places = self._draw(wanted[i], open_to, due, chance)
            chance.shuffle(places)  # the first slot is as good a sample as any
            dealt[i] = [self._deal(place, due) for place in places]
        return dealt

    def give_back(self, cell: Cell) -> None:
        """The slot got no question: its cell is to be dealt again. ValueError if it never was."""
        if self.taken[cell] < 1:
            raise ValueError(f"{cell} was not dealt")
        self.taken[cell] -= 1
        self._total -= 1
        if (place := self._places.get((cell[0], cell[1]))) is not None:
            self._dealt[place] -= 1

    def _chance(self, chunks: int) -> random.Random:
        counts = [self.taken[cell] for cell in self.targets]
        return random.Random(repr((self._seed, chunks, counts)))

    def _due(self, slots: int) -> list[int]:
        """By pair, how many of the next `slots` it is to get: what is planned less what is dealt.

        Where more is missing than there are slots (something was given back, or dealt by other
        shares), all get their part of what they miss.
        """
        goal = _largest_remainder(self._shares, self._total + slots)
        due = [max(0, aim - has) for aim, has in zip(goal, self._dealt, strict=True)]
        missing = sum(due)
        if missing <= slots:
            return due
        return _largest_remainder([part / missing for part in due], slots)

    def _draw(self, n: int, open_to: list[int], due: list[int], chance: random.Random) -> list[int]:
        """n places of pairs, each with a probability in proportion to what it is due.

        Systematic sampling in a random order (Madow 1949) draws none twice. With as many to every
        chunk no pair is ever due more often than there are chunks left, so that all come out even.
        """
        sure: list[int] = []
        rest = [place for place in open_to if due[place]]
        total = sum([due[place] for place in rest])
        while n and (certain := [place for place in rest if due[place] * n >= total]):
            sure += certain
            n -= len(certain)
            rest = [place for place in rest if due[place] * n < total and place not in certain]
            total = sum([due[place] for place in rest])
        if not n:
            return sure
        if not rest:  # nobody is due: those furthest behind their share, or least before it
            others = sorted(
                set(open_to) - set(sure), key=lambda p: self._dealt[p] / self._shares[p]
            )
            return sure + others[:n]
        chance.shuffle(rest)
        at, sum_so_far = int(chance.random() * total), 0  # in n-ths, so that all is whole
        for place in rest:
            sum_so_far += due[place] * n
            if at < sum_so_far:
                sure.append(place)
                at += total
        return sure

    def _deal(self, place: int, due: list[int]) -> Cell:
        """The pair's cell that is furthest behind its share."""
        if due[place]:
            due[place] -= 1
        self._dealt[place] += 1
        self._total += 1
        now, taken = self._dealt[place], self.taken
        cell = max(self._cells[place], key=lambda entry: entry[1] * now - taken[entry[0]])[0]
        taken[cell] += 1
        return cell


# ---------------------------------------------------------------------- of a run


def targets_for(spec: str | Path | None, per_chunk: int, *, gold: Path) -> dict[Cell, float] | None:
    """The shares that a run aims at. Where no `spec` is given, even ones if a chunk gets several
    questions, and else None: the pipeline chooses. "gold" reads the gold set there."""
    if spec is None and per_chunk == 1:
        return None
    if spec == "gold":
        return targets("gold", read_gold(gold).items)
    spec = spec or "even"
    if spec != "even" and not Path(spec).is_file():
        raise UserError(f"quotas {str(spec)!r}: neither even nor gold nor a file that exists")
    return targets(spec)


def plan_for(
    targets: Mapping[Cell, float],
    per_chunk: int,
    *,
    seed: int,
    taken: Mapping[tuple[str, str, str], int],
) -> QuotaPlan:
    """The plan of a run after what was `taken` before; UserError where no chunk can get so many
    different questions, a warning where the shares cannot be met."""
    if per_chunk > (most := most_per_chunk(targets)):
        raise UserError(
            f"per_chunk {per_chunk}: the quotas allow {most} different questions a chunk "
            "(type and format); ask for fewer or give more of them a share"
        )
    if per_chunk > (exact := exact_per_chunk(targets)):
        log.warning(
            "%d questions a chunk: the shares cannot be met with more than %d, as no two of a "
            "chunk have the same type and format",
            per_chunk,
            exact,
        )
    return QuotaPlan(targets, seed=seed, taken=taken)


# ---------------------------------------------------------------------- achieved against target


class PlanRow(NamedTuple):
    """One line of achieved against target."""

    cell: Cell
    share: float  # aimed at
    planned: int
    achieved: int


def by_pair(amounts: Mapping[Cell, float]) -> dict[Pair, float]:
    """Shares or counts of cells, added up over lengths."""
    found: dict[Pair, float] = {}
    for cell, amount in amounts.items():
        found[cell[0], cell[1]] = found.get((cell[0], cell[1]), 0.0) + amount
    return found


def total_variation(achieved: Mapping[Key, float], target: Mapping[Key, float]) -> float:
    """½ Σ |p − q| of two mixes, each made to add up to 1; 0 is the same, 1 nothing in common.

    Of cells, or of any projection of them such as `by_pair`. An empty mix is 1 away from another.
    """
    if not any(achieved.values()) or not any(target.values()):
        return 1.0
    p, q = _shares(achieved), _shares(target)
    return math.fsum(abs(p.get(key, 0.0) - q.get(key, 0.0)) for key in {**p, **q}) / 2


def plan_table(
    target: Mapping[Cell, float], achieved: Mapping[Cell, int], total: int | None = None
) -> list[PlanRow]:
    """A row for each cell that was aimed at or achieved, sorted by name.

    Planned are `total` slots, or as many as were achieved.
    """
    counts = planned(target, sum(achieved.values()) if total is None else total)
    return [
        PlanRow(Cell(*cell), target.get(cell, 0.0), counts.get(cell, 0), achieved.get(cell, 0))
        for cell in sorted({*target, *achieved}, key=str)
    ]
