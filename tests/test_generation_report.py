"""The report of a run of the generator, and its end in a terminal: both say what the summary says,
and nothing that a document or a model wrote is obeyed."""

from __future__ import annotations

import copy
import itertools
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from question_optimizer.generation.examples import examples
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.quotas import targets
from question_optimizer.generation.summary import Run, summarise
from question_optimizer.reports import told, write_generation_report
from question_optimizer.reports.page import STYLE
from test_generation_summary import CONFIGURATION, many, refused, slot
from test_report_browser import ALL, CHROMIUM, Proxy, browse, look, proxy
from test_reports import HOSTILE, Page

__all__ = ["browse", "look", "proxy"]  # fixtures

FOUND = {
    "questions": 640,
    "found": {"dense": 0.94, "bm25": 0.91, "both": 0.88},
    "recall": {"dense": {"1": 0.61, "10": 0.94}, "bm25": {"1": 0.66, "10": 0.91}},
    "ranks": {"dense": {"1": 400, "2–5": 200, "6–10": 40}},
}
RUN = Run(
    name="run-7",
    points=520,
    already_there=12,
    documents=50,
    started="2026-11-21T09:00:00+00:00",
    seconds=5231.2,
    made=700,
    exit_code=75,
    reason="every account's quota for today is spent",
    until="2026-11-22T00:00:00+00:00",
    round_trip=FOUND,
    near_duplicates={"compared": 640, "refused": 7},
    accounts=[
        {"name": "groq-1", "model": "small-8b", "started": 900, "ok": 880, "failed": 3,
         "rate_limited": 17, "input_tokens": 4000, "output_tokens": 500, "spend": 0.25,
         "spent_today": True}
    ],
    settings={"per_chunk": 3},
    resume="python optimized_question_generator.py --per-chunk 3",
    undo="python optimized_question_generator.py --undo run-7",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary and the examples of 1,500 slots; one gate refuses most of one type."""
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "generation.sqlite", CONFIGURATION)
    results, refusals = many(random.Random(5))
    results += [slot(900, findings=(("copies", "copies half of it"),), query_type="evaluative")]
    refusals += [refused(900, "language", query_type="evaluative")] * 900
    ledger.record(results, refusals)
    ledger.note_write("run-6", [(n, "{}") for n in range(40)])
    ledger.mark_written(range(40))
    summary = summarise(ledger, policy="training", targets=targets("even"), run=RUN)
    chosen = examples(ledger, texts_of=lambda ids: {chunk: f"text {chunk}" for chunk in ids})
    ledger.close()
    return summary, chosen


Made = tuple[dict[str, Any], dict[str, Any]]


def page_of(folder: Path, summary: dict[str, Any], chosen: dict[str, Any]) -> Page:
    write_generation_report(summary, folder / "report.html", examples=chosen)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def hostile(value: Any, text: str) -> Any:
    """Every text in `value` that is not a key of ours, and not a number, replaced by `text`."""
    if isinstance(value, dict):
        return {key: hostile(part, text) for key, part in value.items()}
    if isinstance(value, list):
        return [hostile(part, text) for part in value]
    return text if isinstance(value, str) else value


def hostile_made(made: Made, text: str) -> Made:
    """The figures with the text in every place that data reaches, names of gates included."""
    summary, chosen = copy.deepcopy(made)
    ours = {"policy": summary["policy"], "times": summary["times"]}
    for found in summary["yields"].values():
        del found["listed"][2:]
    summary = {**hostile(summary, text), **ours}
    for found in summary["yields"].values():
        for one in found["listed"]:
            one["gates"] = one["recorded"] = {text: 3}
    summary["round_trip"]["recall"] = {text: {text: 0.5}}
    summary["round_trip"]["ranks"] = {text: {text: 5}}
    summary["near_duplicates"] = {text: text}
    summary["configuration"]["settings"] = {text: {text: text}}
    return summary, {name: hostile(rows[:3], text) for name, rows in chosen.items()}


# ---------------------------------------------------------------------- the page


def test_every_section_is_there_and_every_link_leads_somewhere(made: Made, tmp_path: Path) -> None:
    page = page_of(tmp_path, *made)
    assert list(page.sections) == [
        "outcome", "gates", "yields", "quotas", "words", "round-trip", "health", "examples",
        "failures", "cost", "sources",
    ]  # fmt: skip
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = [value for value in page.values("href") if value]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    levels = [int(name[1]) for name, _ in page.headings]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.tags.count("caption") == page.tags.count("table")
    assert "next regression" not in page.text  # a key without a use is not offered


def test_the_top_says_what_came_out_why_it_ended_and_what_to_suspect(
    made: Made, tmp_path: Path
) -> None:
    summary, chosen = made
    said = page_of(tmp_path, summary, chosen).sections["outcome"]
    assert said.startswith("Ended early" + summary["sentence"])
    assert "Every account's quota for today is spent." in said
    assert "It can go on from 2026-11-22 00:00 UTC." in said
    assert "Time1 h 27 min" in said
    assert len(summary["warnings"]) >= 3
    for warning in summary["warnings"]:
        assert warning["text"][1:] in said
    assert "ehearsal" not in said
    rehearsed = page_of(tmp_path, {**summary, "rehearsal": True}, chosen)
    assert "Rehearsal. A rule-based stand-in" in rehearsed.sections["outcome"]


@pytest.mark.parametrize(
    ("changes", "state", "colour"),
    [
        ({}, "Finished", "go"),
        ({"warnings": [{"code": "x", "text": "One."}]}, "Finished, 1 warning", "inconclusive"),
        ({"slots": {"pending": 3}}, "Not finished", "inconclusive"),
        ({"questions": {"unchecked": 3}}, "Not finished", "inconclusive"),
        ({"end": {"reason": "no quota"}}, "Ended early", "inconclusive"),
    ],
)
def test_the_state_is_told_in_words(
    made: Made, tmp_path: Path, changes: dict[str, Any], state: str, colour: str
) -> None:
    summary = copy.deepcopy(made[0])
    summary |= {"warnings": changes.get("warnings", [])}
    for part, key, neutral in (
        ("slots", "pending", 0), ("questions", "unchecked", 0), ("end", "reason", "")
    ):  # fmt: skip
        summary[part][key] = changes.get(part, {}).get(key, neutral)
    page = page_of(tmp_path, summary, made[1])
    assert page.headings[1] == ("h2", state)
    assert f'class="verdict {colour}"' in page.source
    assert page.text.strip().startswith(f"{state}: questions for sqlite_docs")


def test_figures_stand_in_the_tables_as_in_the_summary(made: Made, tmp_path: Path) -> None:
    summary, chosen = made
    page = page_of(tmp_path, summary, chosen)
    gate = summary["gates"][0]
    assert gate["gate"] == "language"
    assert page.line("language")[:2] == [f"{100 * gate['share']['value']:.1f} %", "900"]
    worst = summary["yields"]["type"]["listed"][0]
    assert worst["kind"] == "evaluative"
    row = next(row for row in page.cells if row[0] == "evaluative")
    assert row[1:4] == [
        f"{100 * worst['yield']['value']:.1f} %", f"{worst['asked']:,}", str(worst["accepted"])
    ]  # fmt: skip
    assert row[-1] == "language 900"
    marked = [row for row in page.cells if row[0] == "language"][1]
    assert sum(cell.startswith("⚠") for cell in marked) == 1
    assert page.line("by embedding") == ["94.0 %", "61.0 %", "94.0 %"]
    assert page.line("groq-1")[-1] == "spent today"
    assert "Go on: python optimized_question_generator.py --per-chunk 3" in page.text
    assert "--undo run-7" in page.sections["sources"]
    assert len(page.items) == len(chosen["refused"]) + len(chosen["accepted"])
    assert all(one["question"] in page.sections["examples"] for one in chosen["refused"])
    assert "<summary>41 documents</summary>" in page.source


def test_the_page_without_anything_to_show_is_a_page(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "generation.sqlite", CONFIGURATION)
    page = page_of(tmp_path, summarise(ledger, policy="off"), examples(ledger))
    ledger.close()
    assert ("h2", "Finished") in page.headings
    assert "Nothing failed." in page.text


def test_the_same_summary_gives_the_same_bytes(made: Made, tmp_path: Path) -> None:
    assert write_generation_report(made[0], tmp_path / "a.html", examples=made[1])
    assert not write_generation_report(made[0], tmp_path / "a.html", examples=made[1])


# ---------------------------------------------------------------------- hostile text


def test_hostile_text_stays_text(made: Made, tmp_path: Path) -> None:
    for text in (HOSTILE, ALL):
        page = page_of(tmp_path, *hostile_made(made, text))
        assert page.tags.count("script") == page.tags.count("style") == 1
        assert not {"img", "iframe", "object", "base", "form", "link", "video"} & set(page.tags)
        names = {name for name, _ in page.attributes}
        assert not [name for name in names if name.startswith("on") or name in ("src", "style")]
        assert all(href and re.fullmatch(r"#[a-z0-9-]+", href) for href in page.values("href"))
        assert not re.search("[\x00-\x08\x1b\u202e]", page.source)
        assert f"<style>{STYLE}</style>" in page.source  # what the policy's digest is of


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome binary on PATH")
def test_a_hostile_report_runs_nothing_asks_for_nothing_and_fits_a_phone(
    made: Made, tmp_path: Path, look: Callable[..., Any], proxy: Proxy
) -> None:
    page_of(tmp_path, *hostile_made(made, f"{ALL} {'x' * 300}"))
    found = look(
        """
      const root = page.documentElement;
      found.push(page.title.slice(0, 5), page.scripts.length, root.scrollWidth);
      const inside = (element) => element.closest(".scroll, nav, .said, .skip");
      for (const element of page.querySelectorAll("main *"))
        if (!inside(element) && element.getBoundingClientRect().right > root.clientWidth + 1)
          found.push(element.outerHTML.slice(0, 80));
    """,
        width=390,
    )
    assert found == ["Ended", 1, 390]
    assert all(address.startswith("http://report.test/") for address in proxy.asked)


# ---------------------------------------------------------------------- the terminal


def test_the_end_of_a_run_fits_a_terminal_and_says_what_to_do(made: Made) -> None:
    summary, _ = made
    lines = told({**summary, "rehearsal": True})
    assert lines[0].startswith(summary["sentence"][:60])
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("WARNING: ") for line in lines) == 3
    table = lines[lines.index(next(line for line in lines if line.startswith("lowest"))) + 1 :]
    assert table[0].split()[:2] == ["type", "evaluative"]
    assert table[0].endswith("language")
    assert "next: go on: python optimized_question_generator.py --per-chunk 3" in lines
    assert any(line.startswith("next: --apply writes the questions of") for line in lines)
    assert any(line.startswith("rehearsal: ") for line in lines)


def test_a_finished_run_leads_to_the_export(made: Made) -> None:
    summary = copy.deepcopy(made[0])
    summary["end"]["reason"] = ""
    summary["slots"] |= {"pending": 0, "failed": 0}
    summary["questions"]["unchecked"] = summary["write_back"]["waiting"] = 0
    summary["warnings"] = []
    assert [line for line in told(summary) if line.startswith("next")] == [
        "next: export_questions.py makes training and test sets of them"
    ]


def test_a_terminal_obeys_nothing_of_what_it_is_told(made: Made) -> None:
    for text in (HOSTILE, ALL, "x\r\nWARNING: forged\x1b]0;owned\x07"):
        lines = told(hostile_made(made, text)[0])
        assert len(lines) <= 25
        assert max(map(len, lines)) <= 80
        assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e]", "".join(lines))
        assert not any(line.startswith("WARNING: forged") for line in lines)
