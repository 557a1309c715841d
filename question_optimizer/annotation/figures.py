"""What the event log tells about annotators: pace, sources, distributions, agreement, warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any, NamedTuple

from question_optimizer.annotation.store import AnnotationStore, Event
from question_optimizer.hostile_text import printable
from question_optimizer.records import Chunk, GoldItem, Persona
from question_optimizer.statistics import Agreement, Estimate, agreement, wilson

_ENOUGH = 20  # decisions from which a share says anything
_MOST_UNEDITED = 0.9
_TOO_FAST_SECONDS = 2.0  # nobody reads a chunk in less
_HUB = 0.5
_FEWEST_COMPARED = 5
_ELSEWHERE = "outside the sample"


class Person(NamedTuple):
    """One annotator's figures; `decided` are chunks of the sample, `outside` others.

    `seconds` is active time, undone and repeated decisions included.

    `first` counts the items picked or edited from the suggestion that stood first, of `placed`;
    `chance` is the share that would come out if place did not matter.
    """

    name: str
    decided: int
    outside: int
    gold: int
    skipped: dict[str, int]
    put_off: dict[str, int]
    repeats: int
    undone: int
    timed: int
    seconds: float
    median_seconds: float | None
    origins: dict[str, int]
    first: int
    placed: int
    chance: float
    blind: int
    bad: int
    too_fast: int


class Comparison(NamedTuple):
    """Two rounds of decisions on the same chunks: by two people, or one person twice.

    `kept` compares question or skip; `choice` which suggestion, an own question, or a skip.
    """

    who: str
    kept: Agreement
    choice: Agreement


class Figures(NamedTuple):
    """Everything that `--stats` tells."""

    sample: int
    people: list[Person]
    personas: dict[str, int]
    never_used: list[str]
    documents: dict[str, int]
    sampled_documents: int
    splits: dict[str, int]
    comparisons: list[Comparison]
    warnings: list[str]


def figures(
    store: AnnotationStore, chunks: Sequence[Chunk], personas: Sequence[Persona], *, seed: int = 0
) -> Figures:
    """The figures of all annotators of `store` on the sample `chunks`."""
    log = store.events()
    sample = {str(chunk.chunk_id) for chunk in chunks}
    people = [_person(store, name, log, sample) for name in store.annotators]
    gold = store.gold()
    used = Counter(item.persona_id or "none" for item in gold)
    made_from = {str(c.chunk_id): c.file_name or c.document for c in chunks}
    documents = Counter(made_from.get(str(item.chunk_id), _ELSEWHERE) for item in gold)
    return Figures(
        sample=len(chunks),
        people=people,
        personas=dict(used.most_common()),
        never_used=[persona.id for persona in personas if not used[persona.id]],
        documents=dict(documents.most_common()),
        sampled_documents=len(set(made_from.values())),
        splits=dict(sorted(Counter(item.split or "none" for item in gold).items())),
        comparisons=comparisons(store, seed=seed),
        warnings=[*_warnings(people), *_hub(used)],
    )


def comparisons(store: AnnotationStore, *, seed: int = 0) -> list[Comparison]:
    """Each annotator against themselves on what came back, and each pair on what both decided."""
    settled = {
        name: {event.subject: event for event in store.decisions(name) if event.decision.settles}
        for name in store.annotators
    }
    found = []
    for name in settled:
        again = {s: e for s, e in store.repeats(name).items() if e.decision.settles}
        stood = _stood_before(again, store.history(name))
        found.append(_compare(f"{_called(name)} twice", stood, again, seed))
    for one, other in combinations(settled, 2):
        who = f"{_called(one)} and {_called(other)}"
        found.append(_compare(who, settled[one], settled[other], seed))
    return [comparison for comparison in found if comparison.kept.n]


def _stood_before(again: Mapping[str, Event], history: Sequence[Event]) -> dict[str, Event]:
    """The decision that stood on each chunk when it came back; a later correction says nothing."""
    return {
        event.subject: event
        for event in history
        if event.kind == "decision"
        and event.decision.settles
        and event.subject in again
        and event.seq < again[event.subject].seq
    }


def _compare(
    who: str, one: Mapping[str, Event], other: Mapping[str, Event], seed: int
) -> Comparison:
    both = [(one[subject], other[subject]) for subject in one if subject in other]
    kept = [(_kept(a), _kept(b)) for a, b in both]
    choices = [_choices(a, b) for a, b in both]
    return Comparison(who, agreement(kept, seed=seed), agreement(choices, seed=seed))


def _kept(event: Event) -> str:
    return "skip" if event.decision.action == "skip" else "question"


def _choices(one: Event, other: Event) -> tuple[str, str]:
    """What each of two decisions on a chunk chose.

    Suggestions count in alphabetical order, as everybody was shown another one.
    """
    offered = {line for event in (one, other) if event.item for line in event.item.suggestions}
    places = {line: f"suggestion {number}" for number, line in enumerate(sorted(offered), 1)}

    def choice(event: Event) -> str:
        decision, item = event.decision, event.item
        if decision.action == "skip" or item is None:
            return "skip"
        if decision.pick is None:
            return "own question"
        return places[item.suggestions[decision.pick - 1]]

    return choice(one), choice(other)


def _person(
    store: AnnotationStore, name: str, log: Iterable[Event], sample: Container[str]
) -> Person:
    mine = [event for event in log if event.annotator == name]
    gold = store.gold(name)
    standing = [event.decision for event in store.decisions(name)]
    done = [str(decision.chunk_id) in sample for decision in standing if decision.settles]
    settled = [event for event in store.history(name) if event.decision.settles]
    times = [event.active_seconds for event in settled if event.active_seconds is not None]
    spent = [e.active_seconds or 0.0 for e in mine if e.kind in ("decision", "repeat")]
    placed = [(p, item) for item in gold if (p := _place(item)) is not None]
    return Person(
        name=name,
        decided=sum(done),
        outside=len(done) - sum(done),
        gold=len(gold),
        skipped=dict(store.skipped(name).most_common()),
        put_off=dict(Counter(d.action for d in standing if not d.settles)),
        repeats=len(store.repeats(name)),
        undone=sum(event.kind == "undo" for event in mine),
        timed=len(times),
        seconds=round(sum(spent), 1),
        median_seconds=round(median(times), 1) if times else None,
        origins=dict(Counter(item.origin for item in gold).most_common()),
        first=sum(place == 0 for place, _ in placed),
        placed=len(placed),
        chance=_mean([1 / len(item.suggestions) for _, item in placed]),
        blind=sum(item.blind for item in gold),
        bad=sum(len(item.bad_suggestions) for item in gold),
        too_fast=sum(seconds < _TOO_FAST_SECONDS for seconds in times),
    )


def _place(item: GoldItem) -> int | None:
    """Where the suggestion stood that became the question; None where order says nothing."""
    if item.origin != "picked" or item.order_seed is None or len(item.suggestions) < 2:
        return None
    return item.suggestions.index(item.gold_question)


def _warnings(people: Iterable[Person]) -> list[str]:
    found = []
    for person in people:
        who = _called(person.name)
        if person.placed >= _ENOUGH and wilson(person.first, person.placed)[0] > person.chance:
            found.append(
                f"{who} took the first suggestion in {_share(person.first, person.placed)} of "
                f"picks, where chance gives {person.chance:.0%}: does the first one get read more?"
            )
        picked = person.origins.get("picked", 0)
        if person.gold >= _ENOUGH and picked / person.gold > _MOST_UNEDITED:
            found.append(
                f"{who} took {_share(picked, person.gold)} of questions unedited: suggestions pull "
                "people along (--blind-test keeps the test split free of it)"
            )
        if person.timed >= _ENOUGH and person.too_fast > 0.1 * person.timed:
            found.append(
                f"{who} decided {_share(person.too_fast, person.timed)} in under "
                f"{_TOO_FAST_SECONDS:.0f} s, less than reading takes"
            )
    return found


def _hub(used: Counter[str]) -> list[str]:
    if used.total() < _ENOUGH:
        return []
    name, most = used.most_common(1)[0]
    if most <= _HUB * used.total() or len(used) < 2:
        return []
    return [f"persona {printable(name)} asks {_share(most, used.total())} of all questions"]


# ---------------------------------------------------------------------- in words


def as_dict(found: Figures) -> dict[str, Any]:
    """The same for machines."""
    return {
        **found._asdict(),
        "people": [person._asdict() for person in found.people],
        "comparisons": [
            {"who": c.who, "kept": _plain(c.kept), "choice": _plain(c.choice)}
            for c in found.comparisons
        ],
    }


def render(found: Figures) -> str:
    """The figures as lines for a terminal."""
    lines = [line for person in found.people for line in _person_lines(person, found.sample)]
    lines.append(f"personas: {_listed(found.personas)}")
    if found.never_used:
        lines.append(f"never used: {', '.join(map(printable, found.never_used))}")
    lines.append(f"splits: {_listed(found.splits)}")
    lines.append(
        f"documents: {len(found.documents)} of the sample's {found.sampled_documents}, "
        f"most from {_listed(dict(list(found.documents.items())[:3]))}"
    )
    for comparison in found.comparisons:
        for what, measured in (("question or skip", comparison.kept), ("which", comparison.choice)):
            lines.append(f"agreement, {comparison.who}, {what}: {agreement_line(measured)}")
    return "\n".join([*lines, *(f"warning: {line}" for line in found.warnings)])


def agreement_line(measured: Agreement) -> str:
    """Percent, Cohen's kappa and AC1, each with its 95 % interval, and the number of chunks."""
    if measured.n < _FEWEST_COMPARED:
        return f"{measured.n} chunks, too few to tell"
    return (
        f"{_estimate(measured.raw, percent=True)}, kappa {_estimate(measured.kappa)}, "
        f"AC1 {_estimate(measured.ac1)}, {measured.n} chunks"
    )


def _person_lines(person: Person, sample: int) -> list[str]:
    outside = f" and {person.outside} outside it" if person.outside else ""
    put_off = f", {_listed(person.put_off)}" if person.put_off else ""
    lines = [
        f"{_called(person.name)}: {person.decided} of the sample's {sample} chunks decided"
        f"{outside}, {person.gold} questions"
        f"{put_off}; {person.repeats} came back, {person.undone} undone"
    ]
    if person.median_seconds is not None and person.seconds:
        lines.append(
            f"  pace: {3600 * person.timed / person.seconds:.0f} an hour of active time, "
            f"median {person.median_seconds:.0f} s, {_lasted(person.seconds)} in all"
        )
    lines.append(f"  sources: {_listed(person.origins, of=person.gold)}")
    if person.skipped:
        lines.append(f"  skipped: {_listed(person.skipped)}")
    if person.placed:
        lines.append(
            f"  {_share(person.first, person.placed)} of {person.placed} picks stood first (by "
            f"chance {person.chance:.0%}); {person.bad} suggestions marked bad"
        )
    return lines


def _listed(counts: Mapping[str, int], *, of: int = 0) -> str:
    parts = [
        f"{number} {printable(name) or 'unnamed'}" + (f" ({number / of:.0%})" if of else "")
        for name, number in counts.items()
    ]
    return ", ".join(parts) or "none"


def _estimate(estimate: Estimate, *, percent: bool = False) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "undefined (only one answer occurs)"
    form = "{:.0%} [{:.0%}, {:.0%}]" if percent else "{:.2f} [{:.2f}, {:.2f}]"
    return form.format(estimate.value, estimate.low, estimate.high)


def _plain(measured: Agreement) -> dict[str, Any]:
    estimates = {name: getattr(measured, name)._asdict() for name in ("raw", "kappa", "ac1")}
    return {"n": measured.n, **estimates}


def _called(name: str) -> str:
    return printable(name) or "unnamed"


def _lasted(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
