"""The evaluation report: the verdict and why, then all it rests on, down to the single item."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.reports.comparisons import (
    arms_section,
    comparisons_section,
    groups_section,
    intervals_section,
)
from question_optimizer.reports.figures import cost, plain, plural, whole
from question_optimizer.reports.health import health_section
from question_optimizer.reports.items import Cast, entries_of, items_section
from question_optimizer.reports.judge import judge_section, judge_warnings
from question_optimizer.reports.markup import Child, Html, details, join, note, table, tag
from question_optimizer.reports.page import page
from question_optimizer.reports.plots import histogram
from question_optimizer.reports.programs import programs_section, programs_warnings
from question_optimizer.verdict import MIN_GAIN

_MADE_BY = "evaluate_pipeline.py"
_LOOKED_TOO_OFTEN = 3  # openings of the test set; beyond, choosing by it begins to show

Summary = Mapping[str, Any]


def write_evaluation_report(
    folder: Path, *, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> None:
    """Write `report.html` from `folder`'s summary.json and scores.jsonl.

    One file that needs nothing else; the same files, settings and inputs give the same bytes.
    `inputs` maps file names to sha256 digests. Texts, names and reasons are data and are escaped;
    the page's own policy lets nothing run but its script, and nothing load. Raises UserError where
    a file is missing or damaged; the old report then stays.
    """
    summary = files.read_json(folder / "summary.json", made_by=_MADE_BY)
    rows = [row for _, row in files.read_jsonl(folder / "scores.jsonl", made_by=_MADE_BY)]
    cast = Cast(summary["baseline"], summary["candidates"], summary["arm_order"])
    compared = summary["comparisons"]
    sections = [
        ("verdict", "Verdict", None, _verdict(summary)),
        ("intervals", "Differences", "Difference of the mean scores",
         intervals_section(compared, MIN_GAIN)),
        ("arms", "Arms", "What each arm did", arms_section(summary)),
        ("comparisons", "Comparisons", "The comparisons in figures", comparisons_section(compared)),
        ("groups", "Models, documents", "By model and by document", groups_section(summary)),
        ("distributions", "Distributions", "Distribution of the scores", _distributions(summary)),
        ("judge", "Judge", "How far the judge can be trusted", judge_section(summary.get("judge"))),
        ("health", "Question sets", "The questions as a set",
         health_section(summary.get("set_health") or {})),
        ("programs", "Programs", "What the programs do differently",
         programs_section(summary.get("programs") or {})),
        ("items", "Items", "Item by item", items_section(entries_of(rows, cast), cast)),
        ("sources", "Cost, sources", "Cost, settings and sources",
         _sources(summary, settings, inputs)),
    ]  # fmt: skip
    body = join(
        (
            tag("section", tag("h2", heading) if heading else None, content, id=place)
            for place, _, heading, content in sections
        ),
        "\n",
    )
    contents = [(place, words) for place, words, _, _ in sections]
    title = f"{summary['verdict']}: question prompts evaluated"
    question = f"Do other prompts write better questions than {cast.baseline}?"
    files.write_atomic(folder / "report.html", page(title, contents, question, body))


# ---------------------------------------------------------------------- the verdict

# Shapes that differ as outlines: a ticked circle, a crossed octagon, a diamond with a question.
_ICONS = {
    "GO": "<circle cx='16' cy='16' r='13'/><path d='M9.5 16.5l4.5 4.5 8.5-9.5'/>",
    "NO-GO": "<path d='M10.5 3h11L29 10.500v11L21.500 29h-11L3 21.500v-11z'/>"
    "<path d='M11 11l10 10M21 11L11 21'/>",
    "INCONCLUSIVE": "<path d='M16 2.500L29.500 16 16 29.500 2.500 16z'/>"
    "<path d='M12.500 12.500a3.500 3.500 0 1 1 5 3.200c-1 .5-1.500 1-1.500 2.300M16 22v.1'/>",
}
_MODES = {
    "replay": "replay: recorded answers are used again",
    "live": "live: answers are asked for anew",
}


def _verdict(summary: Summary) -> Html:
    verdict = str(summary["verdict"])
    known = verdict if verdict in _ICONS else "INCONCLUSIVE"
    icon = Html(f'<svg viewBox="0 0 32 32" aria-hidden="true">{_ICONS[known]}</svg>')
    box = tag(
        "div",
        tag("h2", icon, verdict),
        tag("p", str(summary["sentence"]).removeprefix(f"{verdict}: "), class_="why"),
        tag("dl", *_facts(summary), class_="facts"),
        details("The rule", tag("p", summary.get("rule") or "No rule was recorded.")),
        class_=f"verdict {known.lower()}",
    )
    return join([box, *_warnings(summary), _openings(summary)])


def _facts(summary: Summary) -> Iterator[Html]:
    repeats = summary.get("repeats")
    mode = summary.get("mode") or ""
    shown = (
        ("Recommended", summary.get("recommended") or "none"),
        ("Test items", whole(summary["items"])),
        ("Repeats", "not told" if repeats is None else whole(repeats)),
        ("Mode", _MODES.get(mode, mode or "not told")),
    )
    for name, value in shown:
        yield tag("div", tag("dt", name), tag("dd", value))


def _warnings(summary: Summary) -> Iterator[Html]:
    if summary.get("rehearsal"):
        yield note(
            "warn",
            "Rehearsal.",
            "A rule-based stand-in wrote and judged these questions; the figures say nothing about "
            "a real model.",
        )
    yield from judge_warnings(summary.get("judge"))
    yield from programs_warnings(summary.get("programs") or {}, bool(summary.get("rehearsal")))


def _openings(summary: Summary) -> Html | None:
    opened, openings = summary.get("test_set_opened"), summary.get("openings") or []
    if opened is None:
        return None
    parts: list[Child] = []
    if opened > _LOOKED_TOO_OFTEN:
        parts.append(
            note(
                "warn",
                f"The test set was opened {opened:,} times.",
                "Whoever chooses by the same items again and again ends up fitting them, and the "
                "intervals below do not know of it. New gold items would tell for sure.",
            )
        )
    lines = [tag("li", one.get("at", ""), " ", tag("code", one.get("run", ""))) for one in openings]
    said = f"The test set was opened {plural(opened, 'time')}"
    parts.append(details(said, tag("ul", *lines)) if lines else tag("p", f"{said}."))
    return join(parts)


# ---------------------------------------------------------------------- distributions and sources


def _distributions(summary: Summary) -> Html:
    arms = summary["arms"]
    counts = {arm: arms[arm].get("histogram") or [] for arm in summary["arm_order"] if arm in arms}
    if not any(map(sum, counts.values())):
        return tag("p", "Nothing was scored.")
    tallest = max(max(found, default=0) for found in counts.values())
    plots = (
        tag(
            "figure",
            tag("figcaption", arm, " ", tag("small", plural(sum(found), "score"))),
            histogram(found, tallest, place),
        )
        for place, (arm, found) in enumerate(counts.items(), 1)
    )
    return tag("div", *plots, class_="many")


def _sources(summary: Summary, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Html:
    usage = summary.get("usage") or {}
    spent = [[key.replace("_", " "), _amount(key, value)] for key, value in usage.items()]
    return join(
        [
            table("Spent in all", ["", "Amount"], spent) if spent else tag("p", "No usage."),
            _digests("Settings", settings),
            _digests("Inputs, by sha256", inputs),
        ]
    )


def _amount(key: str, value: Any) -> str:
    if "cost" in key and isinstance(value, int | float):
        return cost(value)
    return _compact(value) if isinstance(value, dict | list) else plain(value)


def _digests(caption: str, named: Mapping[str, Any]) -> Html:
    if not named:
        return tag("p", f"{caption}: none.")
    rows = [[name, tag("code", _compact(value))] for name, value in named.items()]
    whole_table = table(caption, ["", "Value"], rows, words=True)
    return tag("div", whole_table, class_="sources")


def _compact(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
