"""Questions that are the same again: in another spelling, or alike in their character 5-grams."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from question_optimizer.words import ACRONYM, LOOKED_AT, SIGN

NEAR_DUPLICATE = 0.8  # Jaccard index of character 5-grams
_DENIALS = frozenset("not no never without cannot nicht ohne kein keine pas sans non sin".split())


# Soft hyphens of a PDF, zero-width and bidirectional marks: nobody sees that they are there.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")


def folded(text: str) -> str:
    """What is the same in two spellings of a question: case, spaces, quotes around, "?" at the end,
    and characters that nobody sees.

    Signs within stay, since `->` and `->>` may be all that two questions differ in.
    """
    return respelt(text[:LOOKED_AT])


def respelt(text: str) -> str:
    """`folded`, of the whole text."""
    visible = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return " ".join(visible.casefold().split()).strip("\"'“”„«»`").rstrip("?.! ")


def near_duplicates(
    texts: Sequence[str], threshold: float = NEAR_DUPLICATE
) -> list[tuple[int, int, float]]:
    """(i, j, Jaccard index) with i < j of all pairs whose character 5-grams are alike enough.

    Exact, and not all pairs are compared: two sets can reach the threshold only if they share one
    of the rarest few grams of each (prefix filter; Chaudhuri et al. 2006, Bayardo et al. 2007).
    Texts without a letter are like none.
    """
    sets = [shingles(text) for text in texts]
    seen = Counter(gram for grams in sets for gram in grams)
    by_gram: dict[str, list[int]] = defaultdict(list)
    found = []
    for j, grams in enumerate(sets):
        rarest = _rarest(grams, seen, threshold)
        for i in sorted({i for gram in rarest for i in by_gram[gram]}):
            if (index := jaccard(sets[i], grams)) >= threshold:
                found.append((i, j, index))
        for gram in rarest:
            by_gram[gram].append(j)
    return sorted(found)


def _rarest(grams: frozenset[str], seen: Counter[str], threshold: float) -> list[str]:
    in_order = sorted(grams, key=lambda gram: (seen[gram], gram))
    return in_order[: prefix_length(grams, threshold)]


def prefix_length(grams: frozenset[str], threshold: float) -> int:
    """How many of a set's grams must be looked at so that no set like it is missed."""
    return len(grams) - math.ceil(threshold * len(grams) - 1e-9) + 1


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """|a ∩ b| / |a ∪ b|; one of them must hold something."""
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def shingles(text: str, n: int = 5) -> frozenset[str]:
    """The character n-grams of the `folded` text; what is shorter is one gram, nothing is none."""
    plain = folded(text)
    if not plain:
        return frozenset()
    return frozenset(plain[i : i + n] for i in range(max(1, len(plain) - n + 1)))


def repeats(
    texts: Sequence[str], threshold: float = NEAR_DUPLICATE
) -> list[tuple[int, int, float]]:
    """(i, j, Jaccard index) with i < j: text j is alike enough to the earlier text i.

    Each j occurs once, and i never as a j: a text that repeats another is not compared with again.
    So a set that has collapsed costs no more than a varied one, as in `near_duplicates` it does.
    Two filters, of prefixes and of positions in them (PPJoin; Xiao et al. 2008), lose no pair.
    """
    sets = [shingles(text) for text in texts]
    seen = Counter(gram for grams in sets for gram in grams)
    index: _Index = defaultdict(lambda: defaultdict(list))
    found = []
    for j, grams in enumerate(sets):
        rarest = _rarest(grams, seen, threshold)
        like = _first_alike(
            grams, _candidates(rarest, len(grams), index, threshold), sets, threshold
        )
        if like is not None:
            found.append((like[0], j, like[1]))
            continue
        for place, gram in enumerate(rarest):
            index[gram][len(grams), place].append(j)
    return found


_Index = defaultdict[str, defaultdict[tuple[int, int], list[int]]]  # gram: {(size, place): texts}


def _candidates(rarest: Sequence[str], size: int, index: _Index, threshold: float) -> Iterator[int]:
    """Texts whose first gram in common stands so early that enough others can follow."""
    for place, gram in enumerate(rarest):
        if gram not in index:
            continue
        for (other_size, other_place), texts in index[gram].items():
            most = min(size - place, other_size - other_place)
            if most >= threshold / (1 + threshold) * (size + other_size) - 1e-9:
                yield from texts


def _first_alike(
    grams: frozenset[str],
    candidates: Iterator[int],
    sets: Sequence[frozenset[str]],
    threshold: float,
) -> tuple[int, float] | None:
    compared: set[int] = set()
    for i in candidates:
        if i not in compared and (index := jaccard(sets[i], grams)) >= threshold:
            return i, index
        compared.add(i)
    return None


def alike(a: str, b: str) -> float:
    """The Jaccard index of two texts' character 5-grams, 0 if one of them has none."""
    of_a, of_b = shingles(a), shingles(b)
    return jaccard(of_a, of_b) if of_a and of_b else 0.0


def near_duplicate_among(text: str, others: Sequence[str]) -> tuple[str, float] | None:
    """The first of the others that the text nearly repeats, and their Jaccard index.

    `->` and `->>`, UPDATE and DELETE, 16 and 32: two questions, however alike their letters.
    """
    grams = shingles(text)
    length = len(folded(text))
    for other in others:
        there = len(folded(other))
        if not grams or not 0.5 * length - 8 <= there <= 2 * length + 8:
            continue
        index = jaccard(grams, shingles(other)) if there else 0.0
        if index >= NEAR_DUPLICATE and not differ_in_a_name(text, other):
            return other, index
    return None


def differ_in_a_name(a: str, b: str) -> bool:
    """Whether one has a sign, a number, an identifier or a "not" that the other has not."""
    one, two = ({t.strip(".,;:!?\"'()“”") for t in text[:LOOKED_AT].split()} for text in (a, b))
    folded_one, folded_two = ({token.casefold() for token in tokens} for tokens in (one, two))
    only = [t for t in one if t.casefold() not in folded_two]
    only += [t for t in two if t.casefold() not in folded_one]
    return any(
        SIGN.search(token) or ACRONYM.search(token) or token.casefold() in _DENIALS
        for token in only
    )
