"""The page of a proof: what the human questions show, then the figures, the questions, the caveats.

The verdict is the one that proof.json holds; nothing here says more than its interval does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.reports.figures import (
    chance,
    number,
    plural,
    share,
    signed,
    span,
    two,
    whole,
)
from question_optimizer.reports.markup import Html, details, join, note, table, tag
from question_optimizer.reports.moves import moves_section
from question_optimizer.reports.page import page
from question_optimizer.reports.plots import interval_plot
from question_optimizer.verdict import LEAST_PAIRS

MOST_QUESTIONS = 500  # shown one by one
_MADE_BY = "export_questions.py --prove"
_METRICS = {"ndcg": "nDCG@10", "recall": "recall@10"}
_SETS = {
    "human": "Human questions",
    "test": "Questions of held-out documents, synthetic",
    "dev": "Questions of dev documents, synthetic",
}
_SHORT = {"human": "human", "test": "held-out", "dev": "dev"}
_HEADINGS = {
    "improved": ("go", "Shown: these questions help retrieval"),
    "worse": ("no-go", "Shown: these questions make retrieval worse"),
    "not shown": ("inconclusive", "Not shown"),
}

Proof = Mapping[str, Any]


def write_proof_report(folder: Path) -> Path:
    """Write `proof.html` from `folder`'s proof.json and return its path.

    One file that needs nothing else; the same proof gives the same bytes. Questions and names are
    data and are escaped. Raises UserError where the proof is missing or damaged.
    """
    proof = files.read_json(folder / "proof.json", made_by=_MADE_BY)
    meta = files.read_meta(folder / "proof.json", made_by=_MADE_BY)
    sections = [
        ("verdict", "Verdict", None, _verdict(proof)),
        ("intervals", "Differences", "Difference of the means, with interval", _intervals(proof)),
        ("figures", "Figures", "Before and after in figures", _figures(proof)),
        ("change", "Ranks", "How the human questions moved", moves_section(_human(proof))),
        ("amount", "Amount", "With fewer training pairs", _amounts(proof)),
        ("caveats", "Caveats", "What to keep in mind", _caveats(proof)),
        ("items", "Questions", "Question by question", _questions(proof)),
        ("sources", "Sources", "Settings and sources", _sources(proof, meta)),
    ]
    shown = [one for one in sections if one[3]]
    body = join(
        (
            tag("section", tag("h2", heading) if heading else None, content, id=place)
            for place, _, heading, content in shown
        ),
        "\n",
    )
    contents = [(place, words) for place, words, _, _ in shown]
    title = f"{_HEADINGS[proof['verdict']['state']][1]}: retrieval before and after"
    path = folder / "proof.html"
    html = page(title, contents, "Do the generated questions help retrieval?", body)
    files.write_atomic(path, html)
    return path


def _last(proof: Proof) -> dict[str, Any]:
    """The training on the largest share of the pairs: the one that decides."""
    return dict(proof["trainings"][-1])


def _human(proof: Proof) -> list[dict[str, Any]]:
    """The rows that decide."""
    return [row for row in proof["rows"] if row["set"] == "human"]


# ---------------------------------------------------------------------- the verdict


def _verdict(proof: Proof) -> Html:
    verdict, human = proof["verdict"], _last(proof)["sets"]["human"]
    kind, heading = _HEADINGS[verdict["state"]]
    facts = (
        ("Model", proof["model"]),
        ("Training pairs", whole(_last(proof)["pairs"])),
        ("Human questions", whole(human["questions"])),
        ("Their documents", whole(human["documents"])),
        ("Chunks searched", whole(proof["counts"]["chunks"] - proof["counts"]["identical_chunks"])),
    )
    box = tag(
        "div",
        tag("h2", heading),
        tag("p", f"{verdict['sentence']}.", class_="why"),
        tag("p", _needed(proof), class_="why") if verdict["state"] == "not shown" else None,
        tag("dl", *(tag("div", tag("dt", k), tag("dd", v)) for k, v in facts), class_="facts"),
        details("The rule", tag("p", verdict["rule"])),
        class_=f"verdict {kind}",
    )
    return join([box, *_warnings(proof)])


def _needed(proof: Proof) -> str:
    """What it would take to see the difference, in words."""
    verdict, human = proof["verdict"], _last(proof)["sets"]["human"]
    if verdict["questions_needed"] is None:
        return "No question moved, so nothing can be said of how many would be needed."
    gold = verdict["gold_items_needed"]
    return (
        f"To see a difference of {number(verdict['wanted'])} four times in five takes about "
        f"{plural(verdict['questions_needed'], 'human question')}"
        f"{f', a gold set of about {gold:,}' if gold else ''}; these {human['questions']:,} show "
        f"one of {number(verdict['smallest_detectable'])} or more."
    )


def _warnings(proof: Proof) -> Iterator[Html]:
    if proof["rehearsal"]["questions"]:
        yield note(
            "warn",
            "Rehearsal.",
            "A rule-based stand-in wrote the training questions; the figures say nothing about a "
            "real model's.",
        )
    documents = _last(proof)["sets"]["human"]["documents"]
    if documents < LEAST_PAIRS:
        yield note(
            "warn",
            f"Only {plural(documents, 'document')}.",
            "Questions of one document resemble each other, and so few documents cannot be looked "
            "at as a whole: the interval may be too narrow.",
        )


# ---------------------------------------------------------------------- the figures


def _intervals(proof: Proof) -> Html:
    rows = [
        {
            "arm": f"{_SHORT[name]} {words}",
            "against": "before",
            "decides": (name, metric) == ("human", "ndcg"),
            **found[metric],
        }
        for name, found in _last(proof)["sets"].items()
        if name != "dev"
        for metric, words in _METRICS.items()
    ]
    said = (
        "The filled point decides: human questions, nDCG@10. Intervals are of the mean paired "
        "difference over questions."
    )
    return join([interval_plot(rows, None), tag("p", tag("small", said))])


def _figures(proof: Proof) -> Html:
    head = ["", "Before", "After", "Difference", "95 % interval", "p", "Won / tied / lost",
            "Over whole documents"]  # fmt: skip
    rows: list[list[Any]] = []
    for name, found in _last(proof)["sets"].items():
        documents = plural(found["documents"], "document")
        rows.append([f"{_SETS[name]}: {found['questions']:,}, {documents}"])
        for metric, words in _METRICS.items():
            c = found[metric]
            by_document = c["over_documents"] or {}
            rows.append(
                [
                    words,
                    number(c["before"]),
                    number(c["after"]),
                    signed(c["difference"]),
                    span(c["low"], c["high"]),
                    chance(c["p"]),
                    " / ".join(whole(c[key]) for key in ("wins", "ties", "losses")),
                    span(by_document.get("low"), by_document.get("high")),
                ]
            )
    said = (
        "A synthetic question is of the same making as the training pairs: a gain there alone is "
        "the gain of knowing their style. Dev documents are neither trained on nor used to choose."
    )
    return join([table("Each question before and after", head, rows), tag("p", tag("small", said))])


def _amounts(proof: Proof) -> Html | None:
    """Each share of the training pairs; nothing where there was one."""
    if len(proof["trainings"]) < 2:
        return None
    rows = []
    for one in proof["trainings"]:
        human, synthetic = one["sets"]["human"]["ndcg"], one["sets"].get("test", {}).get("ndcg", {})
        rows.append(
            [
                share(one["share"]),
                whole(one["pairs"]),
                whole(one["steps"]),
                number(human["after"]),
                signed(human["difference"]),
                span(human["low"], human["high"]),
                signed(synthetic.get("difference")),
            ]
        )
    head = ["Share", "Pairs", "Steps", "nDCG@10", "Difference", "95 % interval", "Held-out, diff."]
    said = (
        "Each share was trained on from the model as it was. Only the largest decides; the others "
        "show whether more pairs would still help."
    )
    return join(
        [table("Human questions by amount of training", head, rows), tag("p", tag("small", said))]
    )


# ---------------------------------------------------------------------- the caveats


def _caveats(proof: Proof) -> Html:
    counts, said = proof["counts"], []
    said.append(
        "One look at these questions is one look. Whoever tries several prompts, exports or "
        "settings and keeps the best will see a larger gain than the next questions give: the "
        "interval does not know of the choosing."
    )
    said.append(
        "The human questions are of one gold set, so of its annotators, personas and documents. A "
        "gain here is a gain on questions like these."
    )
    if proof["rehearsal"]["gold"]:
        said.append(
            "The suggestions that the annotators saw were the rehearsal's; questions they picked "
            "or edited are like it."
        )
    if counts["identical_chunks"]:
        said.append(
            f"Of {counts['chunks']:,} chunks, {counts['identical_chunks']:,} have the text of "
            "another word for word; these are searched as one, since finding either is right."
        )
    said.append(
        "Only the chunk a question was written for counts as right. Another chunk may answer it as "
        "well, which keeps both figures down."
    )
    for reason, lost in counts["gold_left_out"].items():
        said.append(f"{plural(lost, 'gold question')} left out: {reason}.")
    said.append(
        "The same seed gives the same figures on the same machine; another seed or processor moves "
        "them a little."
    )
    return tag("ul", *(tag("li", one) for one in said))


# ---------------------------------------------------------------------- the questions


def _questions(proof: Proof) -> Html:
    """The human questions, what was lost first, then what was gained, then what stayed."""
    rows = sorted(_human(proof), key=_by_change)
    kept = [_question(row) for row in rows[:MOST_QUESTIONS]]
    left = len(rows) - len(kept)
    return join([*kept, tag("p", f"{left:,} more are in proof.json.") if left else None])


def _change(row: Mapping[str, Any]) -> float:
    return round(row["after"]["ndcg"] - row["before"]["ndcg"], 9)


def _by_change(row: Mapping[str, Any]) -> tuple[int, float]:
    change = _change(row)
    return (0 if change < 0 else 1 if change > 0 else 2, -abs(change))


def _question(row: Mapping[str, Any]) -> Html:
    change = _change(row)
    kind = "loss" if change < 0 else "gain" if change > 0 else "muted"
    words = "✗ worse" if change < 0 else "✓ better" if change > 0 else "= the same"
    return tag(
        "article",
        tag(
            "h4",
            tag("span", f"{words}, {signed(change)}", class_=kind),
            tag("span", f"{_rank(row['before'])} → {_rank(row['after'])}"),
            tag("small", f"nDCG@10 {two(row['before']['ndcg'])} → {two(row['after']['ndcg'])}"),
        ),
        tag("p", row["question"], class_="question", dir="auto"),
        tag("p", tag("small", row["source"] or row["document"])),
        class_=f"item {'regressed' if change < 0 else ''}".strip(),
        tabindex=-1,
    )


def _rank(found: Mapping[str, Any]) -> str:
    return "beyond 100" if found["rank"] is None else f"rank {found['rank']}"


# ---------------------------------------------------------------------- the sources


def _sources(proof: Proof, meta: Mapping[str, Any]) -> Html:
    listed = (
        ("Settings", {**meta["settings"], **meta["settings"].get("recipe", {})}),
        ("Inputs, by sha256", meta["inputs"]),
        ("Versions", proof["versions"]),
    )
    return join(
        tag(
            "div",
            table(
                caption,
                ["", "Value"],
                [
                    [name, tag("code", value if isinstance(value, str) else json.dumps(value))]
                    for name, value in named.items()
                    if name != "recipe"
                ],
                words=True,
            ),
            class_="sources",
        )
        for caption, named in listed
    )
