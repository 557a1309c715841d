"""The report of a run of the generator: what came out, what the gates refused, how to go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.generation.summary import FEWEST_PLANNED
from question_optimizer.reports.examples import examples_section
from question_optimizer.reports.figures import NOTHING, cost, plural, sentence, share, whole
from question_optimizer.reports.generation_costs import (
    cost_section,
    duration,
    failures_section,
    moment,
    sources_section,
)
from question_optimizer.reports.health import set_section
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
        tag("p", summary["without"]) if summary["without"] else None,
        *(tag("p", said) for said in _ending(summary["end"])),
        tag("dl", *_facts(summary), class_="facts"),
        class_=f"verdict {'go' if state == 'Finished' else 'inconclusive'}",
    )
    rows: list[Row] = [
        [words, whole(summary["chunks"][key])]
        for key, words in _CHUNKS.items()
        if summary["chunks"][key]
    ]
    return join([box, *_warnings(summary), table("Chunks", ["", "Number"], rows)])


_CHUNKS = {
    "points": "in the collection",
    "done": "with an accepted question",
    "rejected": "given up: all their questions refused",
    "failed": "failed",
    "pending": "to be worked on",
    "already_there": "passed over: they had a question of other origin",
    "kept": "passed over: done under another configuration",
    "without_text": "passed over: without a text",
    "beyond_limit": "passed over: beyond the limit",
    "not_reached": "not reached yet",
}


def _ending(end: Summary) -> Iterator[Html]:
    if end["reason"]:
        yield join([sentence(end["reason"])])
    if end["until"]:
        yield join(["It can go on from ", moment(end["until"]), "."])


def _facts(summary: Summary) -> Iterator[Html]:
    questions, coverage, times = (summary[key] for key in ("questions", "coverage", "times"))
    speed = times["questions_a_second"]
    documents = "Documents with a question"
    if not coverage["all"]:
        documents += ", of those asked about"
    unchecked = questions["unchecked"]
    shown = (
        ("Accepted", whole(questions["accepted"])),
        *([("Not yet checked", whole(unchecked))] if unchecked else []),
        ("Of those asked", share(questions["yield"]["value"])),
        ("Refused", whole(questions["refused"])),
        ("Failed", whole(questions["failed"])),
        (documents, _of(coverage["with_questions"], coverage["documents"])),
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
            "against the whole corpus; the next start does it first, and may refuse some.",
        )


# ---------------------------------------------------------------------- quotas


def _quotas(quotas: Summary | None) -> Html:
    if not quotas:
        return tag("p", "Nothing was planned: the pipeline chose type and format by itself.")
    cells = quotas["cells"]
    pairs: dict[tuple[Any, Any], list[Summary]] = {}
    for cell in cells:
        pairs.setdefault((cell["type"], cell["format"]), []).append(cell)
    rows = [_quota_row(kinds, same, quotas) for kinds, same in pairs.items()]
    every = [_quota_row((c["type"], c["format"], c["length"]), [c], quotas) for c in cells]
    head = ["", "Of the plan", "Accepted", "Planned", "Share accepted", "Share planned"]
    return join(
        [
            tag("p", *_planned(quotas)),
            table("Types and formats", head, rows),
            details(
                plural(len(cells), "cell") + " with lengths",
                table("Types, formats and lengths", head, every),
            ),
        ]
    )


def _planned(quotas: Summary) -> Iterator[str]:
    """What the plan is, how much of it is there, and how far the mix is from it."""
    if quotas["even"]:
        yield "The plan is even: the same number of every type, two formal questions for each "
        yield "keyword query, and as many short ones as medium and long ones. "
    yield f"{_of(quotas['achieved'], quotas['target'])} planned questions are there. "
    distance = quotas["distance"]
    if quotas["achieved"] >= FEWEST_PLANNED:
        yield f"Their mix is {share(distance['type_format'])} away from the plan of types and "
        yield f"formats, and {share(distance['all'])} with lengths (total variation). "
    if quotas["unplanned"]:
        yield f"{plural(quotas['unplanned'], 'question')} made without a plan are not counted here."


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
    return join([tag("figure", caption, plot, class_="wide"), _lengths(summary)])


def _lengths(summary: Summary) -> Html | None:
    """What the plan's words for lengths mean, and how many of each there are."""
    if not (quotas := summary["quotas"]):
        return None
    rows: list[Row] = []
    for form, lengths in summary["rules"]["lengths"].items():
        for length, (low, high) in lengths.items():
            cells = [c for c in quotas["cells"] if (c["format"], c["length"]) == (form, length)]
            words = f"{low}" if low == high else f"{low} to {high}"
            row = _quota_row((form, length), cells, quotas)
            rows.append([row[0], words, *row[2:]])
    head = ["", "Words", "Accepted", "Planned", "Share accepted", "Share planned"]
    return table("Lengths as they were planned", head, rows)


def _round_trip(summary: Summary) -> Html:
    found = summary["round_trip"]
    parts: list[Child] = [_band(summary["rules"]["round_trip"])]
    if not found:
        parts.append(tag("p", "No question was searched for."))
    else:
        parts.append(tag("p", _searched(found)))
        parts.append(_recall(found))
        for place, (name, ranks) in enumerate((found.get("ranks") or {}).items(), 1):
            title = "Questions by the rank of their chunk"
            plot = columns(_short_ranks(ranks), name=f"ranks-{place}", title=title)
            caption = tag("figcaption", f"Rank of the question's own chunk, {_retriever(name)}")
            parts.append(tag("figure", caption, plot, class_="wide"))
    return join(parts)


def _short_ranks(ranks: Mapping[str, int]) -> list[tuple[str, int]]:
    """ "above 100" is wider than the last column of a phone's plot."""
    return [(rank.replace("above ", ">"), n) for rank, n in ranks.items()]


def _band(band: Summary | None) -> Html | None:
    """What the policy asks of a question's rank, in numbers."""
    if not band:
        return None
    said = (
        f"Gates for {band['name']} refuse a question unless embedding or BM25 finds its chunk "
        f"within rank {band['max_rank']}. Where {band['max_near']} other chunks or more are "
        "found as well as its own it is ambiguous, and that is "
        f"{'refused' if band['refuse_ambiguous'] else 'only noted'}. "
    )
    if band["easy_share"] is not None:
        said += (
            "It is trivially found where both find its chunk first with no other near, and more "
            f"than {share(band['easy_coverage'])} of it, rare words counting more, are words of "
            f"the chunk: at most {share(band['easy_share'])} of the accepted questions may be so, "
            f"and {band['easy_free']} in any case."
        )
    return tag("p", said)


def _searched(found: Summary) -> str:
    """Over how many questions the figures are, and of which runs."""
    said = f"{plural(found['questions'], 'question')} searched for"
    if found.get("of") is None:
        return f"{said} in this run alone; what earlier ones found is not known."
    said += f", {whole(found['in_this_run'])} of them in this run. They are those that were "
    said += "accepted, and those that were refused for what the search found; a rank is that of "
    said += "the time when the question was checked."
    if missing := found["of"] - found["questions"]:
        said += f" Of {whole(missing)} more the rank is not known: they were not searched for, or "
        said += "by a version that did not keep it."
    return said


def _retriever(name: object) -> str:
    return {"dense": "by embedding", "bm25": "by BM25", "both": "by both"}.get(str(name), str(name))


def _recall(found: Summary) -> Html:
    """A row a retriever: the share of questions within each rank; of both and of either that
    within the policy's rank alone is known."""
    recall, shares = found.get("recall") or {}, found.get("found") or {}
    names = list(dict.fromkeys([*recall, *shares]))
    ranks = list(dict.fromkeys(rank for by_rank in recall.values() for rank in by_rank))
    within = str(found.get("within", ""))
    ranks += [] if within in ranks else [within]
    rows = [
        [
            _retriever(name),
            *(
                share(recall.get(name, {}).get(rank, shares.get(name) if rank == within else None))
                for rank in ranks
            ),
        ]
        for name in names
    ]
    head = ["", *(f"Recall at {rank}" if rank else "Found" for rank in ranks)]
    return table("Questions whose chunk is found", head, rows)


def _health(summary: Summary) -> Html:
    if not summary["health"]:
        return tag("p", "No question was accepted.")
    n = plural(summary["health"]["n"], "question")
    said = f"Of a sample of {n}, one a chunk, each chunk as likely as any other."
    return join([tag("p", said), set_section(summary["health"])])
