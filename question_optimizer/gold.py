"""The gold set as later phases read it: checked, and by side of the split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from question_optimizer import files, splits
from question_optimizer.errors import UserError
from question_optimizer.hostile_text import storable
from question_optimizer.records import Chunk, GoldItem, Split

_MADE_BY = "annotate_chunks.py"
SIDES = "gold_sides.json"  # of a gold set that does not say itself


@dataclass(frozen=True)
class GoldSet:
    """Gold items, every one with a side."""

    path: Path
    items: list[GoldItem]

    def side(self, split: Split) -> list[GoldItem]:
        """The items of one side, in file order; UserError if it is empty."""
        found = [item for item in self.items if item.split == split]
        if not found:
            raise UserError(
                f"{self.path}: no item in the {split} split of {len(self.items)}; "
                f"annotate chunks of more documents with {_MADE_BY}"
            )
        return found


def read_gold(path: Path, *, keep_sides: bool = False) -> GoldSet:
    """The gold set at `path`; UserError naming the entry and field that is wrong.

    Items without a side (a set made by another tool) are assigned one by document; those that have
    one keep it. With `keep_sides` what was assigned is written down beside the set, so that it
    stays, also when the set grows.
    """
    files.check_schema(path)
    rows = files.read_json(path, made_by=_MADE_BY)
    if not isinstance(rows, list):
        raise UserError(f"{path}: must be a list of gold items; rerun {_MADE_BY}")
    if not rows:
        raise UserError(f"{path}: holds no gold question yet; run {_MADE_BY} first")
    items = [
        files.parsed(
            GoldItem,
            with_id(row),
            where=f"{path}: entry {number}",
            fix=f"correct it or rerun {_MADE_BY}",
        )
        for number, row in enumerate(rows, 1)
    ]
    if any(item.split is None for item in items):
        place = path.with_name(SIDES)
        kept = files.read_json(place, made_by=_MADE_BY) if place.exists() else {}
        sides = assign_sides(items, kept=kept)
        if keep_sides and not {*sides.items()} <= {*kept.items()}:
            files.write_json(place, {**kept, **sides})
    return GoldSet(path, items)


def with_id(row: object) -> object:
    """Any tool may write the three texts alone; the item is then known by its content. Half a
    surrogate pair, which JSON allows and UTF-8 does not, becomes a replacement character."""
    if isinstance(row, dict):
        row = {key: storable(v) if isinstance(v, str) else v for key, v in row.items()}
    if isinstance(row, dict) and "chunk_id" not in row:
        return {
            **row,
            "chunk_id": files.digest([row.get("chunk_text"), row.get("gold_question")])[:32],
        }
    return row


def assign_sides(
    items: list[GoldItem], *, kept: Mapping[str, Split] | None = None
) -> dict[str, Split]:
    """Give each item that has no side one, by document, or by chunk text where no document is
    known; the others keep theirs. Returns the sides by group; `kept` are those of earlier times."""
    chunks = [
        Chunk(
            chunk_id=item.chunk_id,
            chunk_text=item.chunk_text,
            document_id=item.document_id or files.digest(item.chunk_text)[:16],
        )
        for item in items
    ]
    groups, _ = splits.groups_of(chunks)
    sizes: dict[str, int] = {}
    kept = dict(kept or {})
    for item in items:
        group = groups[str(item.chunk_id)]
        sizes[group] = sizes.get(group, 0) + 1
        if item.split:
            kept[group] = item.split
    sides = splits.assign(sizes, seed=0, kept=kept)
    for item in items:
        item.split = item.split or sides[groups[str(item.chunk_id)]]
    return {group: sides[group] for group in sizes}
