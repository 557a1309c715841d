"""How far the judge behind every score can be trusted: its check against people's choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from question_optimizer.reports.figures import estimate, plural, sentence, whole
from question_optimizer.reports.markup import Html, Row, join, note, table, tag

_KINDS = {
    "rejected": "a person's pick over what was passed over",
    "bad": "a person's pick over what was marked as bad",
    "planted": "a question over its copy with a planted defect",
}
_NEVER = "Nobody has compared this judge with people's choices."


def judge_section(judge: Mapping[str, Any] | None) -> Html:
    """How the judge did on pairs of which a person said which is better."""
    if not judge or not judge.get("checked"):
        why = sentence((judge or {}).get("why") or _NEVER)
        return note(
            "warn", "Not checked.", why, " No accuracy, agreement or order effect is known."
        )
    kind, lead = ("fine", "Trusted.") if judge.get("trusted") else ("bad", "Not trusted.")
    if judge.get("in_part"):
        kind, lead = "warn", "Trusted in part."
    models = ", ".join(map(str, judge.get("models") or [])) or "not told"
    pairs, chunks = (judge.get(key) or 0 for key in ("pairs", "chunks"))
    said = (
        f"Judge: {judge.get('judge') or 'not told'}; models: {models}; {plural(pairs, 'pair')} "
        f"from {plural(chunks, 'chunk')}; {whole(judge.get('unjudged') or 0)} without an answer. "
        "In the check it sees no reference question, as the chosen one is what it judges."
    )
    rehearsed = "This check was a rehearsal: a stand-in judged." if judge.get("rehearsal") else None
    by_kind = judge.get("by_kind") or {}
    rows = [
        [_KINDS.get(name, name), whole(found.get("pairs")), *_accuracies(found)]
        for name, found in by_kind.items()
    ]
    rows.append(["all", whole(judge.get("pairs")), *_accuracies(judge)])
    return join(
        [
            note(kind, lead, sentence(judge["why"]) if judge.get("why") else None),
            note("warn", "Rehearsal.", rehearsed) if rehearsed else None,
            tag("p", said),
            table("Accuracy, with 95 % interval", ["", "Pairs", "By score", "Side by side"], rows),
            _labels(judge.get("labels") or {}, judge.get("order") or {}),
        ]
    )


def _accuracies(found: Mapping[str, Any]) -> list[str]:
    return [estimate(found.get(way), as_share=True) for way in ("pointwise", "pairwise")]


def _labels(labels: Mapping[str, Any], order: Mapping[str, Any]) -> Html:
    rows: list[Row] = [
        ["Pass or fail against a person's good or bad"],
        ["labels", whole(labels.get("n"))],
        ["raw agreement", estimate(labels.get("raw"), as_share=True)],
        ["Cohen's kappa", estimate(labels.get("kappa"))],
        ["Gwet's AC1", estimate(labels.get("ac1"))],
        ["sensitivity: good ones passed", estimate(labels.get("sensitivity"), as_share=True)],
        ["specificity: bad ones failed", estimate(labels.get("specificity"), as_share=True)],
        ["Asked in both orders"],
        ["pairs", whole(order.get("asked"))],
        ["same choice in both orders", estimate(order.get("consistent"), as_share=True)],
        ["first position chosen", estimate(order.get("first_chosen"), as_share=True)],
    ]
    return table("Agreement and order, with 95 % interval", ["", "Judge"], rows)


def judge_warnings(judge: Mapping[str, Any] | None) -> Iterator[Html]:
    """What has to be said beside the verdict; nothing where the judge may be trusted."""
    if not judge or not judge.get("checked"):
        yield note(
            "warn",
            "Unchecked judge.",
            sentence((judge or {}).get("why") or _NEVER),
            " All scores below are its opinion; see ",
            tag("a", "Judge", href="#judge"),
            ".",
        )
    elif not judge.get("trusted"):
        why = sentence(judge.get("why") or "It does not agree with people well enough.")
        yield note("bad", "The judge failed its check.", why)
    elif judge.get("in_part"):
        yield note("warn", "The judge is trusted in part.", sentence(judge.get("why") or ""))
