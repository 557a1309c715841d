"""The report of a run of the generator, and its end in a terminal: both say what the summary says,
and nothing that a document or a model wrote is obeyed."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import random
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from generator_runs import Asked, Scripted, corpus, generator_for, good_question, text_of
from ledger_marks import mark_written
from question_optimizer.errors import StopRun
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
    "within": 10,
    "found": {"dense": 0.94, "bm25": 0.91, "both": 0.88},
    "recall": {"dense": {"1": 0.61, "10": 0.94}, "bm25": {"1": 0.66, "10": 0.91}},
    "ranks": {"dense": {"1": 400, "2-5": 200, "6-10": 40, "above 100": 0}},
}
RUN = Run(
    name="run-7",
    points=520,
    already_there=12,
    started="2026-11-21T09:00:00+00:00",
    seconds=5231.2,
    made=700,
    exit_code=75,
    reason="every account's quota for today is spent",
    until="2026-11-22T00:00:00+00:00",
    round_trip=FOUND,
    accounts=[
        {"name": "groq-1", "model": "small-8b", "started": 900, "ok": 880, "failed": 3,
         "rate_limited": 17, "input_tokens": 4000, "output_tokens": 500, "spend": 0.25,
         "spent_today": True}
    ],
    settings={"per_chunk": 3},
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
    mark_written(ledger, range(40))
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
    assert page.line("by embedding") == ["61.0 %", "94.0 %"]
    assert page.line("by both") == ["–", "88.0 %"]  # known within the policy's rank alone
    assert page.line("groq-1")[-1] == "spent today"
    assert "Go on: start it again with the same settings." in page.sections["sources"]
    assert "--undo run-7" in page.sections["sources"]
    assert len(page.items) == len(chosen["refused"]) + len(chosen["accepted"])
    assert all(one["question"] in page.sections["examples"] for one in chosen["refused"])
    assert "<summary>41 documents</summary>" in page.source


def test_the_numbers_behind_the_plan_the_lengths_and_the_gates_are_told(
    made: Made, tmp_path: Path
) -> None:
    summary, chosen = made
    sections = page_of(tmp_path, summary, chosen).sections
    assert "two formal questions for each keyword query" in sections["quotas"]
    assert "formal question, medium10 to 15" in sections["words"]
    assert "keywords, medium4" in sections["words"]
    assert "finds its chunk within rank 10." in sections["round-trip"]
    assert "trivially" not in sections["round-trip"]  # training lets these be
    weights = {"types": {"reasoning": 1}}
    (tmp_path / "weights.json").write_text(json.dumps(weights), encoding="utf-8")
    ledger = Ledger(tmp_path / "generation.sqlite", CONFIGURATION)
    ledger.record([slot(1)])
    other = targets(tmp_path / "weights.json")
    summary = summarise(ledger, policy="evaluation", targets=other, run=Run(max_rank=20))
    ledger.close()
    sections = page_of(tmp_path, summary, chosen).sections
    assert "The plan is even" not in sections["quotas"]
    assert "within rank 20" in sections["round-trip"]
    few = "at most 30.0 % of the accepted questions may be so, and 10 in any case"
    assert few in sections["round-trip"]


def test_the_figures_of_the_set_name_what_they_are_and_nothing_that_was_not_looked_at(
    made: Made, tmp_path: Path
) -> None:
    summary = copy.deepcopy(made[0])
    summary["health"]["opening"] = {"words": "how does", "share": 0.25}
    page = page_of(tmp_path, summary, made[1])
    assert page.line("the words") == ["how does"]
    assert page.line("questions that begin so") == ["25.0 %"]
    said = page.sections["health"]
    for nothing in ("gold", "without a question", "of no known kind", "accepted"):
        assert nothing not in said


def test_what_is_not_checked_yet_is_told_beside_what_was_accepted(
    made: Made, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "generation.sqlite", CONFIGURATION)
    ledger.record([slot(n, checked="") for n in range(1200)])
    ledger.record([slot(2000 + n) for n in range(3)])
    summary = summarise(ledger, policy="training", run=Run(reason="interrupted"))
    ledger.close()
    assert summary["sentence"].endswith("; 1,200 not yet checked against the corpus.")
    page = page_of(tmp_path, summary, made[1])
    assert "Accepted1,203Not yet checked1,200" in page.sections["outcome"]


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
    assert len(lines) <= 26
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("WARNING: ") for line in lines) == 3
    table = lines[lines.index(next(line for line in lines if line.startswith("lowest"))) + 1 :]
    assert table[0].split()[:2] == ["type", "evaluative"]
    assert table[0].endswith("language")
    assert "next: start it again; it goes on" in lines
    assert any(line.startswith("next: --apply writes the questions of") for line in lines)
    assert any(line.startswith("rehearsal: ") for line in lines)
    assert any(line.startswith("Without a question: ") for line in lines)
    older = {key: value for key, value in summary.items() if key != "without"}
    assert told(older)[0] == lines[0]


def test_a_finished_run_leads_to_the_export(made: Made) -> None:
    summary = copy.deepcopy(made[0])
    summary["end"]["reason"] = ""
    summary["slots"] |= {"pending": 0, "failed": 0}
    summary["questions"]["unchecked"] = summary["write_back"]["waiting"] = 0
    summary["warnings"] = []
    command = f"python export_questions.py --qdrant-path {'deep/' * 20}"
    told_next = [line for line in told(summary, export=command) if line.startswith("next")]
    assert told_next == [f"next: {command}"], "whole, so that it can be pasted"


def test_a_run_with_nothing_to_do_tells_no_old_yields_and_warnings(made: Made) -> None:
    lines = told(made[0], idle=True)
    assert lines[0] == told(made[0])[0]
    assert not [line for line in lines if line.startswith(("lowest", "WARNING", "from the plan"))]


def test_a_terminal_obeys_nothing_of_what_it_is_told(made: Made) -> None:
    for text in (HOSTILE, ALL, "x\r\nWARNING: forged\x1b]0;owned\x07"):
        lines = told(hostile_made(made, text)[0])
        assert len(lines) <= 26
        assert max(map(len, lines)) <= 80
        assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e]", "".join(lines))
        assert not any(line.startswith("WARNING: forged") for line in lines)


# ---------------------------------------------------------------------- a run that goes on


async def test_an_interrupted_run_and_the_next_tell_of_all_that_was_made(tmp_path: Path) -> None:
    """What was refused once and will be asked again is not given up; and a search of few questions
    does not hide what an earlier one found."""
    folder, data = corpus(tmp_path / "units", 30), tmp_path / "data"

    seven: list[Asked] = []

    def write(asked: Asked, number: int) -> str:
        if asked.chunk_text != text_of(7):
            return good_question(asked, number)
        seven.append(asked)
        if len(seven) == 2:
            raise StopRun("interrupted", exit_code=130)
        zebras = "Why do zebras yawn when penguins sing opera at noon?"
        return zebras if len(seven) == 1 else good_question(asked, number)

    given = {"gates": "training", "limit": None, "max_rank": 3, "concurrency": 1}
    first = await generator_for(folder, data, pipeline=Scripted(write), **given).generate()
    assert (first.stopped, first.rejected) == ("interrupted", 0)
    assert first.report["sentence"].endswith("; 1 to be made.")
    assert first.report["without"] == "Without a question: 1 chunk (to be made)."
    assert first.report["round_trip"]["questions"] == 30
    listed = first.report["yields"]["document"]["listed"]
    assert {one["name"] for one in listed} == {f"manual-{n}.pdf" for n in range(3)}

    again = await generator_for(folder, data, pipeline=Scripted(write), **given).generate()
    found = again.report["round_trip"]
    assert (found["questions"], found["of"], found["in_this_run"]) == (31, 31, 1)
    assert found["within"] == 3
    page = Page((data / "generation_report.html").read_text(encoding="utf-8"))
    assert "31 questions searched for, 1 of them in this run" in page.sections["round-trip"]
    assert again.report["without"] == ""


async def test_the_undo_that_the_report_names_works_as_it_stands_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimized_question_generator import main

    folder, data = corpus(tmp_path / "units", 3), tmp_path / "its data"
    summary = await generator_for(folder, data, pipeline=Scripted()).generate()
    command = summary.report["end"]["undo"]
    page = Page((data / "generation_report.html").read_text(encoding="utf-8"))
    assert f"Take this run's questions out again: {command}" in page.sections["sources"]
    program, script, *flags = shlex.split(command)
    assert (program, script) == ("python", "optimized_question_generator.py")
    assert await asyncio.to_thread(main, flags) == 0
    assert "3 chunks restored as they were before" in capsys.readouterr().out


async def test_an_application_with_its_own_client_is_told_no_command(tmp_path: Path) -> None:
    folder, data = corpus(tmp_path / "units", 3), tmp_path / "data"
    client = QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    try:
        own = {"qdrant_path": None, "client": client, "pipeline": Scripted()}
        summary = await generator_for(folder, data, **own).generate()
    finally:
        client.close()
    assert summary.written == 3
    assert summary.report["end"]["undo"] == ""
    assert "python optimized" not in (data / "generation_report.html").read_text(encoding="utf-8")
