"""What is wrong with a gold set: everything at once, and what size of difference it can show.

An error is certain and makes later figures wrong or the file unreadable; a warning is found by a
rule of thumb and wants a look. A file that no phase could read is linted too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from question_optimizer import files, gold, splits
from question_optimizer.duplicates import folded, near_duplicates
from question_optimizer.gates import looks_odd
from question_optimizer.hostile_text import one_line, printable, storable
from question_optimizer.overlap import copies
from question_optimizer.records import GoldItem, Split
from question_optimizer.references import refers_outside
from question_optimizer.statistics import ASSUMED_DEVIATION, smallest_detectable, wins_needed

CODES = (
    "missing-field",
    "no-persona",
    "duplicate",
    "near-duplicate",
    "refers-outside",
    "copies-chunk",
    "looks-odd",
    "split-leak",
    "too-few",
)
# Below 20 untied pairs the exact sign test misses a prompt that wins 4 of 5 comparisons more often
# than once in five (80 % power needs 20). Dev and test both choose between prompts. DSPy's guide to
# its optimisers speaks of "very few examples (around 10)".
FEWEST: dict[Split, int] = {"train": 10, "dev": 20, "test": 20}
_TEXTS = ("chunk_text", "persona_description", "gold_question")
_SHOWN = 80  # characters of anything quoted from the file
_REMEDY = "correct it or rerun annotate_chunks.py"


class Finding(NamedTuple):
    """A defect. `entry` counts from 1 and is None for the whole set, as is `chunk_id` where there
    is none. `message` is one printable line: what is wrong, where, and what to do."""

    code: str
    severity: Literal["error", "warning"]
    entry: int | None
    chunk_id: str | None
    message: str


class Report(NamedTuple):
    """All findings on a set of `items` entries; `sizes` counts those that can be read, by side.

    `can_show` says what size of difference the test side can show, for a clean set too.
    """

    items: int
    sizes: dict[Split, int]
    findings: list[Finding]
    can_show: str

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)


class _Entry(NamedTuple):
    """An entry as far as it can be read: "" stands for a text that is missing or none."""

    number: int
    row: dict[str, Any]
    chunk_text: str
    persona: str
    question: str
    side: Split | None

    def finding(
        self, code: str, message: str, *, severity: Literal["error", "warning"] = "error"
    ) -> Finding:
        chunk_id = _shown(self.chunk_id) if self.chunk_id else None
        return Finding(code, severity, self.number, chunk_id, message)

    @property
    def chunk_id(self) -> str:
        """The id as text, "" if there is none: 1 and "1" are the same point."""
        value = self.row.get("chunk_id")
        usable = isinstance(value, str) or (type(value) is int and value.bit_length() <= 64)
        return str(value) if usable else ""


def lint(rows: object) -> Report:
    """All findings on the parsed JSON of a gold set, whatever it is; never an exception."""
    if not isinstance(rows, list):
        message = "must be a list of gold items; rerun annotate_chunks.py"
        finding = Finding("missing-field", "error", None, None, message)
        return Report(0, _sizes([]), [finding], _can_show(0))
    items = [_item(row) for row in rows]
    if any(isinstance(item, GoldItem) and item.split is None for item in items):
        gold.assign_sides([item for item in items if isinstance(item, GoldItem)])
    sizes = _sizes(item.split for item in items if isinstance(item, GoldItem))
    entries = [
        _entry(number, row, item)
        for number, (row, item) in enumerate(zip(rows, items, strict=True), 1)
        if isinstance(row, dict)
    ]
    findings = [*_unreadable(rows, items), *_too_few(len(rows), sizes)]
    for check in _CHECKS:
        findings += check(entries)
    findings.sort(key=lambda f: (f.entry is None, f.entry, CODES.index(f.code)))
    return Report(len(rows), sizes, findings, _can_show(sizes["test"]))


def render(report: Report) -> str:
    """The report as plain text: a line for each finding, then the counts, then what it can show."""
    lines = []
    for code, severity, entry, chunk_id, message in report.findings:
        place = "the set" if entry is None else f"entry {entry}"
        chunk = f" (chunk {chunk_id})" if chunk_id else ""
        lines.append(printable(f"{place}{chunk}: {severity} {code}: {message}"))
    sides = ", ".join(f"{count} {side}" for side, count in report.sizes.items())
    errors, warnings = report.count("error"), report.count("warning")
    found = f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}"
    lines.append(f"{_counted(report.items, 'item')} ({sides}): {found}")
    return "\n".join([*lines, report.can_show])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def as_dict(report: Report) -> dict[str, Any]:
    """The report as JSON takes it."""
    return {
        "items": report.items,
        "sizes": dict(report.sizes),
        "errors": report.count("error"),
        "warnings": report.count("warning"),
        "can_show": report.can_show,
        "findings": [finding._asdict() for finding in report.findings],
    }


# ---------------------------------------------------------------------- what can be read


def _item(row: object) -> GoldItem | list[str]:
    """The item as `read_gold` would read it, or what is wrong with it."""
    try:
        item = GoldItem.model_validate(gold.with_id(row))
    except ValidationError as error:
        return files.faults(error)
    except RecursionError:
        return ["record: nested too deeply"]
    if isinstance(item.chunk_id, int) and item.chunk_id.bit_length() > 64:
        return ["chunk_id: no point id has more than 64 bits"]
    return item


def _entry(number: int, row: dict[str, Any], item: GoldItem | list[str]) -> _Entry:
    chunk_text, persona, question = (_text(row, key) for key in _TEXTS)
    side = item.split if isinstance(item, GoldItem) else row.get("split")
    known: Split | None = next((name for name in splits.SHARES if name == side), None)
    return _Entry(number, row, chunk_text, persona, question, known)


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return value if isinstance(value, str) else ""


def _unreadable(rows: list[Any], items: list[GoldItem | list[str]]) -> Iterator[Finding]:
    """What keeps `read_gold` from reading the set, and relied-on texts that are blank."""
    for number, (row, item) in enumerate(zip(rows, items, strict=True), 1):
        if not isinstance(row, dict):
            message = f"is no object but {_kind(row)}; {_REMEDY}"
            yield Finding("missing-field", "error", number, None, message)
            continue
        entry = _entry(number, row, item)
        faults = [*(item if isinstance(item, list) else []), *_blank(row)]
        # One for each field: of a union's, pydantic has a fault for each member.
        for fault in {_field(fault): fault for fault in reversed(faults)}.values():
            yield entry.finding("missing-field", f"{_shown(fault, 200)}; {_REMEDY}")


def _blank(row: dict[str, Any]) -> list[str]:
    keys = ("chunk_text", "gold_question")
    return [f"{key}: is blank" for key in keys if (text := _text(row, key)) and text.isspace()]


def _field(fault: str) -> str:
    return fault.partition(":")[0].partition(".")[0]


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: object, most: int = _SHOWN) -> str:
    """`value` in one printable line of at most `most` characters and an ellipsis."""
    text = one_line(str(value)[: 4 * most])
    return text if len(text) <= most else f"{text[:most]}…"


# ---------------------------------------------------------------------- entry by entry


def _no_persona(entries: list[_Entry]) -> Iterator[Finding]:
    for entry in entries:
        given = entry.row.get("persona_description")
        if isinstance(given, str) and not given.strip():
            yield entry.finding(
                "no-persona", f"the persona description is empty: say who asks; {_REMEDY}"
            )


def _refers_outside(entries: list[_Entry]) -> Iterator[Finding]:
    for entry in entries:
        if phrase := refers_outside(entry.question):
            yield entry.finding(
                "refers-outside",
                f'"{_shown(phrase)}" refers to what its reader cannot see; name the thing',
            )


def _copies_chunk(entries: list[_Entry]) -> Iterator[Finding]:
    for entry in entries:
        keywords = "keyword" in _text(entry.row, "query_format").casefold()
        if copied := copies(entry.question, entry.chunk_text, keywords=keywords):
            yield entry.finding(
                "copies-chunk",
                f"{copied}; put it in the words of someone who has not read it",
                severity="warning",
            )


def _looks_odd(entries: list[_Entry]) -> Iterator[Finding]:
    for entry in entries:
        if entry.question.strip() and (oddity := looks_odd(entry.question)):
            yield entry.finding(
                "looks-odd", f"the question {oddity}; rewrite it", severity="warning"
            )
        for key in _TEXTS:
            if _has_controls(_text(entry.row, key)):
                yield entry.finding(
                    "looks-odd",
                    f"{key} holds control characters or terminal escapes; remove them",
                    severity="warning",
                )


def _has_controls(text: str) -> bool:
    """Form feeds and carriage returns, which extracted pages hold, are let pass."""
    plain = storable(text.replace("\f", "").replace("\r", ""))
    return printable(plain) != plain


# ---------------------------------------------------------------------- the same twice


def _duplicates(entries: list[_Entry]) -> Iterator[Finding]:
    """The same chunk id, else the same question; each is told of once, at the later entry."""
    by_id: dict[str, _Entry] = {}
    by_question: dict[str, _Entry] = {}
    for entry in entries:
        first = by_id.setdefault(entry.chunk_id, entry) if entry.chunk_id else entry
        if first is not entry:
            yield entry.finding(
                "duplicate", f"the chunk id is that of entry {first.number} too; keep one of them"
            )
        question = folded(entry.question)
        again = by_question.setdefault(question, entry) if question else entry
        if again is not entry and first is entry:
            yield entry.finding(
                "duplicate", f"the question is that of entry {again.number} too; keep one of them"
            )


def _near_duplicates(entries: list[_Entry]) -> Iterator[Finding]:
    """Each question is told of once, with the earliest that it is like."""
    unique = list({folded(entry.question): entry for entry in reversed(entries)}.values())
    unique.sort(key=lambda entry: entry.number)
    told: set[int] = set()
    for i, j, index in near_duplicates([entry.question for entry in unique]):
        earlier, entry = unique[i], unique[j]
        if j not in told:
            told.add(j)
            like = f"the question is nearly that of entry {earlier.number} ({index:.2f} alike)"
            if earlier.chunk_text == entry.chunk_text:
                advice = "keep one of them"
            else:
                advice = "which chunk answers it is ambiguous: say what tells the two apart"
            yield entry.finding("near-duplicate", f"{like}; {advice}", severity="warning")


# ---------------------------------------------------------------------- the split


def _split_leaks(entries: list[_Entry]) -> Iterator[Finding]:
    """A unit of the split on two sides, a document on two sides, the same text on two sides."""
    told: set[int] = set()
    for key, what in (("split_group", "split group"), ("document_id", "document")):
        for odd, shared in _torn(entries, partial(_text_of, key=key)):
            if odd.number not in told:
                told.update(entry.number for entry in shared)
                yield _leak(odd, shared, what, _shown(odd.row[key]))
    for odd, shared in _torn(entries, lambda entry: " ".join(entry.chunk_text.split())):
        if odd.number not in told:
            yield _leak(odd, shared, "text", _shown(odd.chunk_text, 40))


def _text_of(entry: _Entry, key: str) -> str:
    return _text(entry.row, key)


def _torn(
    entries: list[_Entry], unit_of: Callable[[_Entry], str]
) -> Iterator[tuple[_Entry, list[_Entry]]]:
    """(the first entry that is not where most are, all of them), per value on several sides."""
    units: dict[str, list[_Entry]] = defaultdict(list)
    for entry in entries:
        if entry.side and (unit := unit_of(entry)).strip():
            units[unit].append(entry)
    for shared in units.values():
        (most, _), *others = Counter(entry.side for entry in shared).most_common()
        if others:
            yield next(entry for entry in shared if entry.side != most), shared


def _leak(odd: _Entry, shared: list[_Entry], what: str, name: str) -> Finding:
    """A warning where the set is split by something finer than documents on purpose."""
    counts = Counter(entry.side for entry in shared)
    sides = ", ".join(f"{counts[side]} {side}" for side in splits.SHARES if counts[side])
    finer = what == "document" and all(
        entry.row.get("split_group") not in (None, "", odd.row["document_id"]) for entry in shared
    )
    if finer:
        message = "split by section or chunk, so neighbours that share text may stand apart"
        severity: Literal["error", "warning"] = "warning"
    else:
        message, severity = "put all of it on one side", "error"
    return odd.finding("split-leak", f'{what} "{name}": {sides}; {message}', severity=severity)


def _sizes(sides: Iterable[Split | None]) -> dict[Split, int]:
    counts = Counter(sides)
    return {side: counts[side] for side in splits.SHARES}


def _too_few(items: int, sizes: dict[Split, int]) -> Iterator[Finding]:
    """An empty side is an error, since a phase then refuses to run.

    A set of which nothing can be read has findings enough.
    """
    if not items:
        message = "holds no gold question yet; run annotate_chunks.py first"
        yield Finding("too-few", "error", None, None, message)
        return
    for side, size in sizes.items() if any(sizes.values()) else ():
        if size == 0:
            message = f"no item in the {side} split; annotate chunks of more documents"
            yield Finding("too-few", "error", None, None, message)
        elif size < FEWEST[side]:
            message = f"{size} {side} items are fewer than {FEWEST[side]}; annotate more chunks"
            yield Finding("too-few", "warning", None, None, message)


def _can_show(n: int) -> str:
    """What a test side of n items can show: a mean score difference, and a number of wins."""
    wins = wins_needed(n)
    if wins is None:
        return f"{n} test items: too few to show any difference; about 40 are wanted"
    return (
        f"{n} test items: can show a difference of {smallest_detectable(n):.2f} in the score "
        f"(80 % power, if differences scatter by {ASSUMED_DEVIATION:g}) or {wins} wins of {n}"
    )


_CHECKS: tuple[Callable[[list[_Entry]], Iterator[Finding]], ...] = (
    _no_persona,
    _duplicates,
    _near_duplicates,
    _refers_outside,
    _copies_chunk,
    _looks_odd,
    _split_leaks,
)
