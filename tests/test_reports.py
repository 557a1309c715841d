"""The evaluation report: one file for people, made from the files of the run, with nothing live."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from question_optimizer.errors import UserError
from question_optimizer.reports import write_evaluation_report

ARMS = ("original", "optimised")
HOSTILE = (
    "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"
    "</p></article><a href='javascript:alert(3)'>\x1b[31mred\x1b[0m\u202e &amp; \"q\""
)


def row(item: str, arm: str, score: float | None, **more: Any) -> dict[str, Any]:
    return {
        "item": item,
        "arm": arm,
        "chunk_id": item,
        "score": score,
        "criteria": {},
        "feedback": f"feedback {item} {arm}",
        "question": f"question {item} {arm}",
        "gold_question": f"gold {item}",
        "chunk_text": f"chunk {item}",
        "error": "",
        **more,
    }


def pair(item: str, first: float | None, last: float | None, **more: Any) -> list[dict[str, Any]]:
    return [row(item, ARMS[0], first, **more), row(item, ARMS[1], last, **more)]


class Page(HTMLParser):
    """The tags and attributes of a page, and its text."""

    def __init__(self, source: str):
        super().__init__()
        self.source = source
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.items: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "article":
            self.items.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.items:
            self.items[-1] += data


def summary(**more: Any) -> dict[str, Any]:
    return {
        "items": 3,
        "scored_in_both": 3,
        "rehearsal": False,
        "verdict": "optimised − original: +0.100",
        "test_set_opened": 2,
        "arms": {
            "original": {"score": 0.5, "tokens_per_question": 120.0, "failed": 0},
            "optimised": {"score": 0.6, "tokens_per_question": 130.0, "failed": 1},
        },
        **more,
    }


@pytest.fixture
def report(tmp_path: Path):
    def make(rows: list[dict[str, Any]], **more: Any) -> Page:
        (tmp_path / "summary.json").write_text(json.dumps(summary(**more)), encoding="utf-8")
        lines = "".join(json.dumps(one) + "\n" for one in rows)
        (tmp_path / "scores.jsonl").write_text(lines, encoding="utf-8")
        write_evaluation_report(
            tmp_path,
            arms=ARMS,
            settings={"seed": 7, "models": ["student: <m>"]},
            inputs={"gold_dataset.json": "ab" * 32},
        )
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return make


def test_the_page_tells_verdict_arms_items_and_sources(report) -> None:
    page = report(pair("a", 0.5, 0.75))
    assert "optimised − original: +0.100." in page.text
    assert "3 of 3 test items have a score in both arms" in page.text
    assert "The test set was opened 2 time(s)." in page.text
    for shown in ("chunk a", "gold a", "question a original", "question a optimised"):
        assert shown in page.items[0]
    assert "original: 0.50" in page.items[0]
    assert "optimised: 0.75" in page.items[0]
    assert "feedback a optimised" in page.items[0]
    assert "ab" * 32 in page.text
    assert "student: <m>" in page.text
    assert "tokens per question120.000130.000" in re.sub(r"\s", " ", page.text)


def test_the_page_is_self_contained(report) -> None:
    page = report(pair("a", 0.5, 0.75))
    assert not re.search(r"https?:", page.source)
    assert "@import" not in page.source
    assert "url(" not in page.source
    assert not {"script", "link", "img", "iframe", "a", "object", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in {"src", "href"}]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert ("charset", "utf-8") in page.attributes


def test_hostile_texts_are_shown_as_text(report) -> None:
    hostile = dict.fromkeys(("chunk_text", "gold_question", "question", "feedback"), HOSTILE)
    rows = [row("a", ARMS[0], 0.5, **hostile), row("a", ARMS[1], None, **hostile, error=HOSTILE)]
    page = report(rows, verdict=HOSTILE)
    assert page.tags.count("article") == 1
    assert not {"script", "img", "a"} & set(page.tags)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page.source)
    # verdict, chunk, gold, question and feedback of one arm, error of the other
    assert page.text.count("<script>alert(1)</script><img src=https://evil.example/x") == 6
    assert page.text.count('red &amp; "q"') == 6


def test_lone_surrogates_do_not_stop_the_report(report) -> None:
    page = report(pair("a", 0.5, 0.75, chunk_text="half \ud83d pair"))
    assert "half \ufffd pair" in page.items[0]


def test_a_rehearsal_says_so_and_a_real_run_does_not(report) -> None:
    said = "Rehearsal. A rule-based stand-in wrote and judged these questions"
    assert said in report(pair("a", 0.5, 0.75), rehearsal=True).text
    assert "ehearsal" not in report(pair("a", 0.5, 0.75)).text


def test_regressions_come_first_and_gains_last(report) -> None:
    rows = pair("same", 0.5, 0.5) + pair("gain", 0.25, 1.0)
    rows += pair("small loss", 0.75, 0.5) + pair("big loss", 1.0, 0.0)
    page = report(rows)
    order = [re.search("gold ([a-z ]+?)original", item)[1].strip() for item in page.items]
    assert order == ["big loss", "small loss", "same", "gain"]


def test_failed_items_are_shown_with_their_reason_and_no_score(report) -> None:
    rows = [*pair("good", 0.5, 0.75), row("bad", ARMS[0], 0.25)]
    rows.append(row("bad", ARMS[1], None, question=None, error="the answer could not be read"))
    page = report(rows, items=2, scored_in_both=1)
    (bad,) = [item for item in page.items if "gold bad" in item]
    assert "optimised: failed" in bad
    assert "the answer could not be read" in bad
    assert "original: 0.25" in bad
    assert "None" not in bad
    assert "1 of 2 test items have a score in both arms" in page.text


def test_the_same_files_give_the_same_bytes(report, tmp_path: Path) -> None:
    first = report(pair("a", 0.5, 0.75)).source
    (tmp_path / "report.html").unlink()
    assert report(pair("a", 0.5, 0.75)).source == first


def test_a_run_without_its_files_names_the_phase(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        write_evaluation_report(tmp_path, arms=ARMS, settings={}, inputs={})
    assert str(refusal.value) == (
        f"{tmp_path / 'summary.json'}: does not exist; run evaluate_pipeline.py first"
    )
    assert not (tmp_path / "report.html").exists()
