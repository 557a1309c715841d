"""Questions to look at: refused ones by gate, and accepted ones, each with its chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from question_optimizer.reports.items import cut, folded_chunk
from question_optimizer.reports.markup import Child, Html, join, tag

Example = Mapping[str, Any]
_KINDS = ("query_type", "query_format", "query_length", "persona_id", "model")


def examples_section(examples: Mapping[str, Sequence[Example]]) -> Html:
    """Chosen by chance among each gate's refusals, so that they show what it is like."""
    refused, accepted = examples.get("refused") or [], examples.get("accepted") or []
    parts: list[Child] = []
    place = 0
    for gate, same in groupby(refused, key=lambda one: str(one["gate"])):
        parts.append(tag("h3", f"Refused by {gate}"))
        for one in same:
            place += 1
            parts.append(_example(place, one))
    if accepted:
        parts.append(tag("h3", "Accepted"))
    for one in accepted:
        place += 1
        parts.append(_example(place, one))
    return join(parts) if parts else tag("p", "There are none.")


def _example(place: int, one: Example) -> Html:
    document = one.get("document_name") or one["document"]
    where = " › ".join(str(part) for part in (document, one["heading"]) if part)
    kinds = " · ".join(str(one[key]) for key in _KINDS if one[key])
    text = str(one["chunk_text"] or "")
    return tag(
        "article",
        tag(
            "h4",
            tag("a", f"Example {place}", href=f"#example-{place}"),
            tag("small", where),
        ),
        tag("p", cut(str(one["question"])), class_="question", dir="auto"),
        tag("p", tag("small", kinds)) if kinds else None,
        *_said(one),
        folded_chunk(text) if text else None,
        tag("p", tag("small", "Chunk ", tag("code", one["chunk_id"]))),
        id=f"example-{place}",
        class_="item",
        tabindex=-1,
    )


def _said(one: Example) -> Iterator[Html]:
    if one["gate"]:
        lead = tag("strong", "✗ Gate ", one["gate"], ": ")
        yield tag("p", lead, cut(str(one["reason"])), class_="loss", dir="auto")
    for gate, reason in one["findings"]:
        lead = tag("strong", "Recorded by ", gate, ": ")
        yield tag("p", lead, cut(str(reason)), dir="auto")
