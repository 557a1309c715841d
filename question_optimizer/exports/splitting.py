"""Train, dev and test of an export: whole documents, and nothing near the same on two sides.

Documents that share a text or a question, or nearly so, go to one side together. Where that cannot
be (a text that many documents share, a document that an earlier export or the gold set has put
elsewhere) the questions about it stay on one side, and the others are left out. Documents that the
gold set holds out are never trained on. A document once assigned never moves.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from question_optimizer import files, splits
from question_optimizer.errors import UserError
from question_optimizer.exports.likeness import Groups, groups_of
from question_optimizer.exports.workspace import SIDES, Column, Workspace
from question_optimizer.records import Split

if TYPE_CHECKING:
    from question_optimizer.records import GoldItem

SPLITS = "splits.json"
DEFAULT_SHARES: dict[Split, float] = {"train": 0.8, "dev": 0.1, "test": 0.1}
UNITS = ("document", "section", "chunk")
_HELD: frozenset[Split] = frozenset(("dev", "test"))  # where what the gold set holds out may go
_TAUGHT: frozenset[Split] = frozenset(("train", "dev"))  # what the gold set trains on
_TIED = 5  # units; a text that more of them share (a licence, "Example:") ties none of them
_LARGEST = 0.5  # of all questions; units tied together have no more
_STARTS = 20  # random assignments that are improved; the one nearest to the shares is taken
_ROUNDS = 10  # of moving each unit once


@dataclass
class Kept:
    """The assignment that stays from one export to the next: what is split, and its sides."""

    unit: str = ""  # one of UNITS; "" before the first export
    sides: dict[str, Split] = field(default_factory=dict)


@dataclass
class Division:
    """What a split came to. `alike` groups the chunks' texts; `held` are the units that the gold
    set holds out; `left_out` counts questions by reason."""

    kept: Kept
    alike: Groups
    held: set[str]
    left_out: Counter[str]


class _Shared(NamedTuple):
    """Questions that are alike, or whose texts are; whether held-out gold is among them."""

    questions: list[int]
    units: list[str]
    held: bool


def read_kept(path: Path) -> Kept:
    """The assignment at `path`, an empty one if there is none; UserError if it is damaged."""
    if not path.exists():
        return Kept()
    found = files.read_json(path, made_by=None)
    sides = found.get("sides") if isinstance(found, dict) else None
    if not isinstance(sides, dict) or not {*map(str, sides.values())} <= {*SIDES}:
        raise UserError(f"{path}: sides must be {', '.join(SIDES)}; restore it, or delete it")
    if found.get("unit") not in UNITS:
        raise UserError(f"{path}: unit must be {', '.join(UNITS)}; restore it, or delete it")
    return Kept(found["unit"], sides)


def kept_as_json(kept: Kept) -> dict[str, Any]:
    """What `read_kept` reads."""
    return {"schema_version": files.SCHEMA_VERSION, "unit": kept.unit, "sides": kept.sides}


def divide(
    work: Workspace,
    gold: Sequence[GoldItem],
    *,
    shares: Mapping[Split, float],
    seed: int,
    kept: Kept,
) -> Division:
    """Give every question of `work` a side, or a reason why it is left out.

    `shares` are of questions; a side with a share of 0 gets none. What is `kept` stays.
    """
    kept = Kept(kept.unit or _unit_of(work), dict(kept.sides))
    name = {"document": "document", "section": "COALESCE(NULLIF(place, ''), document)"}
    work.connection.execute(f"UPDATE chunks SET unit={name.get(kept.unit, 'id')}")  # noqa: S608
    held = [item for item in gold if item.split in _HELD]
    work.add("held", ((n, item.chunk_text, item.gold_question) for n, item in enumerate(held)))
    texts = groups_of(Column(work.connection, ("chunks", "text"), ("held", "text")), work.folder)
    asked = groups_of(
        Column(work.connection, ("questions", "question"), ("held", "question")), work.folder
    )
    held_units = [_unit_of_item(work, item, kept.unit) for item in held]
    shared = _shared(work, texts, held_units, "chunk") + _shared(work, asked, held_units, "number")
    barred = {unit for unit in held_units if unit is not None}
    barred |= {one.units[0] for one in shared if one.held and len(one.units) == 1}
    taught = (_unit_of_item(work, item, kept.unit) for item in gold if item.split == "train")
    ties = _Ties(_sizes(work), _allowed(barred, taught, kept))
    for one in sorted(shared, key=lambda one: (len(one.units), one.units)):
        ties.tie(one.units)
    sides = ties.assigned({side: shares[side] for side in SIDES if shares.get(side)}, seed)
    left_out = _settle(work, shared, sides, barred, asked)
    kept.sides.update(sides)
    return Division(kept, texts, barred, left_out)


# ---------------------------------------------------------------------- what there is


def _unit_of(work: Workspace) -> str:
    """Documents, or sections or chunks where there are too few of them, as `splits.groups_of`."""
    for unit, column in (("document", "document"), ("section", "place")):
        sql = (
            f"SELECT COUNT(DISTINCT {column}) FROM chunks "  # noqa: S608 - our own
            "WHERE number IN (SELECT chunk FROM questions)"
        )
        if work.one(sql) >= splits.MIN_GROUPS:
            return unit
    return "chunk"


def _sizes(work: Workspace) -> dict[str, int]:
    """How many questions each unit has, if any."""
    sql = "SELECT c.unit, COUNT(*) FROM questions AS q JOIN chunks AS c ON c.number=q.chunk"
    return dict(work.ask(f"{sql} GROUP BY c.unit ORDER BY c.unit"))


def _unit_of_item(work: Workspace, item: GoldItem, unit: str) -> str | None:
    """The unit of a gold item's chunk or, where the collection has other ids now, document."""
    found = work.one("SELECT unit FROM chunks WHERE id=?", str(item.chunk_id))
    if found is None and unit == "document":
        for name in (item.document_id, item.file_name):
            found = found or work.one("SELECT unit FROM chunks WHERE document=?", name)
    return None if found is None else str(found)


def _shared(
    work: Workspace, groups: Groups, held_units: Sequence[str | None], member: str
) -> list[_Shared]:
    """The groups that stand in several units or have held-out gold in them. `member` is the column
    of `questions` that says whose number in `groups` a question is."""
    first = len(groups) - len(held_units)
    held = {groups.of(first + n): unit for n, unit in enumerate(held_units)}
    count = array("l", bytes(array("l").itemsize * len(groups)))
    for (of,) in work.ask(f"SELECT {member} FROM questions"):  # noqa: S608 - our own
        count[groups.of(of)] += 1
    members: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for number, of, unit in work.ask(
        f"SELECT q.number, q.{member}, c.unit FROM questions AS q "  # noqa: S608 - our own
        "JOIN chunks AS c ON c.number=q.chunk ORDER BY q.number"
    ):
        if count[root := groups.of(of)] > 1 or root in held:
            members[root].append((number, unit))
    found = []
    for root, those in members.items():
        units = {unit for _, unit in those}
        if root in held and (known := held[root]) is not None:
            units.add(known)
        if len(units) > 1 or root in held:
            found.append(_Shared([n for n, _ in those], sorted(units), root in held))
    return found


def _allowed(
    barred: Collection[str], taught: Iterable[str | None], kept: Kept
) -> dict[str, frozenset[Split]]:
    """The sides on which a unit may go, where not all are. One that gold holds out and trains on
    is left to dev."""
    allowed: dict[str, frozenset[Split]] = dict.fromkeys(barred, _HELD)
    for unit in taught:
        if unit is not None:
            allowed[unit] = allowed.get(unit, frozenset(SIDES)) & _TAUGHT
    return allowed | {unit: frozenset((side,)) for unit, side in kept.sides.items()}


# ---------------------------------------------------------------------- sides


class _Ties:
    """Units that go to one side together, with what they hold and where they may go."""

    def __init__(self, sizes: Mapping[str, int], allowed: Mapping[str, frozenset[Split]]):
        self._units = sorted(sizes)
        self._number = {unit: number for number, unit in enumerate(self._units)}
        self._groups = Groups(len(self._units))
        self._size = [sizes[unit] for unit in self._units]
        self._allowed = [allowed.get(unit, frozenset(SIDES)) for unit in self._units]
        self._most = _LARGEST * sum(self._size)

    def tie(self, units: Sequence[str]) -> None:
        """Put these together, as far as they may go to one side and do not become too much."""
        numbers = [self._number[unit] for unit in units if unit in self._number]
        if len(units) <= _TIED:
            for other in numbers[1:]:
                self._join(self._groups.of(numbers[0]), self._groups.of(other))

    def _join(self, one: int, other: int) -> None:
        sides = self._allowed[one] & self._allowed[other]
        # Neither may lose a side by it that it needs: gold's train and test would meet in dev.
        if one == other or sides not in (self._allowed[one], self._allowed[other]) or not sides:
            return
        if (size := self._size[one] + self._size[other]) > self._most:
            return
        self._groups.join(one, other)
        root = self._groups.of(one)
        self._size[root], self._allowed[root] = size, sides

    def assigned(self, shares: Mapping[Split, float], seed: int) -> dict[str, Split]:
        """A side of `shares` for each unit that may go to one."""
        roots = sorted({self._groups.of(number) for number in range(len(self._units))})
        whole = sum(shares.values()) or 1.0
        total = sum(self._size[root] for root in roots)
        targets = {side: share / whole * total for side, share in shares.items()}
        rng = random.Random(f"splits {seed}")
        drawn = [self._drawn(roots, targets, rng) for _ in range(_STARTS)]
        best = min(drawn, key=lambda placed: self._distance(placed, targets))
        every = ((unit, self._groups.of(number)) for unit, number in self._number.items())
        return {unit: best[root] for unit, root in every if root in best}

    def _drawn(
        self, roots: Sequence[int], targets: Mapping[Split, float], rng: random.Random
    ) -> dict[int, Split]:
        """A side for each by lot, then moved one by one as long as that brings the targets nearer:
        so large ones and small ones are on every side."""
        order = rng.sample(roots, len(roots))
        free = {root: [s for s in targets if s in self._allowed[root]] for root in order}
        placed = {
            root: rng.choices(sides, [targets[side] for side in sides])[0]
            for root, sides in free.items()
            if sides
        }
        lack = self._lack(placed, targets)
        for _ in range(_ROUNDS):
            moved = False
            for root, side in placed.items():
                lack[side] += self._size[root]
                # The squares of the others stay; |lack - size|² is least where lack is most.
                best = max(free[root], key=lambda to: (lack[to], to == side))
                lack[best] -= self._size[root]
                placed[root] = best
                moved |= best != side
            if not moved:
                break
        return placed

    def _lack(
        self, placed: Mapping[int, Split], targets: Mapping[Split, float]
    ) -> dict[Split, float]:
        """How many questions each side still wants."""
        lack = dict(targets)
        for root, side in placed.items():
            lack[side] -= self._size[root]
        return lack

    def _distance(self, placed: Mapping[int, Split], targets: Mapping[Split, float]) -> float:
        """Squared distance to the targets, and more than any for each side that is empty."""
        empty = sum(side not in placed.values() for side in targets)
        lack = self._lack(placed, targets)
        return 2 * empty * sum(targets.values()) ** 2 + sum(v * v for v in lack.values())


def _settle(
    work: Workspace,
    shared: Sequence[_Shared],
    sides: Mapping[str, Split],
    barred: Collection[str],
    asked: Groups,
) -> Counter[str]:
    """Write each question's side, or why it is left out; how many were, by reason.

    What is alike stays on the side that has most of it; never on train, where gold holds it out.
    """
    side_of: list[Split | None] = []  # by number
    left_out: dict[int, str] = {}
    for number, unit in work.ask(
        "SELECT q.number, c.unit FROM questions AS q JOIN chunks AS c ON c.number=q.chunk "
        "ORDER BY q.number"
    ):
        side_of.append(sides.get(unit))
        if side_of[number] is None or (side_of[number] == "train" and unit in barred):
            left_out[number], side_of[number] = "gold_held", None
    for one in shared:
        for number, reason in [*_on_other_sides(one, side_of)]:
            left_out[number], side_of[number] = reason, None
    rows = ((side, asked.of(n), left_out.get(n), n) for n, side in enumerate(side_of))
    work.connection.executemany(
        "UPDATE questions SET side=?, alike=?, left_out=? WHERE number=?", rows
    )
    return Counter(left_out.values())


def _on_other_sides(one: _Shared, side_of: Sequence[Split | None]) -> Iterator[tuple[int, str]]:
    """The questions that would stand on two sides with their like, all but one side's."""
    here = [number for number in one.questions if side_of[number] is not None]
    count = Counter(side_of[number] for number in here)
    if one.held:
        del count["train"]
    stays = max(SIDES, key=lambda side: count[side])
    for number in here:
        if side_of[number] == "train" and one.held:
            yield number, "gold_held"
        elif side_of[number] != stays:
            yield number, "alike_elsewhere"
