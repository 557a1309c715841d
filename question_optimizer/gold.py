"""The gold set as later phases read it: checked, and by side of the split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from question_optimizer import files, splits
from question_optimizer.errors import UserError
from question_optimizer.records import Chunk, GoldItem, Split

_MADE_BY = "annotate_chunks.py"
_PROMPT_FRAME_CHARACTERS = 3000  # field descriptions, instructions, two demonstrations' frames


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


def read_gold(path: Path) -> GoldSet:
    """The gold set at `path`; UserError naming the entry and field that is wrong.

    Items without a side (a set made by another tool) are assigned one by document; those that have
    one keep it.
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
    open_ = [item for item in items if item.split is None]
    if open_:
        assign_sides(items)
    return GoldSet(path, items)


def with_id(row: object) -> object:
    """Any tool may write the three texts alone; the item is then known by its content."""
    if isinstance(row, dict) and "chunk_id" not in row:
        return {
            **row,
            "chunk_id": files.digest([row.get("chunk_text"), row.get("gold_question")])[:32],
        }
    return row


def assign_sides(items: list[GoldItem]) -> None:
    """Give each item that has no side one, by document; the others keep theirs."""
    chunks = [
        Chunk(chunk_id=item.chunk_id, chunk_text=item.chunk_text, document_id=item.document_id)
        for item in items
    ]
    groups, _ = splits.groups_of(chunks)
    sizes: dict[str, int] = {}
    kept: dict[str, Split] = {}
    for item in items:
        group = groups[str(item.chunk_id)]
        sizes[group] = sizes.get(group, 0) + 1
        if item.split:
            kept[group] = item.split
    sides = splits.assign(sizes, seed=0, kept=kept)
    for item in items:
        item.split = item.split or sides[groups[str(item.chunk_id)]]


def typical_prompt_characters(items: list[GoldItem]) -> float:
    """Mean length of a rendered prompt, for estimates before any call."""
    texts = sum(len(item.chunk_text) + len(item.persona_description) for item in items)
    return texts / max(1, len(items)) + _PROMPT_FRAME_CHARACTERS
