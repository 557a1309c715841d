"""Which texts of a corpus are the same or nearly so: exact, on disk, in bounded memory.

Two texts are alike from a Jaccard index of 0.8 of their character 5-grams on, the measure and the
threshold of `duplicates`. Here a million texts may be compared: what is kept in memory
is less than 100 bytes a text, the rest lies in files until it is sorted piece by piece.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from question_optimizer.duplicates import NEAR_DUPLICATE, respelt
from question_optimizer.words import CHUNK_LOOKED_AT

if TYPE_CHECKING:
    import numpy

_GRAM = 5
_FACTOR = 0x9E3779B97F4A7C15  # odd and near 2^64 / golden ratio: spreads neighbours (Knuth)
_BUFFER = 1 << 20  # postings held before they are written; a file of them is sorted in memory
_COUNTERS = 1 << 22  # of how many texts hold a gram; those that share a counter only cost time
_BITS = 512  # of the bitmap of a text's grams
_TOGETHER = 65_536  # pairs whose bitmaps are compared at a time
_WINDOW = 64  # a text is compared with so many that follow it under a gram
_COMPARED = 1_000_000  # pairs remembered as compared
_CACHED = 4096  # texts whose grams are kept


class Texts(Protocol):
    """Texts by number from 0; a list of strings is one."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[str]: ...
    def __getitem__(self, number: int, /) -> str: ...


class Groups:
    """Numbers from 0 joined into groups (union-find, by path halving; the lowest one stands for
    its group, so the groups do not depend on the order of joining)."""

    def __init__(self, count: int):
        self._parent = array("q", range(count))

    def __len__(self) -> int:
        return len(self._parent)

    def of(self, number: int) -> int:
        """The number that stands for the group of `number`."""
        parent = self._parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.of(one), self.of(other)))
        self._parent[high] = low


def folded(text: str) -> str:
    """What is the same in two spellings of a text, as `duplicates.folded` has it, but of a whole
    chunk."""
    return respelt(text[:CHUNK_LOOKED_AT])


def text_digest(text: str) -> str:
    """16 hex digits that two texts share if they are the same but for their spelling."""
    return blake2b(folded(text).encode("utf-8", "replace"), digest_size=8).hexdigest()


def alike(one: str, other: str) -> bool:
    """Whether two texts are the same or nearly so; texts without a letter are like none."""
    return _jaccard(_grams(folded(one)), _grams(folded(other))) >= NEAR_DUPLICATE


def groups_of(texts: Texts, folder: Path) -> Groups:
    """Texts grouped so that those alike are in one group; so are those joined by a third."""
    groups = Groups(len(texts))
    for one, other in alike_pairs(texts, folder, lambda i, j: groups.of(i) != groups.of(j)):
        groups.join(one, other)
    return groups


def alike_pairs(
    texts: Texts, folder: Path, wanted: Callable[[int, int], bool]
) -> Iterator[tuple[int, int]]:
    """(i, j), i < j, of texts that are alike and `wanted` when their turn comes.

    Of texts that are the same only the first is compared with others; the rest are paired with it.
    Complete, by the prefix filter that `near_duplicates` names its sources for, but where
    more than 64 texts share one of their rarest grams: there each is compared with the next 64.
    `folder` takes postings, 8 bytes each, of about the corpus's own size together.
    """
    import numpy

    seen = _first_reading(texts)
    repeats = dict(_repeats(seen.digests, numpy.flatnonzero(seen.sizes)))
    yield from ((first, again) for again, first in repeats.items() if wanted(first, again))
    pieces = _write_postings(texts, repeats, seen, folder)
    grams_of = lru_cache(_CACHED)(lambda number: _grams(folded(texts[number])))
    compared: set[int] = set()
    for piece in pieces:
        for i, j in _candidates(piece, seen):
            pair = i << 32 | j
            if pair in compared or not wanted(i, j):
                continue
            if len(compared) < _COMPARED:
                compared.add(pair)
            if _jaccard(grams_of(i), grams_of(j)) >= NEAR_DUPLICATE:
                yield i, j
        piece.unlink()


class _Seen(NamedTuple):
    """What is kept of all texts: of each a digest, its number of grams, and a bitmap of them; and
    how many texts fall on each gram counter."""

    digests: numpy.ndarray
    sizes: numpy.ndarray
    bitmaps: numpy.ndarray
    counters: numpy.ndarray


def _first_reading(texts: Texts) -> _Seen:
    import numpy

    digests = numpy.zeros(len(texts), numpy.uint64)
    sizes = numpy.zeros(len(texts), numpy.uint32)
    bitmaps = numpy.zeros((len(texts), _BITS // 64), numpy.uint64)
    counters = numpy.zeros(_COUNTERS, numpy.uint32)
    for number, text in enumerate(texts):
        plain = folded(text)
        grams = _grams(plain)
        digests[number] = int.from_bytes(
            blake2b(plain.encode("utf-8", "replace"), digest_size=8).digest()
        )
        sizes[number] = len(grams)
        bits = numpy.zeros(_BITS, bool)
        bits[grams % _BITS] = True
        bitmaps[number] = numpy.packbits(bits).view(numpy.uint64)
        counters[grams % _COUNTERS] += 1
    return _Seen(digests, sizes, bitmaps, counters)


def _repeats(digests: numpy.ndarray, among: numpy.ndarray) -> Iterator[tuple[int, int]]:
    """(number, the first number that has the same digest), for all but the first `among` these."""
    import numpy

    order = among[numpy.argsort(digests[among], kind="stable")]
    same = digests[order][1:] == digests[order][:-1]
    first = int(order[0]) if len(order) else 0
    for number, again in zip(order[1:].tolist(), same.tolist(), strict=True):
        if again:
            yield number, first
        else:
            first = number


def _write_postings(
    texts: Texts,
    repeats: dict[int, int],
    seen: _Seen,
    folder: Path,
) -> list[Path]:
    """For each text its rarest grams, gram and number in one 64-bit word, spread over files."""
    import numpy

    count = 1 + int(seen.sizes.sum() * (1 - NEAR_DUPLICATE)) // _BUFFER
    paths = [folder / f"grams-{piece}.bin" for piece in range(count)]
    for path in paths:
        path.write_bytes(b"")
    held: list[numpy.ndarray] = []
    waiting = 0
    for number, text in enumerate(texts):
        if number in repeats or not seen.sizes[number]:
            continue
        rarest = _rarest(_grams(folded(text)), seen.counters)
        short = rarest * numpy.uint64(_FACTOR) >> numpy.uint64(32)
        held.append(numpy.unique(short) << numpy.uint64(32) | numpy.uint64(number))
        waiting += len(held[-1])
        if waiting >= _BUFFER:
            _append(held, paths)
            held, waiting = [], 0
    _append(held, paths)
    return paths


def _rarest(grams: numpy.ndarray, counters: numpy.ndarray) -> numpy.ndarray:
    """As many of the rarest grams as two alike texts must have one of in common."""
    import numpy

    length = len(grams) - math.ceil(NEAR_DUPLICATE * len(grams) - 1e-9) + 1
    order = numpy.lexsort((grams, counters[grams % _COUNTERS]))
    return grams[order[:length]]


def _append(held: Sequence[numpy.ndarray], paths: Sequence[Path]) -> None:
    import numpy

    if not held:
        return
    postings = numpy.concatenate(held)
    pieces = (postings >> numpy.uint64(32)) % len(paths)
    for piece, path in enumerate(paths):
        with path.open("ab") as file:
            file.write(postings[pieces == piece].tobytes())


def _candidates(piece: Path, seen: _Seen) -> Iterator[tuple[int, int]]:
    """Pairs that share a gram and may be alike, each once for each distance in the gram's list."""
    import numpy

    postings = numpy.sort(numpy.fromfile(piece, numpy.uint64))
    grams = postings >> numpy.uint64(32)
    numbers = (postings & numpy.uint64(0xFFFFFFFF)).astype(numpy.int64)
    for distance in range(1, _WINDOW + 1):
        same = numpy.flatnonzero(grams[distance:] == grams[:-distance])
        if not len(same):
            return
        for start in range(0, len(same), _TOGETHER):
            part = same[start : start + _TOGETHER]
            one, other = numbers[part], numbers[part + distance]
            may = _may_be_alike(one, other, seen)
            pairs = numpy.unique(numpy.stack([one[may], other[may]], axis=1), axis=0)
            yield from map(tuple, pairs.tolist())


def _may_be_alike(one: numpy.ndarray, other: numpy.ndarray, seen: _Seen) -> numpy.ndarray:
    """Which pairs are not ruled out: each bit in which two texts' bitmaps differ stands for a gram
    that only one of them has (bitmap filter; Sandes et al. 2020), and of those few are allowed."""
    import numpy

    both = seen.sizes[one].astype(numpy.int64) + seen.sizes[other]
    allowed = (1 - NEAR_DUPLICATE) / (1 + NEAR_DUPLICATE) * both + 1e-9
    differ = numpy.bitwise_count(seen.bitmaps[one] ^ seen.bitmaps[other]).sum(axis=1)
    apart = numpy.abs(both - 2 * seen.sizes[one].astype(numpy.int64))
    return numpy.flatnonzero((differ <= allowed) & (apart <= allowed))


def _grams(plain: str) -> numpy.ndarray:
    """Sorted 64-bit hashes of the text's 5-grams, each once; the same in every process."""
    import numpy

    codes = numpy.frombuffer(plain.encode("utf-32-le", "replace"), numpy.uint32).astype(
        numpy.uint64
    )
    if not len(codes):
        return codes
    wide = max(1, len(codes) - _GRAM + 1)
    hashed = numpy.zeros(wide, numpy.uint64)
    for place in range(min(_GRAM, len(codes))):
        hashed = hashed * numpy.uint64(_FACTOR) + codes[place : place + wide]
        hashed ^= hashed >> numpy.uint64(29)
    hashed.sort()  # much faster than numpy.unique on arrays as short as these
    return hashed[numpy.flatnonzero(numpy.append(True, hashed[1:] != hashed[:-1]))]


def _jaccard(one: numpy.ndarray, other: numpy.ndarray) -> float:
    import numpy

    both = numpy.concatenate([one, other])
    both.sort(kind="stable")  # two sorted runs: merged, not sorted
    common = int(numpy.count_nonzero(both[1:] == both[:-1]))
    return common / max(1, len(one) + len(other) - common)
