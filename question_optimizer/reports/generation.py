"""The report of a run of the generator: what came out, what the gates refused, how to go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.reports.examples import examples_section
from question_optimizer.reports.figures import NOTHING, cost, plain, plural, sentence, share, whole
from question_optimizer.reports.generation_costs import (
    cost_section,
    duration,
    failures_section,
    moment,
    sources_section,
)
from question_optimizer.reports.health import health_section
from question_optimizer.reports.markup import Child, Html, Row, details, join, note, table, tag
from question_optimizer.reports.page import KEYS, page
from question_optimizer.reports.plots import columns, share_bar
from question_optimizer.reports.yields import gates_section, yields_section

Summary = Mapping[str, Any]
_MANY_WORDS = 40  # the summary counts longer questions together
_LABEL_EVERY = 5


def write_generation_report(
    summary: Summary, path: Path, *, examples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> bool:
    """Write the page of a summary (`generation.summary`) to `path`; whether the file changed.

    `examples` are those of `generation.examples`. One file that needs nothing else; the same
    arguments give the same bytes. Names, texts and reasons are data and are escaped; the page's own
    policy lets nothing run but its script, and nothing load.
    """
    sections = [
        ("outcome", "Outcome", None, _outcome(summary)),
        ("gates", "Gates", "What each gate refused", gates_section(summary)),
        ("yields", "Yields", "Accepted by kind of question", yields_section(summary)),
        ("quotas", "Quotas", "The plan and what came of it", _quotas(summary.get("quotas"))),
        ("words", "Lengths", "Lengths of the questions", _words(summary)),
        ("round-trip", "Round trip", "Does a search find the chunk?", _round_trip(summary)),
        ("health", "Question set", "The questions as a set", _health(summary)),
        ("examples", "Examples", "Questions to look at", examples_section(examples)),
        ("failures", "Failures", "What failed, and why", failures_section(summary["failures"])),
        ("cost", "Cost", "Models, accounts and cost", cost_section(summary)),
        ("sources", "Settings, undo", "How to go on or back, and settings",
         sources_section(summary)),
    ]  # fmt: skip
    body = join(
        (
            tag("section", tag("h2", heading) if heading else None, content, id=place)
            for place, _, heading, content in sections
        ),
        "\n",
    )
    contents = [(place, words) for place, words, _, _ in sections]
    collection = summary["configuration"]["collection"]
    keys = [key for key in KEYS if key[0] != "r"]
    title = f"{_state(summary)}: questions for {collection}"
    return files.write_atomic(
        path, page(title, contents, f"Questions for {collection}", body, keys=keys)
    )


# ---------------------------------------------------------------------- what came out


def _state(summary: Summary) -> str:
    """In a word or two, for the top of the page and the browser's tab."""
    if summary["end"]["reason"]:
        return "Ended early"
    if summary["slots"]["pending"] or summary["questions"]["unchecked"]:
        return "Not finished"
    warnings = len(summary["warnings"])
    return f"Finished, {plural(warnings, 'warning')}" if warnings else "Finished"


def _outcome(summary: Summary) -> Html:
    state = _state(summary)
    box = tag(
        "div",
        tag("h2", state),
        tag("p", summary["sentence"], class_="why"),
        *(tag("p", said) for said in _ending(summary["end"])),
        tag("dl", *_facts(summary), class_="facts"),
        class_=f"verdict {'go' if state == 'Finished' else 'inconclusive'}",
    )
    rows: list[Row] = [
        [words, whole(summary["chunks"][key])]
        for key, words in _CHUNKS.items()
        if summary["chunks"][key]
    ]
    return join([box, *_warnings(summary), table("Chunks", ["", "Chunks"], rows)])


_CHUNKS = {
    "points": "in the collection",
    "done": "with an accepted question",
    "rejected": "all their questions refused",
    "failed": "failed",
    "pending": "to be worked on",
    "already_there": "passed over: they had a question of other origin",
    "kept": "passed over: done under another configuration",
    "without_text": "passed over: without a text",
    "beyond_limit": "passed over: beyond the limit",
}


def _ending(end: Summary) -> Iterator[Html]:
    if end["reason"]:
        yield join([sentence(end["reason"])])
    if end["until"]:
        yield join(["It can go on from ", moment(end["until"]), "."])


def _facts(summary: Summary) -> Iterator[Html]:
    questions, coverage, times = (summary[key] for key in ("questions", "coverage", "times"))
    speed = times["questions_a_second"]
    shown = (
        ("Accepted", whole(questions["accepted"])),
        ("Of those asked", share(questions["yield"]["value"])),
        ("Refused", whole(questions["refused"])),
        ("Failed", whole(questions["failed"])),
        ("Documents with a question", _of(coverage["with_questions"], coverage["documents"])),
        ("Cost", cost(summary["usage"]["cost"])),
        ("Gates", summary["policy"]),
        ("Time", duration(times["seconds"])),
        ("Questions a second", NOTHING if speed is None else f"{speed:.3g}"),
        ("Started", moment(times["started"])),
    )
    for name, value in shown:
        yield tag("div", tag("dt", name), tag("dd", value))


def _of(part: int, all_: int) -> str:
    return f"{whole(part)} of {whole(all_)}"


_PLACES = {"gate": "gates", "quotas": "quotas", "failures": "failures"}


def _warnings(summary: Summary) -> Iterator[Html]:
    if summary["rehearsal"]:
        yield note(
            "warn",
            "Rehearsal.",
            "A rule-based stand-in wrote these questions; the figures say nothing about a real "
            "model.",
        )
    for warning in summary["warnings"]:
        place = _PLACES.get(str(warning["code"]), "health")
        link = tag("a", "See there", href=f"#{place}")
        yield note("warn", "Warning:", sentence(warning["text"]), " ", link, ".")
    if unchecked := summary["questions"]["unchecked"]:
        yield note(
            "warn",
            f"{plural(unchecked, 'question')} not checked yet",
            "against the whole corpus; the next start does it first.",
        )


# ---------------------------------------------------------------------- quotas


def _quotas(quotas: Summary | None) -> Html:
    if not quotas:
        return tag("p", "Nothing was planned: the pipeline chose type and format by itself.")
    distance = quotas["distance"]
    said = (
        f"{_of(quotas['achieved'], quotas['target'])} planned questions are there. Their mix is "
        f"{share(distance['type_format'])} away from the plan of types and formats, and "
        f"{share(distance['all'])} with lengths (total variation)."
    )
    cells = quotas["cells"]
    pairs: dict[tuple[Any, Any], list[Summary]] = {}
    for cell in cells:
        pairs.setdefault((cell["type"], cell["format"]), []).append(cell)
    rows = [_quota_row(kinds, same, quotas) for kinds, same in pairs.items()]
    every = [_quota_row((c["type"], c["format"], c["length"]), [c], quotas) for c in cells]
    head = ["", "Of the plan", "Accepted", "Planned", "Share accepted", "Share planned"]
    return join(
        [
            tag("p", said),
            table("Types and formats", head, rows),
            details(
                plural(len(cells), "cell") + " with lengths",
                table("Types, formats and lengths", head, every),
            ),
        ]
    )


def _quota_row(kinds: Sequence[Any], cells: Sequence[Summary], quotas: Summary) -> Row:
    target, achieved = (sum(cell[key] for cell in cells) for key in ("target", "achieved"))
    wanted = sum(cell["share"] for cell in cells)
    got = achieved / quotas["achieved"] if quotas["achieved"] else None
    met = achieved / target if target else None
    name = ", ".join(str(kind or "not known") for kind in kinds)
    return [
        name,
        join([share(met), share_bar(met)]),
        whole(achieved),
        whole(target),
        share(got),
        share(wanted),
    ]


# ---------------------------------------------------------------------- lengths, round trip, health


def _words(summary: Summary) -> Html:
    counts = {int(words): n for words, n in summary["words"].items()}
    if not counts:
        return tag("p", "No question was accepted.")
    longest = max(counts)
    shown = [
        (f"{words}" if words <= _MANY_WORDS else f">{_MANY_WORDS}", counts.get(words, 0))
        for words in range(longest + 1)
    ]
    plot = columns(shown, name="length", title="Questions by words", every=_LABEL_EVERY)
    caption = tag("figcaption", "Accepted questions by number of words")
    return tag("figure", caption, plot, class_="wide")


def _round_trip(summary: Summary) -> Html:
    found = summary["round_trip"]
    near = summary["near_duplicates"]
    parts: list[Child] = []
    if not found:
        parts.append(tag("p", "No question was searched for."))
    else:
        if found.get("questions") is not None:
            parts.append(tag("p", f"{plural(found['questions'], 'question')} searched for."))
        parts.append(_recall(found))
        for place, (name, ranks) in enumerate((found.get("ranks") or {}).items(), 1):
            title = "Questions by the rank of their chunk"
            plot = columns(list(ranks.items()), name=f"ranks-{place}", title=title)
            caption = tag("figcaption", f"Rank of the question's own chunk, {_retriever(name)}")
            parts.append(tag("figure", caption, plot, class_="wide"))
    if near:
        rows = [[str(key).replace("_", " "), plain(value)] for key, value in near.items()]
        parts.append(table("Near-duplicates in the corpus", ["", "Questions"], rows))
    return join(parts)


def _retriever(name: object) -> str:
    return {"dense": "by embedding", "bm25": "by BM25", "both": "by both"}.get(str(name), str(name))


def _recall(found: Summary) -> Html:
    """A row a retriever: found at all, and at what rank."""
    recall, shares = found.get("recall") or {}, found.get("found") or {}
    names = list(dict.fromkeys([*recall, *shares]))
    ranks = list(dict.fromkeys(rank for by_rank in recall.values() for rank in by_rank))
    rows = [
        [
            _retriever(name),
            share(shares.get(name)),
            *(share(recall.get(name, {}).get(rank)) for rank in ranks),
        ]
        for name in names
    ]
    return table(
        "Questions whose chunk is found",
        ["", "Found", *(f"Recall at {rank}" for rank in ranks)],
        rows,
    )


def _health(summary: Summary) -> Html:
    if not summary["health"]:
        return tag("p", "No question was accepted.")
    n = plural(summary["health"]["n"], "question")
    said = f"Figures of a sample of {n}, one a chunk, each chunk as likely as any other."
    return join([tag("p", said), health_section({"accepted": summary["health"]})])
