"""Every decision, durable before the next chunk shows, in an append-only event log.

`annotations.sqlite` is the truth; `gold_dataset.json` is exported from it after every decision and
can be made again at any time. A later decision on the same chunk supersedes the earlier one, which
stays in the log. Splits are events too: assigned once, never moved.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from question_optimizer import splits
from question_optimizer.errors import UserError
from question_optimizer.records import Chunk, Decision, GoldItem, Split
from question_optimizer.sqlite_file import open_database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY, at TEXT NOT NULL, kind TEXT NOT NULL,
    subject TEXT NOT NULL, data TEXT NOT NULL
)
"""
_VERSION = 1


class AnnotationStore:
    """The event log at `path`, made if missing. One commit a decision, flushed to disk."""

    def __init__(self, path: Path):
        self.path = path
        self._connection = open_database(path, _SCHEMA, version=_VERSION)
        self._decided: dict[str, dict[str, Any]] = {}  # chunk id -> its latest decision event
        self._sides: dict[str, Split] = {}
        self.split_unit = ""
        for kind, subject, data in self._connection.execute(
            "SELECT kind, subject, data FROM events ORDER BY seq"
        ):
            self._apply(kind, subject, json.loads(data))

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> AnnotationStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------------ decisions

    def is_decided(self, chunk: Chunk, decision: Decision | None = None) -> bool:
        """Whether there is a decision on `chunk`; with `decision`, whether it is this very one."""
        event = self._decided.get(str(chunk.chunk_id))
        if event is None or decision is None:
            return event is not None
        return event["decision"] == decision.model_dump(mode="json")

    def record(self, chunk: Chunk, decision: Decision, item: GoldItem | None) -> None:
        """Append a decision; on return it is on disk. `item` is None for a skip."""
        data = {
            "decision": decision.model_dump(mode="json"),
            "item": item.model_dump(mode="json", exclude={"split"}) if item else None,
        }
        at = decision.at or datetime.now(UTC).isoformat(timespec="seconds")
        self._append([("decision", str(chunk.chunk_id), data)], at)

    def gold(self) -> list[GoldItem]:
        """The gold set as of now, in the order in which chunks were first decided."""
        items = []
        for event in self._decided.values():
            if event["item"] is not None:
                item = GoldItem.model_validate(event["item"])
                items.append(item.model_copy(update={"split": self._sides.get(item.split_group)}))
        return items

    def skipped(self) -> Counter[str]:
        """How many chunks were skipped, by reason."""
        return Counter(
            event["decision"]["reason"] or "no reason"
            for event in self._decided.values()
            if event["decision"]["action"] == "skip"
        )

    # ------------------------------------------------------------------ splits

    def assign_splits(
        self,
        chunks: Iterable[Chunk],
        *,
        expected: Iterable[Chunk],
        sample: Iterable[Chunk],
        seed: int,
    ) -> dict[str, str]:
        """Give every document of `chunks` that has none yet a side; returns {chunk id: group}.

        `expected` are those of `chunks` that are likely to yield a gold question: the shares are
        to come out right for items, and there are none yet. The unit (document, section or
        chunk) is chosen by the whole `sample`, and fixed for good by the first call.
        """
        chunks = list(chunks)
        unit = self.split_unit or splits.groups_of(sample)[1]
        groups = splits.grouped_by(unit, chunks)
        sizes = Counter(dict.fromkeys(groups.values(), 0))
        sizes.update(groups[str(chunk.chunk_id)] for chunk in expected)
        for chunk_id, event in self._decided.items():
            if event["item"] and chunk_id not in groups:
                sizes[event["item"]["split_group"]] += 1
        sides = splits.assign(sizes, seed=seed, kept=self._sides)
        fresh = [
            ("split", group, {"side": sides[group], "unit": unit})
            for group in sorted(sizes)
            if group not in self._sides
        ]
        if fresh:
            self._append(fresh, "")
        return groups

    # ------------------------------------------------------------------ events

    def _append(self, events: list[tuple[str, str, dict[str, Any]]], at: str) -> None:
        rows = [(at, k, subject, json.dumps(d, ensure_ascii=False)) for k, subject, d in events]
        try:
            with self._connection:
                self._connection.executemany(
                    "INSERT INTO events (at, kind, subject, data) VALUES (?, ?, ?, ?)", rows
                )
        except sqlite3.OperationalError as error:
            raise UserError(
                f"{self.path}: decision not saved ({error}); "
                "free the disk or close the other session"
            ) from error
        for kind, subject, data in events:
            self._apply(kind, subject, data)

    def _apply(self, kind: str, subject: str, data: dict[str, Any]) -> None:
        if kind == "decision":
            self._decided[subject] = data
        elif kind == "split":
            self._sides.setdefault(subject, data["side"])
            self.split_unit = data["unit"]
