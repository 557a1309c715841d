"""`gold_dataset.json` and its meta file, exported from the event log after every decision."""

from __future__ import annotations

import json
import textwrap
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.annotation.store import AnnotationStore
from question_optimizer.locks import one_at_a_time
from question_optimizer.records import GoldItem


class GoldFile:
    """The export of `store` at `path`; with several annotators also each one's own set beside it.

    `write` exports at once. `request` has a thread do it soon, once for however many requests came
    meanwhile, so that no key waits for a large file; `close` ends that thread and writes the last
    state. Processes that export the same log take turns, so that the newest state stays.
    """

    def __init__(
        self,
        store: AnnotationStore,
        path: Path,
        *,
        settings: dict[str, Any],
        inputs: dict[str, str],
    ):
        self.problem = ""  # why the last export failed; the log has everything all the same
        self._store = store
        self._path = path
        self._settings = settings
        self._inputs = inputs
        # Encoding is what takes time, in a thread that the screen has to wait for: once an item.
        self._encoded: dict[int, tuple[GoldItem, str]] = {}
        self._wanted = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def request(self) -> None:
        """Export soon, on a thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._export, name="gold file", daemon=True)
            self._thread.start()
        self._wanted.set()

    def close(self) -> list[GoldItem]:
        """Export the state of now and return it; UserError where it cannot be written."""
        self._closed = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()
        return self.write()

    def write(self) -> list[GoldItem]:
        """Export now; returns the gold set. UserError where a file cannot be written."""
        with one_at_a_time(self._path.with_name(f"{self._path.name}.lock")):
            self._store.refresh()
            gold = self._store.gold()
            self._write_set(self._path, gold, None)
            names = self._store.annotators
            for name in names if len(names) > 1 else []:
                # No dot: json.meta would be the name of the whole set's meta file.
                called = (name or "unnamed").replace(".", "%2E")
                own = self._path.with_name(f"gold_dataset.{called}.json")
                self._write_set(own, self._store.gold(name), name)
        return gold

    def _write_set(self, path: Path, gold: list[GoldItem], annotator: str | None) -> None:
        skipped: Counter[str] = Counter()
        for name in self._store.annotators if annotator is None else [annotator]:
            skipped.update(self._store.skipped(name))
        models = sorted({model for item in gold for model in item.suggested_by})
        items = ",\n".join(self._json_of(item) for item in gold)
        files.write_atomic(path, f"[\n{items}\n]\n" if items else "[]\n")
        files.write_meta(
            path,
            phase="annotate_chunks",
            settings={**self._settings, "split_unit": self._store.split_unit},
            inputs=self._inputs,
            counts={
                "gold": len(gold),
                "skipped": dict(sorted(skipped.items())),
                "origins": _counted(item.origin for item in gold),
                "splits": _counted(item.split or "none" for item in gold),
                "annotators": _counted(item.annotator for item in gold),
            },
            models=models,
            rehearsal="rehearsal" in models,
        )

    def _json_of(self, item: GoldItem) -> str:
        """`item` as an indented JSON object; encoded once, as the store returns the same object."""
        known = self._encoded.get(id(item))
        if known is None or known[0] is not item:
            text = json.dumps(item.model_dump(mode="json"), indent=2, ensure_ascii=False)
            known = self._encoded[id(item)] = (item, textwrap.indent(text, "  "))
        return known[1]

    def _export(self) -> None:
        while not self._closed:
            self._wanted.wait()
            self._wanted.clear()
            try:
                self.write()
                self.problem = ""
            except Exception as error:  # whatever it is, the next decision is exported again
                self.problem = f"{error}; the log has every decision"


def _counted(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
