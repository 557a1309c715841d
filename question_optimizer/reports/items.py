"""Every item of a run: regressions first, each with its texts, scores, reasons and differences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from question_optimizer.reports.figures import plural, signed, two
from question_optimizer.reports.markup import Child, Html, details, join, tag
from question_optimizer.verdict import same_models

MOST_ITEMS = 500  # shown in full
MOST_CHARACTERS = 4_000_000  # of all items together, so that a browser opens the page at once
_SHORT_CHUNK = 400  # characters; what is longer is folded
_EXCERPT = 160
_LONGEST = 8_000  # characters of one text
_MOST_WORDS = 400  # of a question that is compared word by word; SequenceMatcher is quadratic

Row = Mapping[str, Any]


class Cast(NamedTuple):
    """Which arms there are: the one compared with, those that would replace it, and their order."""

    baseline: str
    candidates: Sequence[str]
    order: Sequence[str]


class Entry(NamedTuple):
    """One item: its rows by arm, each in order of the repeats, and two arms' mean scores."""

    rows: dict[str, list[Row]]
    before: float | None
    after: float | None

    @property
    def difference(self) -> float | None:
        """After minus before; None unless a repeat is scored in both."""
        if self.before is None or self.after is None:
            return None
        return round(self.after - self.before, 9)  # means of equal scores may differ in a last bit

    @property
    def bucket(self) -> str:
        if self.difference is None:
            return "Could not be scored"
        if self.difference == 0:
            return "Unchanged"
        return "Improved" if self.difference > 0 else "Regressed"


BUCKETS = {
    "Regressed": "largest loss first",
    "Improved": "largest gain first",
    "Unchanged": "the same score in both",
    "Could not be scored": "one of the two has no score, or another model had a hand in it",
}


def entries_of(rows: Iterable[Row], cast: Cast) -> list[Entry]:
    """The items in order of their first row; what changed is the first candidate's doing."""
    after = next(iter(cast.candidates), "")
    by_item: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        by_item.setdefault(row["item"], {}).setdefault(row["arm"], []).append(row)
    found = []
    for arms in by_item.values():
        for of_arm in arms.values():
            of_arm.sort(key=lambda row: row.get("repeat") or 0)
        found.append(Entry(arms, *_means(arms.get(cast.baseline, []), arms.get(after, []))))
    return found


def _means(before: Sequence[Row], after: Sequence[Row]) -> tuple[float | None, float | None]:
    """Each arm's mean score over the repeats scored in both, as the verdict compares them.

    One is None where there is no such repeat.
    """
    first, last = (
        {row.get("repeat") or 0: row for row in rows if row.get("score") is not None}
        for rows in (before, after)
    )
    common = sorted(first.keys() & last.keys())
    both = [repeat for repeat in common if same_models(first[repeat], last[repeat])]
    if both:
        first, last = ({repeat: rows[repeat] for repeat in both} for rows in (first, last))
    elif first and last:
        last = {}  # in no repeat both: two means would compare what was not compared
    scores = ([row["score"] for row in rows.values()] for rows in (first, last))
    before_mean, after_mean = map(_mean, scores)
    return before_mean, after_mean


def items_section(entries: Sequence[Entry], cast: Cast) -> Html:
    """All buckets with their counts, and in them as many items in full as a page can hold."""
    buckets: dict[str, list[Entry]] = {name: [] for name in BUCKETS}
    for entry in entries:
        buckets[entry.bucket].append(entry)
    for found in buckets.values():
        found.sort(key=lambda entry: -abs(entry.difference or 0.0))
    shown = _within_limits(
        (name, _item(number, entry, cast))
        for number, (name, entry) in enumerate(
            ((name, entry) for name, found in buckets.items() for entry in found), 1
        )
    )
    parts = [
        part
        for place, (name, found) in enumerate(buckets.items(), 1)
        for part in _bucket(place, name, len(found), shown[name])
    ]
    links = (
        tag("li", tag("a", name, href=f"#bucket-{place}"), f": {len(found):,}")
        for place, (name, found) in enumerate(buckets.items(), 1)
    )
    return join([tag("ul", *links), *parts], "\n")


def _within_limits(made: Iterator[tuple[str, Html]]) -> dict[str, list[Html]]:
    """The first items by bucket, up to `MOST_ITEMS` and `MOST_CHARACTERS`; at least one."""
    shown: dict[str, list[Html]] = {name: [] for name in BUCKETS}
    characters = 0
    for count, (name, item) in enumerate(made, 1):
        characters += len(item)
        if count > 1 and (count > MOST_ITEMS or characters > MOST_CHARACTERS):
            break
        shown[name].append(item)
    return shown


def _bucket(place: int, name: str, count: int, shown: Sequence[Html]) -> Iterator[Html]:
    order = f", {BUCKETS[name]}" if count else ""
    yield tag("h3", f"{name}: {plural(count, 'item')}{order}", id=f"bucket-{place}")
    yield from shown
    if left := count - len(shown):
        yield tag(
            "p",
            f"{plural(left, 'item')} more would make this page too large; all are in ",
            tag("code", "scores.jsonl"),
            ".",
        )


# ---------------------------------------------------------------------- one item


def _item(place: int, entry: Entry, cast: Cast) -> Html:
    first = next(iter(entry.rows.values()))[0]
    source = next(iter(entry.rows.get(cast.baseline, [])), None)
    arms = (
        _arm(arm, entry.rows[arm], source if arm in cast.candidates else None, cast.baseline)
        for arm in cast.order
        if arm in entry.rows
    )
    return tag(
        "article",
        _heading(place, entry, first),
        folded_chunk(str(first.get("chunk_text") or "")),
        tag("dl", *_pair("Persona", first.get("persona_description")),
            *_pair("Gold question", first.get("gold_question"))),
        tag("div", *arms, class_="arms"),
        id=f"item-{place}",
        class_="item regressed" if entry.bucket == "Regressed" else "item",
        tabindex=-1,
    )  # fmt: skip


def _heading(place: int, entry: Entry, first: Row) -> Html:
    difference = entry.difference
    change: Child = "not scored in both"
    if difference is not None:
        kind = "loss" if difference < 0 else "gain" if difference > 0 else None
        change = tag("span", signed(difference), class_=kind)
    return tag(
        "h4",
        tag("a", f"Item {place}", href=f"#item-{place}"),
        change,
        tag("span", f"{two(entry.before)} → {two(entry.after)}"),
        tag("small", first.get("document") or ""),
    )


def folded_chunk(chunk: str) -> Html:
    """The chunk; a long one folded behind its beginning."""
    whole = tag("div", cut(chunk), class_="chunk", dir="auto")
    if len(chunk) <= _SHORT_CHUNK:
        return whole
    excerpt = tag("span", f": {' '.join(chunk[:_EXCERPT].split())}…", class_="excerpt")
    said = join([f"Chunk, {plural(len(chunk), 'character')}", excerpt])
    return details(tag("small", said), whole)


def _pair(name: str, value: object) -> Iterator[Html]:
    if value:
        yield tag("dt", name)
        yield tag("dd", cut(str(value)), dir="auto")


def _arm(arm: str, rows: Sequence[Row], source: Row | None, before: str) -> Html:
    """What one arm made of the item: each distinct question once, with the runs that wrote it."""
    questions: dict[str, list[Row]] = {}
    for row in rows:
        questions.setdefault(row.get("question") or "", []).append(row)
    first, *others = [_written(same, len(questions) > 1) for same in questions.values()]
    return tag(
        "section",
        tag("h5", arm, *_score(rows)),
        first,
        _changes(source, rows[0], before) if source else None,
        *_pairwise(rows),
        details(tag("small", plural(len(others), "other question"), " in the repeats"), *others)
        if others
        else None,
        class_="arm",
    )


def _score(rows: Sequence[Row]) -> Iterator[Html]:
    """The mean score, those it is the mean of, and passed or not."""
    scores = [row["score"] for row in rows if row.get("score") is not None]
    if not scores:
        yield tag("span", "no score")
        return
    yield tag("span", f"{sum(scores) / len(scores):.2f}")
    if len(rows) > 1:
        single = " ".join("–" if r.get("score") is None else f"{r['score']:.2f}" for r in rows)
        yield tag("small", f"mean of {len(scores)}: {single}")
    passed = [bool(row["passed"]) for row in rows if row.get("passed") is not None]
    if passed:
        all_, none = all(passed), not any(passed)
        words = "✓ passed" if all_ else "✗ not passed" if none else _some(passed)
        yield tag("span", words, class_="gain" if all_ else "loss" if none else None)


def _some(passed: Sequence[bool]) -> str:
    return f"passed {sum(passed)} of {len(passed)}"


def _written(rows: Sequence[Row], told_apart: bool) -> Html:
    """One question, and what gates and judge said of it; what repeats added is folded."""
    row = rows[0]
    question = row.get("question")
    form = " · ".join(str(row[k]) for k in ("query_type", "query_format", "model") if row.get(k))
    first, *others = _remarks(rows)
    return join(
        [
            tag("small", _runs(rows)) if told_apart else None,
            tag("p", cut(question), class_="question", dir="auto")
            if question
            else tag("p", tag("em", "No question.")),
            tag("p", tag("small", form)) if form else None,
            first,
            details(tag("small", plural(len(others), "other remark"), " in the repeats"), *others)
            if others
            else None,
        ]
    )


def _runs(rows: Sequence[Row]) -> str:
    numbers = ", ".join(str((row.get("repeat") or 0) + 1) for row in rows)
    return f"{'run' if len(rows) == 1 else 'runs'} {numbers}"


def _remarks(rows: Sequence[Row]) -> list[Html]:
    """What was said in each run, without what was said before."""
    return list(dict.fromkeys(join(_judged(row)) for row in rows))


def _judged(row: Row) -> Iterator[Html]:
    for gate in row.get("gates") or []:
        lead = tag("strong", "✗ Gate ", gate.get("gate", ""), ": ")
        yield tag("p", lead, cut(str(gate.get("reason", ""))), class_="loss", dir="auto")
    if row.get("error"):
        yield tag("p", tag("strong", "No score: "), cut(str(row["error"])), dir="auto")
    if criteria := row.get("criteria"):
        listed = " · ".join(f"{name.replace('_', ' ')} {mark}" for name, mark in criteria.items())
        yield tag("p", tag("small", listed))
    if row.get("feedback"):
        yield tag("p", tag("small", "Judge: "), cut(str(row["feedback"])), dir="auto")


_OUTCOMES = {"win": "✓ preferred to", "tie": "= on a par with", "loss": "✗ not preferred to"}


def _pairwise(rows: Sequence[Row]) -> Iterator[Html]:
    """The blind comparisons with another arm, and the reasons given in each order."""
    by_outcome: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("pairwise"):
            by_outcome.setdefault(_outcome(row["pairwise"]), []).append(row)
    for outcome, same in by_outcome.items():
        runs = f", {_runs(same)}" if len(by_outcome) > 1 else ""
        yield tag("p", f"Side by side{runs}: {outcome}")
    reasons = dict.fromkeys(
        str(reason)
        for row in rows
        for reason in (row.get("pairwise") or {}).get("reasons") or []
        if reason
    )
    if reasons:
        listed = (tag("li", cut(reason), dir="auto") for reason in reasons)
        yield details(tag("small", "Reasons, in each order"), tag("ul", *listed))


def _outcome(found: Mapping[str, Any]) -> str:
    remarks = [
        None if found.get("asked", True) else "decided without the judge",
        "the two orders disagree" if found.get("consistent") is False else None,
        found.get("error") or None,
    ]
    said = "; ".join(str(remark) for remark in remarks if remark)
    words = _OUTCOMES.get(found.get("outcome") or "", "not compared with")
    return f"{words} {found.get('against', '')}{f' ({said})' if said else ''}"


# ---------------------------------------------------------------------- the questions' difference


def _changes(source: Row, row: Row, before: str) -> Html | None:
    """The question as a correction of the one it is compared with."""
    old, new = source.get("question") or "", row.get("question") or ""
    if not old or not new:
        return None
    if old == new:
        return tag("p", tag("small", f"The same question as {before}."))
    changes = word_changes(old, new)
    if changes is None:
        return tag("p", tag("small", f"Too long to compare with {before} word by word."))
    if not any(kind == "=" and re.search(r"\w", part) for kind, part in changes):
        return tag("p", tag("small", f"Nothing of {before}'s wording is left."))
    marks = {"=": None, "-": "del", "+": "ins"}
    shown = [tag(name, part) if (name := marks[kind]) else part for kind, part in changes]
    return tag("p", tag("small", f"Changes from {before}: "), join(shown, " "), dir="auto")


def word_changes(old: str, new: str) -> list[tuple[str, str]] | None:
    """(kind, text) of what stays "=", goes "-" and comes "+"; None if either is too long.

    The "=" and "+" parts together are the words of `new`. A single word that stays between two
    that do not is shown as changed with them: a reader follows phrases, not confetti.
    """
    a, b = old.split(), new.split()
    if max(len(a), len(b)) > _MOST_WORDS:
        return None
    blocks = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    ends = {(0, 0), (len(a) - 1, len(b) - 1), (len(a), len(b))}  # the last is the matcher's own
    found, at_a, at_b = [], 0, 0
    for block in blocks:
        if block.size < 2 and (block.a, block.b) not in ends:
            continue
        found += [
            ("-", a[at_a : block.a]),
            ("+", b[at_b : block.b]),
            ("=", b[block.b : block.b + block.size]),
        ]
        at_a, at_b = block.a + block.size, block.b + block.size
    return [(kind, " ".join(part)) for kind, part in found if part]


def _mean(scores: Sequence[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None


def cut(said: str) -> str:
    """A text of endurable length; what is left out is told."""
    if len(said) <= _LONGEST:
        return said
    return f"{said[:_LONGEST]} […] ({plural(len(said) - _LONGEST, 'character')} more)"
