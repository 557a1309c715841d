"""Near-duplicates among all questions of a corpus: on disk, exact, in bounded memory.

What a near-duplicate is, `gates` says: character 5-grams with a Jaccard index of .8, unless the two
differ in a name. Not all pairs are compared, and none is missed:

- sets that are alike share one of the first few grams of each, in whatever order, as long as it is
  the same for all (prefix filter; Chaudhuri et al. 2006, Bayardo et al. 2007), have about the same
  size, and the first gram in common stands so early in both that enough others can follow
  (PPJoin; Xiao et al. 2008);
- of these, sets whose parities of hashed grams, 63 bits, differ in more bits than two alike sets
  may differ in grams are not alike (bitmap filter; Sandes et al. 2017). The parity stands beside
  each gram, so that what is not alike costs no look at the question;
- the rest is compared.

The order only decides how many candidates there are: rare grams first, by their frequency among the
first questions. It is made anew a few times while the index is small.
"""

from __future__ import annotations

import json
import re
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from question_optimizer import files
from question_optimizer.duplicates import (
    NEAR_DUPLICATE,
    differ_in_a_name,
    jaccard,
    prefix_length,
    shingles,
)
from question_optimizer.sqlite_file import open_database
from question_optimizer.words import LOOKED_AT

_REORDER_AT = (200, 2_000, 20_000)  # questions
_SAMPLE = 2_000  # of them tell the frequencies
_COMMON = 20_000  # grams that are kept as common ones; every other is rare
_BITS = 63  # as many as SQLite's integers hold without a sign
_SCHEMA = """
CREATE TABLE IF NOT EXISTS questions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, question BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS grams (
    gram INTEGER, size INTEGER, number INTEGER, place INTEGER, parity INTEGER,
    PRIMARY KEY (gram, size, number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS common (gram TEXT PRIMARY KEY, count INTEGER) WITHOUT ROWID
"""
_CANDIDATES = """
SELECT number, size, parity FROM json_each(:wanted) AS one CROSS JOIN grams
WHERE gram = json_extract(one.value, '$[0]')
AND size BETWEEN :least AND json_extract(one.value, '$[1]')
AND size - place >= :overlap * (:size + size) - 1e-9
"""
# Two alike sets have at least this share of both their sizes in common: |A ∩ B| >= t / (1 + t) of
# |A| + |B|; and of what only one of them has at most the rest of it.
_OVERLAP = NEAR_DUPLICATE / (1 + NEAR_DUPLICATE)
_DIFFERENCE = 1 - 2 * _OVERLAP


Row = tuple[str, str, str]  # key, question, digest of its chunk's text
Counts = Callable[[str, str], bool]


class Repeat(NamedTuple):
    """The earlier question that one repeats, and how alike they are."""

    key: str
    question: str
    alike: float


def index_path(cache_dir: Path, collection: str) -> Path:
    """The file for the questions of a collection: what a file name can hold of its name, and a
    digest, as two collections may differ in the rest."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", collection)[:40]
    return cache_dir / f"questions-of-{readable}-{files.digest(collection)[:8]}.sqlite"


def delete_former_indexes(cache_dir: Path) -> None:
    """Those of earlier versions, which had one for each configuration, by its fingerprint."""
    for path in cache_dir.glob(f"questions-{'[0-9a-f]' * 16}.sqlite*"):
        path.unlink(missing_ok=True)


class QuestionIndex:
    """The questions accepted so far, by key; at `path`, made if missing. Safe from any thread.

    Not durable against a power cut: it can be filled again from the ledger.
    """

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._connection = open_database(path, _SCHEMA, version=1, durable=False)
        self._connection.execute("PRAGMA cache_size=-16000")
        self._common = dict(self._connection.execute("SELECT gram, count FROM common"))

    def __len__(self) -> int:
        with self._lock:
            return int(self._connection.execute("SELECT count(*) FROM questions").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def check_and_add(
        self, items: Iterable[Row], counts: Counts = lambda key, there: True
    ) -> list[Repeat | None]:
        """Add each (key, question, digest of its chunk's text) that repeats none which is there.

        For each the earliest question that it repeats, or None: then it is in the index. Those
        before it in `items` count too. One that repeats another is not added, so that nothing is
        compared with it again. `counts` tells, of its key and another one's, whether it may repeat
        that. What was there under its key is replaced; the same call twice gives the same.
        Questions of one text are compared like any others. On disk on return.
        """
        with self._lock, self._connection:
            return list(self._checked(items, counts))

    def fill(self, items: Iterable[Row], counts: Counts) -> None:
        """As `check_and_add`, for any number of questions; all are in the index, or none."""
        with self._lock, self._connection:
            for _ in self._checked(items, counts):
                pass

    def _checked(self, items: Iterable[Row], counts: Counts) -> Iterator[Repeat | None]:
        for key, question, _ in items:
            question = question[:LOOKED_AT]
            there = self._question_of(key)
            if there is not None and there != question:
                self._remove(key)
            yield None if there == question else self._check_and_add(key, question, counts)

    def forget(self, repeats: Iterable[Repeat]) -> None:
        """Remove these questions; one whose key holds another question by now is passed over."""
        with self._lock, self._connection:
            for repeat in repeats:
                if self._question_of(repeat.key) == repeat.question:
                    self._remove(repeat.key)

    def remove(self, keys: Iterable[str]) -> None:
        """Forget the questions of these keys; a key that is not there is passed over."""
        with self._lock, self._connection:
            for key in keys:
                self._remove(key)

    def _question_of(self, key: str) -> str | None:
        row = self._connection.execute(
            "SELECT question FROM questions WHERE key = ?", (key,)
        ).fetchone()
        return _text(row[0]) if row else None

    def _remove(self, key: str) -> None:
        row = self._connection.execute(
            "DELETE FROM questions WHERE key = ? RETURNING number, question", (key,)
        ).fetchone()
        if row:
            grams = shingles(_text(row[1]))
            self._connection.executemany(
                "DELETE FROM grams WHERE gram = ? AND size = ? AND number = ?",
                [(gram, len(grams), row[0]) for gram in self._prefix(grams)],
            )

    def _check_and_add(self, key: str, question: str, counts: Counts) -> Repeat | None:
        grams = shingles(question)
        for other_key, other in self._candidates(grams):
            if not counts(key, other_key):
                continue
            alike = jaccard(grams, shingles(other))
            if alike >= NEAR_DUPLICATE and not differ_in_a_name(question, other):
                return Repeat(other_key, other, alike)
        (number,) = self._connection.execute(
            "INSERT INTO questions (key, question) VALUES (?, ?) RETURNING number",
            (key, _bytes(question)),
        ).fetchone()
        self._add_grams(number, grams)
        if number in _REORDER_AT:
            self._reorder()
        return None

    def _add_grams(self, number: int, grams: frozenset[str]) -> None:
        size, parity = len(grams), _parity(grams)
        self._connection.executemany(
            "INSERT OR IGNORE INTO grams VALUES (?, ?, ?, ?, ?)",
            [(gram, size, number, i, parity) for i, gram in enumerate(self._prefix(grams))],
        )

    def _prefix(self, grams: frozenset[str]) -> list[int]:
        """Hashes of the first grams in the order, so many that no set that is alike is missed.

        Two grams with one hash make a candidate more, and no error.
        """
        count = self._common.get
        order = sorted((count(gram, 0), _hash(gram)) for gram in grams)
        return [gram for _, gram in order[: prefix_length(grams, NEAR_DUPLICATE)]]

    def _candidates(self, grams: frozenset[str]) -> Iterator[tuple[str, str]]:
        """(key, question) of whatever may be alike, the earliest first."""
        if not grams:
            return
        size, parity = len(grams), _parity(grams)
        # From the first gram in common on, both sets must hold enough to reach the overlap.
        wanted = [
            (gram, (size - place) / _OVERLAP - size + 1e-9)
            for place, gram in enumerate(self._prefix(grams))
        ]
        rows = self._connection.execute(
            _CANDIDATES,
            {
                "wanted": json.dumps(wanted),
                "least": NEAR_DUPLICATE * size - 1e-9,
                "overlap": _OVERLAP,
                "size": size,
            },
        )
        likely = {
            number
            for number, theirs, there in rows
            if (parity ^ there).bit_count() <= _DIFFERENCE * (size + theirs) + 1e-9
        }
        for number in sorted(likely):
            key, question = self._connection.execute(
                "SELECT key, question FROM questions WHERE number = ?", (number,)
            ).fetchone()
            yield key, _text(question)

    def _reorder(self) -> None:
        """Count grams among some questions of the whole index, and index all by the new order."""
        known: Counter[str] = Counter()
        (last,) = self._connection.execute("SELECT max(number) FROM questions").fetchone()
        for _, grams in self._shingled(max(1, last // _SAMPLE)):
            known.update(grams)
        self._common = {gram: n for gram, n in known.most_common(_COMMON) if n > 1}
        self._connection.execute("DELETE FROM common")
        self._connection.executemany("INSERT INTO common VALUES (?, ?)", self._common.items())
        self._connection.execute("DELETE FROM grams")
        for number, grams in self._shingled(1):
            self._add_grams(number, grams)

    def _shingled(self, step: int) -> Iterator[tuple[int, frozenset[str]]]:
        rows: Iterable[tuple[int, bytes]] = self._connection.execute(
            "SELECT number, question FROM questions WHERE number % ? = 0 ORDER BY number", (step,)
        )
        for number, question in rows:
            yield number, shingles(_text(question))


def _bytes(text: str) -> bytes:
    """Lone surrogates are kept, since the gates see them too; SQLite's text could not."""
    return text.encode("utf-8", "surrogatepass")


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogatepass")


def _hash(gram: str) -> int:
    """The same in every process, and spread over grams of equal frequency."""
    return zlib.crc32(_bytes(gram))


def _parity(grams: frozenset[str]) -> int:
    """A bit for each class of grams: whether an odd number of them is in the set."""
    parity = 0
    for gram in grams:
        parity ^= 1 << (_hash(gram) % _BITS)
    return parity
