"""BM25 over a corpus of any size: postings on disk in shards, scored in bounded memory.

The formula is that of BM25 (Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework") in
Lucene's variant with exact lengths (Kamphuis et al. 2020, "Which BM25 Do You Mean?"): the sum over
a question's distinct terms of

    ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean length))

with Lucene's k1 = 1.2 and b = 0.75. A term that a question repeats counts once.

    counts-<first>-<end>.npz     while building: terms, offsets, chunks, counts, lengths
    postings-<first>-<end>.npz   finished: terms, offsets, chunks, scores
    vocabulary.npz               all terms and in how many chunks each occurs

A shard holds some thousand chunks, and its postings stand term by term: those of `terms[i]` are
`chunks[offsets[i]:offsets[i + 1]]`, counted from the shard's first chunk, with their `scores`.
Terms are known by 64 bits of a hash: of a million terms two are the same once in 40 million.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from question_optimizer.words import ONE_WORD_EACH

if TYPE_CHECKING:
    import numpy as np

K1, B = 1.2, 0.75
# A shard ends with whichever comes first, so that long chunks take no more memory than short ones.
_SHARD_CHUNKS = 10_000
_SHARD_POSTINGS = 1_500_000
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def terms(text: str) -> list[str]:
    """The text's words in lower case, each as often as it occurs; no stemming, no stop words.

    An identifier is kept whole and its parts are given too: `sqlite3_open` and `readOnly` are three
    terms each. Characters of scripts that do not part words are one term each, as in Lucene.
    """
    found = []
    for word in ONE_WORD_EACH.findall(unicodedata.normalize("NFKC", text)):
        found.append(word.casefold())
        if "_" not in word and word.islower():
            continue
        parts = [part for part in _CAMEL.sub("_", word).split("_") if part]
        if len(parts) > 1:
            found += [part.casefold() for part in parts]
    return found


def _key(term: str) -> int:
    data = term.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


# ---------------------------------------------------------------------- writing


class PostingsWriter:
    """Writes a corpus' postings into a folder, text by text in the corpus' order.

    `done` texts are on disk already, from an attempt that was killed: whoever begins again skips
    them. A shard holds up to `shard_chunks` (65,536 at most).
    """

    def __init__(self, folder: Path, *, shard_chunks: int = _SHARD_CHUNKS):
        self._folder = folder
        self._shard_chunks = shard_chunks
        self.done = 0
        for first, end, _ in _shards(folder, "counts"):
            self.done = end if first == self.done else self.done
        self._start_shard()

    def _start_shard(self) -> None:
        self._vocabulary: dict[str, int] = {}
        self._terms, self._counts = array("I"), array("H")
        self._sizes, self._lengths = array("I"), array("I")

    def add(self, text: str) -> None:
        """The next text's terms; a shard that is full is written."""
        found = terms(text)
        counts = Counter(found)
        number = self._vocabulary.setdefault
        self._terms.extend([number(term, len(self._vocabulary)) for term in counts])
        self._counts.extend([min(count, 65_535) for count in counts.values()])
        self._sizes.append(len(counts))
        self._lengths.append(len(found))
        if len(self._sizes) >= self._shard_chunks or len(self._terms) >= _SHARD_POSTINGS:
            self._write_shard()

    def _write_shard(self) -> None:
        import numpy as np

        keys = np.fromiter(map(_key, self._vocabulary), np.uint64, len(self._vocabulary))
        by_key = keys.argsort()
        rank = np.empty(len(keys), np.uint32)
        rank[by_key] = np.arange(len(keys), dtype=np.uint32)
        ranks = rank[np.frombuffer(self._terms, np.uint32)] if self._terms else rank[:0]
        order = ranks.argsort(kind="stable")  # so chunks stay in order within a term
        sizes = np.frombuffer(self._sizes, np.uint32)
        chunks = np.repeat(np.arange(len(sizes), dtype=np.uint16), sizes)
        end = self.done + len(sizes)
        _save(
            self._folder / _name("counts", self.done, end),
            terms=keys[by_key],
            offsets=np.concatenate([[0], np.bincount(ranks, minlength=len(keys)).cumsum()]),
            chunks=chunks[order],
            counts=np.frombuffer(self._counts, np.uint16)[order],
            lengths=np.frombuffer(self._lengths, np.uint32),
        )
        self.done = end
        self._start_shard()

    def finish(self) -> None:
        """Write the scores, which depend on the whole corpus; `clean_up` removes the counts."""
        import numpy as np

        if self._sizes:
            self._write_shard()
        keys, frequencies = np.zeros(0, np.uint64), np.zeros(0, np.uint32)
        words = 0
        for shard in map(_load, (path for _, _, path in _shards(self._folder, "counts"))):
            keys, frequencies = _merged(
                [keys, shard["terms"]], [frequencies, np.diff(shard["offsets"])]
            )
            words += int(shard["lengths"].sum())
        idf = _idf(frequencies, self.done)
        mean = words / max(1, self.done) or 1.0
        for first, end, path in _shards(self._folder, "counts"):
            _save(
                self._folder / _name("postings", first, end),
                **_scored(_load(path), keys, idf, mean),
            )
        _save(self._folder / "vocabulary.npz", terms=keys, frequencies=frequencies)

    def clean_up(self) -> None:
        """Remove what only building needs, and what a killed attempt left half written."""
        for path in (*self._folder.glob("counts-*.npz"), *self._folder.glob(".*.tmp")):
            path.unlink()


def _merged(
    keys: Sequence[np.ndarray], frequencies: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """All terms, sorted, and the sum of each one's document frequencies."""
    import numpy as np

    merged, place = np.unique(np.concatenate(keys), return_inverse=True)
    summed = np.bincount(place, weights=np.concatenate(frequencies), minlength=len(merged))
    return merged, summed.astype(np.uint32)


def _idf(frequencies: np.ndarray, chunks: int) -> np.ndarray:
    import numpy as np

    there = frequencies.astype(np.float64)
    return np.log1p((chunks - there + 0.5) / (there + 0.5))


def _scored(
    shard: dict[str, np.ndarray], keys: np.ndarray, idf: np.ndarray, mean: float
) -> dict[str, np.ndarray]:
    import numpy as np

    of_term = np.repeat(idf[keys.searchsorted(shard["terms"])], np.diff(shard["offsets"]))
    norms = K1 * (1 - B + B * shard["lengths"] / mean)
    counts = shard["counts"].astype(np.float64)
    scores = of_term * counts / (counts + norms[shard["chunks"]])
    kept = {name: shard[name] for name in ("terms", "offsets", "chunks")}
    return {**kept, "scores": scores.astype(np.float32)}


def _name(kind: str, first: int, end: int) -> str:
    return f"{kind}-{first:010}-{end:010}.npz"


def _shards(folder: Path, kind: str) -> list[tuple[int, int, Path]]:
    """(first chunk, end, file) of each, in order."""
    found = []
    for path in sorted(folder.glob(f"{kind}-*-*.npz")):
        _, first, end = path.stem.split("-")
        found.append((int(first), int(end), path))
    return found


def _save(path: Path, **arrays: Any) -> None:
    """Whole or not at all."""
    import numpy as np

    part = path.with_name(f".{path.name}.tmp")
    with part.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _load(path: Path) -> dict[str, np.ndarray]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


# ---------------------------------------------------------------------- scoring


class _Shard(NamedTuple):
    """`chunks` as indices, which numpy would otherwise make of them for every question."""

    first: int
    end: int
    terms: np.ndarray
    offsets: np.ndarray
    chunks: np.ndarray
    scores: np.ndarray

    def postings(self, keys: np.ndarray) -> Iterator[slice]:
        """Where the postings of each of the terms stand, of those that occur here."""
        if not len(self.terms):
            return
        places = self.terms.searchsorted(keys)
        places[places == len(self.terms)] = 0
        for place in places[self.terms[places] == keys].tolist():
            yield slice(self.offsets[place], self.offsets[place + 1])


class Postings:
    """What a `PostingsWriter` finished in `folder`, to score questions with."""

    def __init__(self, folder: Path):
        self._shards = _shards(folder, "postings")
        vocabulary = _load(folder / "vocabulary.npz")
        self._terms, self._frequencies = vocabulary["terms"], vocabulary["frequencies"]
        self._chunks = self._shards[-1][1] if self._shards else 0

    def _loaded(self) -> Iterator[_Shard]:
        """The shards one after another: read, not mapped, so that they leave memory again."""
        import numpy as np

        for first, end, path in self._shards:
            there = _load(path)
            there["chunks"] = there["chunks"].astype(np.intp)
            yield _Shard(first, end, **there)

    def keys(self, question: str) -> np.ndarray:
        """The question's distinct terms as the index knows them, in the order of the question."""
        import numpy as np

        distinct = list(dict.fromkeys(terms(question)))
        return np.fromiter(map(_key, distinct), np.uint64, len(distinct))

    def own(
        self, questions: Sequence[np.ndarray], own: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(score, coverage) of each question and one chunk, float32.

        The coverage is the share of the question's terms that the chunk has, weighted by their idf:
        words that are everywhere tell nothing, so no list of stop words is needed.
        """
        import numpy as np

        scores = np.zeros(len(questions), np.float32)
        found, whole = np.zeros(len(questions)), np.full(len(questions), 1e-9)
        for shard in self._loaded():
            for i in np.flatnonzero((own >= shard.first) & (own < shard.end)).tolist():
                chunk, weights = own[i] - shard.first, self._idf(questions[i])
                whole[i] += weights.sum()
                for key, weight in zip(questions[i], weights, strict=True):
                    for there in shard.postings(key[None]):
                        at = there.start + shard.chunks[there].searchsorted(chunk)
                        if at < there.stop and shard.chunks[at] == chunk:
                            scores[i] += shard.scores[at]
                            found[i] += weight
        return scores, (found / whole).astype(np.float32)

    def _idf(self, keys: np.ndarray) -> np.ndarray:
        """Of terms; one that no chunk has weighs most."""
        import numpy as np

        places = np.minimum(self._terms.searchsorted(keys), max(0, len(self._terms) - 1))
        known = self._terms[places] == keys if len(self._terms) else np.zeros(len(keys), bool)
        frequencies = np.zeros(len(keys), np.uint32)
        frequencies[known] = self._frequencies[places[known]]
        return _idf(frequencies, self._chunks)

    def blocks(self, questions: Sequence[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
        """(first chunk, float32 scores of shape (questions, chunks of a shard)) of every shard.

        A score is summed in the order of the question's terms, as `own` sums it: the same bits.
        """
        import numpy as np

        for shard in self._loaded():
            scores = np.zeros((len(questions), shard.end - shard.first), np.float32)
            for row, keys in zip(scores, questions, strict=True):
                for there in shard.postings(keys):
                    row[shard.chunks[there]] += shard.scores[there]
            yield shard.first, scores
