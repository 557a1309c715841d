"""The health of a set of questions: figures that show a collapse which no single question shows.

Each question may be good and the set bad: all begin alike, repeat each other, copy their chunks or
are of one kind. The figures describe; `alarms` compares them with the gold set, or with a fixed
limit where there is none. They say nothing on the quality of a question, which is the judge's.

Thresholds are ours, chosen so that the sample's gold set raises none; calibrate them on your own.
Give one question a chunk: several answers to one chunk are alike by nature.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, quantiles
from typing import Any, Literal, NamedTuple

from question_optimizer import duplicates, overlap
from question_optimizer.words import LOOKED_AT, word_count

FEWEST = 20  # questions; below, a share says little and only what is certain is told of
MAX_OPENING = 0.3  # share of questions that begin with the same two words
MAX_NEAR_DUPLICATES = 0.1
MAX_COPIES = 0.1  # share over the copy cap of `overlap`
MAX_LENGTH_RATIO = 1.5  # of the median length to gold's, either way
MAX_MIX_DISTANCE = 0.35  # total variation; two samples of 30 of one mix of six are at .2 by chance
MIN_EFFECTIVE = 2.0  # types, where there is no gold to compare with
MAX_SELF_REPETITION = 0.5  # where there is no gold to compare with
MAX_REPETITION_GAIN = 0.25  # above gold's at the same number of questions
MAX_NEAR_GOLD = 0.1
MAX_UNRELATED = 0.2
MARGIN = 0.15  # by which a share must exceed gold's to be gold's no more


class Item(NamedTuple):
    """One question of a set. `chunk_text` is what gold and generated questions are matched by."""

    question: str | None
    chunk_text: str = ""
    query_type: str | None = None
    query_format: str | None = None
    document: str = ""


def set_health(questions: Sequence[Item], *, gold: Sequence[Item] | None) -> dict[str, Any]:
    """Figures of the set, as JSON takes them; shares are of the `n` questions that hold a text.

    - `n`, `left_out` (None or blank), `documents`;
    - `words`: median and quartiles of the length;
    - `types`, `formats`: `shares` of the known ones, `effective_number` exp(entropy), `unknown`
      count, `distance_to_gold` (total variation, ½Σ|p − q|; None where gold knows none);
    - `near_duplicates`: `pairs` of a question and the earlier one it repeats (`repeats`), and
      the `share` of questions in one;
    - `copying`: mean `rate` of word 4-grams that are the chunk's, share `over` the cap of
      `overlap.copies`, and share that shares `nothing` with its chunk;
    - `opening`: the commonest first two `words` and their `share`;
    - `self_repetition`: the share of questions with a word 4-gram that occurs in another question
      (SRS as in DataMorgana, Filice et al., arXiv 2501.12789; the self-repetition score of Shaib et
      al., arXiv 2403.00553, is a mean of logarithms and on another scale);
    - `distinct_2`: distinct word 2-grams over all of them (Li et al. 2016). Both this and
      self-repetition depend on length and on how many questions there are (Shaib et al.), so
      compare sets of the same size only;
    - `gold`: None without gold; else how the `compared` questions stand to the gold question of
      their own chunk: `identical`, `near_duplicate` (identical included) shares and mean `jaccard`
      of character 5-grams: the distinctness against the gold set;
    - `alarms`: see the module; each {"code", "text", "level": "warning" | "note"}.

    Give `gold=None` for the gold set itself. Linear in the number of questions but for many that
    are alike in rare places; 10,000 take some seconds.
    """
    items, theirs = _with_text(questions), None if gold is None else _with_text(gold)
    figures = {**_figures(items), "left_out": len(questions) - len(items)}
    reference = None if theirs is None else _figures(theirs)
    for mix in ("types", "formats"):
        figures[mix]["distance_to_gold"] = reference and _distance(figures[mix], reference[mix])
    figures["gold"] = None if theirs is None else _against_gold(items, theirs)
    alarms = [*_alarms(figures, reference), *_repetition_alarm(items, theirs)]
    return {**figures, "alarms": alarms}


def _with_text(items: Iterable[Item]) -> list[Item]:
    return [item for item in items if item.question and item.question.strip()]


def _texts(items: Sequence[Item]) -> list[str]:
    return [(item.question or "")[:LOOKED_AT] for item in items]


# ---------------------------------------------------------------------- figures


def _figures(items: Sequence[Item]) -> dict[str, Any]:
    texts = _texts(items)
    return {
        "n": len(items),
        "documents": len({item.document for item in items if item.document}),
        "words": _lengths([word_count(text) for text in texts]),
        "types": _mix([item.query_type for item in items]),
        "formats": _mix([item.query_format for item in items]),
        "near_duplicates": _near_duplicates(texts),
        "copying": _copying(items),
        "opening": _opening(texts),
        "self_repetition": self_repetition(texts),
        "distinct_2": distinct(texts, 2),
    }


def _lengths(counts: Sequence[int]) -> dict[str, float | None]:
    """Quartiles with linear interpolation between the closest ranks; None without a question."""
    names = ("lower_quartile", "median", "upper_quartile")
    if not counts:
        return dict.fromkeys(names)
    cut = quantiles([*counts, *counts] if len(counts) == 1 else counts, n=4, method="inclusive")
    return dict(zip(names, cut, strict=True))


def _mix(members: Sequence[str | None]) -> dict[str, Any]:
    counts = Counter(str(member) for member in members if member)
    known = sum(counts.values())
    shares = {member: round(count / known, 4) for member, count in sorted(counts.items())}
    entropy = -sum(c / known * math.log(c / known) for c in counts.values())
    return {
        "shares": shares,
        "effective_number": round(math.exp(entropy), 3) if known else None,
        "unknown": len(members) - known,
    }


def _distance(mix: dict[str, Any], other: dict[str, Any]) -> float | None:
    """Total variation distance of two mixes, 0 to 1; None where one of them knows no member."""
    p, q = mix["shares"], other["shares"]
    if not p or not q:
        return None
    return round(sum(abs(p.get(m, 0) - q.get(m, 0)) for m in sorted({*p, *q})) / 2, 4)


def _near_duplicates(texts: Sequence[str]) -> dict[str, Any]:
    found = duplicates.repeats(texts)
    involved = {i for i, _, _ in found} | {j for _, j, _ in found}
    return {"pairs": len(found), "share": _share(len(involved), len(texts))}


def _copying(items: Sequence[Item]) -> dict[str, Any]:
    """Items without a chunk are left out; all None where none has one."""
    known = [item for item in items if item.chunk_text]
    if not known:
        return {"rate": None, "over": None, "nothing": None}
    rates, over, nothing = [], 0, 0
    for item in known:
        question, chunk = item.question or "", item.chunk_text
        keywords = "keyword" in (item.query_format or "").casefold()
        rates.append(overlap.copy_rate(question, chunk))
        over += overlap.copies(question, chunk, keywords=keywords) is not None
        nothing += overlap.shares_nothing(question, chunk)
    return {
        "rate": round(fmean(rates), 4),
        "over": _share(over, len(known)),
        "nothing": _share(nothing, len(known)),
    }


def _opening(texts: Sequence[str]) -> dict[str, Any]:
    """The first two words; of equally common ones the first in alphabetical order."""
    counts = Counter(" ".join(_words(text)[:2]) for text in texts)
    if not counts:
        return {"words": None, "share": None}
    words = min(counts, key=lambda opening: (-counts[opening], opening))
    return {"words": words, "share": _share(counts[words], len(texts))}


def self_repetition(texts: Sequence[str], n: int = 4) -> float | None:
    """The share of texts with a word n-gram that occurs in another of them (DataMorgana's SRS)."""
    grams = [_grams(text, n) for text in texts]
    holders = Counter(gram for found in grams for gram in found)
    return _share(sum(any(holders[gram] > 1 for gram in found) for found in grams), len(texts))


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Distinct word n-grams of all texts over their number; None where there are none."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = _words(text)
        counts.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return _share(len(counts), sum(counts.values()))


def _grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = _words(text)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)*", text.casefold())


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _against_gold(items: Sequence[Item], gold: Sequence[Item]) -> dict[str, Any]:
    """A chunk with several gold questions counts the one that is most alike."""
    own: dict[str, list[str]] = defaultdict(list)
    for item in gold:
        own[item.chunk_text].append(item.question or "")
    identical, indices = 0, []
    for item in items:
        if item.chunk_text in own:
            question, asked = item.question or "", own[item.chunk_text]
            identical += duplicates.folded(question) in {duplicates.folded(text) for text in asked}
            indices.append(max(duplicates.alike(question, text) for text in asked))
    near = sum(index >= duplicates.NEAR_DUPLICATE for index in indices)
    return {
        "compared": len(indices),
        "identical": _share(identical, len(indices)),
        "near_duplicate": _share(near, len(indices)),
        "jaccard": round(fmean(indices), 4) if indices else None,
    }


# ---------------------------------------------------------------------- alarms

Alarm = dict[str, str]


def _alarm(code: str, text: str, level: Literal["warning", "note"] = "warning") -> Alarm:
    return {"code": code, "text": text, "level": level}


def _alarms(figures: dict[str, Any], gold: dict[str, Any] | None) -> list[Alarm]:
    """A note where there is too little to tell, else what exceeds its limit."""
    found = _left_out(figures)
    if figures["n"] < FEWEST:
        text = f"{figures['n']} questions: shares of fewer than {FEWEST} are not alarmed on"
        return [*found, _alarm("too-few", text, "note")]
    found += _opening_alarm(figures, gold)
    found += _too_many(
        "near-duplicates",
        figures["near_duplicates"]["share"],
        _gold_share(gold, "near_duplicates", "share"),
        MAX_NEAR_DUPLICATES,
        "are near-duplicates of another question",
    )
    copying = figures["copying"]
    found += _too_many(
        "copying",
        copying["over"],
        _gold_share(gold, "copying", "over"),
        MAX_COPIES,
        "copy more of their chunk than a question may",
    )
    found += _too_many(
        "nothing-shared",
        copying["nothing"],
        _gold_share(gold, "copying", "nothing"),
        MAX_UNRELATED,
        "share no word with their chunk: another subject, or wholly their own words",
        level="note",
    )
    found += _length_alarm(figures, gold)
    return [*found, *_mix_alarms(figures), *_near_gold(figures)]


def _gold_share(gold: dict[str, Any] | None, figure: str, key: str) -> float | None:
    return None if gold is None else gold[figure][key]


def _left_out(figures: dict[str, Any]) -> list[Alarm]:
    missing = figures["left_out"]
    if not missing:
        return []
    whole = missing + figures["n"]
    text = f"{missing:,} of {whole:,} questions are missing or empty and left out"
    return [_alarm("left-out", text, "warning" if missing > whole / 10 else "note")]


def _too_many(
    code: str,
    share: float | None,
    gold: float | None,
    limit: float,
    what: str,
    *,
    level: Literal["warning", "note"] = "warning",
) -> list[Alarm]:
    """More than the limit; where the gold set exceeds it too, more than gold's by a margin."""
    most = gold + MARGIN if gold is not None and gold > limit else limit
    if share is None or share <= most:
        return []
    return [_alarm(code, f"{_percent(share)} {what} {_limit(most, gold)}", level)]


def _limit(most: float, gold: float | None) -> str:
    of_gold = "" if gold is None else f", gold set {_percent(gold)}"
    return f"(limit {_round(most)}{of_gold})"


def _percent(share: float) -> str:
    """With a decimal, since 30.4 % are over a limit of 30 %."""
    return f"{100 * share:.1f} %"


def _round(limit: float) -> str:
    return f"{100 * limit:.3g} %"


def _opening_alarm(figures: dict[str, Any], gold: dict[str, Any] | None) -> list[Alarm]:
    opening = figures["opening"]
    return _too_many(
        "same-opening",
        opening["share"],
        _gold_share(gold, "opening", "share"),
        MAX_OPENING,
        f"begin with '{duplicates.folded(opening['words'])}'",
    )


def _length_alarm(figures: dict[str, Any], gold: dict[str, Any] | None) -> list[Alarm]:
    median, theirs = figures["words"]["median"], gold and gold["words"]["median"]
    if not theirs or 1 / MAX_LENGTH_RATIO <= median / theirs <= MAX_LENGTH_RATIO:
        return []
    which = "longer" if median > theirs else "shorter"
    text = f"much {which} than the gold set's: {median:g} words against {theirs:g} (medians)"
    return [_alarm("length", text)]


def _mix_alarms(figures: dict[str, Any]) -> list[Alarm]:
    found = []
    for mix, noun in (("types", "query types"), ("formats", "query formats")):
        distance, effective = figures[mix]["distance_to_gold"], figures[mix]["effective_number"]
        shares = figures[mix]["shares"]
        if effective is None or figures["n"] - figures[mix]["unknown"] < FEWEST:
            continue
        commonest = max(shares, key=lambda member: shares[member])
        most = f"{_percent(shares[commonest])} are {commonest}"
        if distance is not None and distance > MAX_MIX_DISTANCE:
            much = f"{_percent(distance)} differ, limit {_round(MAX_MIX_DISTANCE)}"
            text = f"the {noun} are not those of the gold set ({much}): {most}"
            found.append(_alarm(f"{mix}-mix", text))
        elif distance is None and mix == "types" and effective < MIN_EFFECTIVE:
            text = f"{effective:.1f} {noun} in effect (at least {MIN_EFFECTIVE:g} wanted): {most}"
            found.append(_alarm("types-mix", text))
    return found


def _near_gold(figures: dict[str, Any]) -> list[Alarm]:
    against = figures["gold"]
    if not against or against["compared"] < FEWEST or against["near_duplicate"] <= MAX_NEAR_GOLD:
        return []
    text = (
        f"{_percent(against['near_duplicate'])} repeat the gold question of their own chunk, "
        f"{_percent(against['identical'])} word by word (limit {_round(MAX_NEAR_GOLD)}): has the "
        "generator seen it?"
    )
    return [_alarm("near-gold", text)]


def _repetition_alarm(items: Sequence[Item], gold: Sequence[Item] | None) -> list[Alarm]:
    """Compared at the same number of questions, since repetition grows with it."""
    n = len(items) if gold is None else min(len(items), len(gold))
    if n < FEWEST:
        return []
    share = self_repetition(_sample(_texts(items), n)) or 0.0
    theirs = None if gold is None else self_repetition(_sample(_texts(gold), n)) or 0.0
    most = MAX_SELF_REPETITION if theirs is None else theirs + MAX_REPETITION_GAIN
    if share <= most:
        return []
    text = (
        f"{_percent(share)} hold a run of four words that another question holds "
        f"{_limit(most, theirs)}: read some that do, and ask for more kinds of questions"
    )
    return [_alarm("self-repetition", text)]


def _sample(texts: Sequence[str], n: int) -> list[str]:
    return random.Random(0).sample(list(texts), n)
