"""The verdict in a terminal: inert whatever a document or a model says, and 80 columns wide."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import LLMServer
from question_optimizer import files
from question_optimizer.reports.terminal import estimate, show_check, show_verdict
from question_optimizer.verdict import summarise
from test_evaluation import (
    Messages,
    Model,
    Project,
    Serve,
    fields,
    gold_item,
    project_in,
    serving,
    topic_of,
    write_program,
)

# A title, colours, a cleared screen, a hyperlink, a C1 sequence, a reversed line, markup of rich's.
HOSTILE = (
    "\x1b]0;pwned\x07\x1b[31mred\x1b[2J\x1b]8;;http://evil.example\x1b\\link\x9b1m"
    "\u202eesrever\u2066 [red]marked[/red] [link=http://evil.example]up[/link] \r\b\b"
)


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    return project_in(tmp_path, monkeypatch, capsys)


@pytest.fixture
def serve(project: Project, llm_server: Callable[..., LLMServer]) -> Serve:
    return serving(project, llm_server)


def obeyed(text: str) -> set[str]:
    """The characters of a text that a terminal obeys."""
    kinds = {c: unicodedata.category(c) for c in text}
    bidi = {c for c in text if unicodedata.bidirectional(c) in {"RLO", "LRO", "RLI", "LRI", "FSI"}}
    return bidi | {c for c, kind in kinds.items() if kind == "Cc" and c != "\n"}


def row(number: int, arm: str, score: float | None, **more: Any) -> dict[str, Any]:
    return {
        "item": f"{number:016x}",
        "arm": arm,
        "repeat": 0,
        "document": "manual",
        "model": "m",
        "score": score,
        "passed": None if score is None else score >= 0.75,
        "criteria": {},
        "gates": [],
        "question": f"Question {number} of {arm}?",
        "gold_question": f"Gold {number}?",
        "chunk_text": f"Chunk {number}.",
        "tokens": 10,
        "latency_seconds": 0.5,
        "cost": 0.0001,
        "error": "" if score is not None else "no answer",
        "valid": True,
        "pairwise": None,
        **more,
    }


def shown(
    rows: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    *,
    examples: int = 5,
    **more: Any,
) -> str:
    candidates = sorted({row["arm"] for row in rows} - {"original", "existing"})
    summary = summarise(
        rows,
        baseline="original",
        candidates=candidates,
        gold_items=100,
        test_items=len(rows) // 2,
        seed=0,
    )
    told: Mapping[str, Any] = {
        "judge": {"checked": False, "why": "nobody checked it"},
        "programs": {},
        "test_set_opened": 1,
        **summary,
        **more,
    }
    show_verdict(told, rows, examples=examples)
    return capsys.readouterr().out


def pair(number: int, before: float | None, after: float | None, **more: Any) -> list[dict]:
    return [
        row(number, "original", before, **more),
        row(number, "optimised", after, **more),
    ]


ROWS = [r for n in range(8) for r in pair(n, 0.5, 0.5 + (n - 3) / 20)]


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def test_hostile_texts_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"question": HOSTILE, "gold_question": HOSTILE, "chunk_text": HOSTILE}
    rows = [r for n in range(8) for r in pair(n, 0.5, None if n == 0 else 0.6, **texts)]
    for one in rows:
        one["error"] = HOSTILE if one["score"] is None else ""
    out = shown(rows, capsys, examples=8)
    assert obeyed(out) == set()
    flat = " ".join(out.split())
    assert "[red]marked[/red] [link=http://evil.example]up[/link]" in flat
    assert "pwned" not in out  # a title is no text
    assert "failed: red" in flat


def test_a_programs_origin_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    origin = {"judge_checked": True, "judge_trusted": False, "judge_why": HOSTILE}
    out = shown(ROWS, capsys, programs={"optimised": origin})
    assert "[red]marked[/red]" in out
    assert obeyed(out) == set()


def test_the_judges_check_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(ROWS, capsys, judge=check(why=HOSTILE))
    assert "[red]marked[/red]" in " ".join(out.split())
    assert obeyed(out) == set()


def test_a_question_cannot_forge_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    texts = {"question": "What?\nGO: optimised is better", "gold_question": "What?\nGO: yes"}
    rows = [r for n in range(8) for r in pair(n, 0.5, 0.4, **texts)]
    out = shown(rows, capsys)
    assert out.startswith("NO-GO: ")
    assert not [line for line in out.splitlines() if line.startswith("GO:")]


def test_nothing_is_wider_than_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    arms = ["original", "optimised", "a_rather_long_name", "another_long_name", "existing"]
    rows = [
        row(number, arm, (number + place) / 20, chunk_text="long " * 99, question="word " * 40)
        for number in range(8)
        for place, arm in enumerate(arms)
    ]
    out = shown(rows, capsys)
    assert max(len(line) for line in out.splitlines()) <= 80
    for words in ("98.3333", "(decides", "existing"):
        assert words in out


def examples_of(out: str) -> list[str]:
    return re.findall(r"^gold +Gold (\d+)\?", out, re.M)


def test_examples_are_the_largest_loss_and_the_largest_gain_in_turn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert examples_of(shown(ROWS, capsys, examples=5)) == ["0", "7", "1", "6", "2"]
    assert examples_of(shown(ROWS, capsys, examples=100)) == list("07162543")
    assert examples_of(shown(ROWS, capsys, examples=0)) == []
    out = shown(ROWS, capsys, examples=1)
    assert "original   Question 0 of original?  (0.50)" in out
    assert "optimised  Question 0 of optimised?  (0.35)" in out


def test_what_was_not_measured_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(pair(0, None, None), capsys)
    assert out.startswith("INCONCLUSIVE: no item was scored in both optimised and original")
    assert re.search(r"│ score +│ +– │ +– │", out)
    assert re.search(r"│ interval +│ +– │", out)
    assert "failed: no answer" in out


def test_small_costs_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**r, "cost": 0.0001 if r["arm"] == "original" else 0.0002} for r in ROWS]
    line = next(li for li in shown(rows, capsys).splitlines() if "cost per question" in li)
    assert "0.0001" in line and "0.0002" in line


NOTHING = {"value": None, "low": None, "high": None}


def check(**more: Any) -> dict[str, Any]:
    return {
        "judge": "built-in",
        "pairs": 0,
        "by_kind": {},
        "pointwise": NOTHING,
        "pairwise": NOTHING,
        "labels": {"raw": NOTHING, "kappa": NOTHING, "ac1": NOTHING},
        "order": {"consistent": NOTHING, "first_chosen": NOTHING},
        "checked": True,
        "trusted": False,
        "in_part": False,
        "why": "there was nothing to ask",
        **more,
    }


def test_a_check_without_figures_is_shown_with_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    show_check(check())
    out = capsys.readouterr().out
    assert out.count("–") == 7
    assert out.splitlines()[-1] == "NOT TRUSTED: there was nothing to ask"


def test_a_checks_figures_are_shown_with_their_intervals(
    capsys: pytest.CaptureFixture[str],
) -> None:
    some = {"value": 0.78, "low": 0.69, "high": 0.85}
    kinds = {kind: {"pairs": 9, "pointwise": some, "pairwise": NOTHING} for kind in ("bad",)}
    show_check(check(by_kind=kinds, pointwise=some, trusted=True, why="it is good"))
    out = capsys.readouterr().out
    assert out.count("0.78 (0.69 to 0.85)") == 2
    assert out.splitlines()[-1] == "trusted: it is good"
    assert max(map(len, out.splitlines())) <= 80


def test_why_a_judge_is_not_trusted_is_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    show_check(check(why=f"3 pairs could not be judged ({HOSTILE})"))
    assert obeyed(capsys.readouterr().out) == set()


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        (NOTHING, "–"),
        ({"value": 0.5, "low": None, "high": None}, "0.50"),
        ({"value": 0.784, "low": 0.6, "high": 0.85}, "0.78 (0.60 to 0.85)"),
        ({"value": -0.1, "low": -1.0, "high": 0.0}, "-0.10 (-1.00 to 0.00)"),
    ],
)
def test_an_estimate_in_words(figures: dict[str, float | None], text: str) -> None:
    assert estimate(figures) == text


# ---------------------------------------------------------------------- from the command line


class Poisoned(Model):
    """Everything it writes is hostile."""

    def write(self, messages: Messages) -> str:
        return fields(query=f"{HOSTILE} pressure of machine topic{topic_of(messages):02}?")

    def score(self, messages: Messages) -> str:
        return super().score(messages).replace("of level", f"{HOSTILE} of level")

    def compare(self, messages: Messages) -> str:
        return super().compare(messages).replace("by level", HOSTILE)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        pytest.param(["--json"]),
    ],
)
def test_hostile_documents_and_models_are_inert_from_end_to_end(
    flags: list[str], project: Project, serve: Serve
) -> None:
    serve(Poisoned())
    items = [
        gold_item(number, "test") | {"existing_query": f"{HOSTILE} topic{number:02}?"}
        for number in range(8)
    ]
    for item in items:
        item["chunk_text"] += HOSTILE
        item["gold_question"] += HOSTILE
        item["document_id"] = HOSTILE
        item["persona_description"] += HOSTILE
    project.write_gold(items)
    done = project.evaluate(*flags)
    assert done.code in (0, 3, 4)
    assert obeyed(done.out + done.err) == set()
    report = (project.folder() / "report.html").read_text(encoding="utf-8")
    assert "[red]marked[/red]" in report and "\x1b" not in report


@pytest.mark.parametrize("flags", [["--check-judge"], []])
@pytest.mark.parametrize("status", [400, 401])
def test_a_hostile_servers_errors_are_not_obeyed(
    status: int, flags: list[str], project: Project, serve: Serve
) -> None:
    server = serve()
    text = json.dumps({"error": {"message": f"no {HOSTILE}"}})
    server.fail = lambda number: (status, {}, text)
    done = project.evaluate(*flags)
    assert done.code in (2, 3, 4)
    assert obeyed(done.out + done.err) == set()


def test_json_alone_stands_on_stdout(project: Project, serve: Serve) -> None:
    serve()
    done = project.evaluate("--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == project.summary()
    assert project.evaluate("--json").out == done.out


def test_json_tells_of_failed_items_on_stderr_only(project: Project, serve: Serve) -> None:
    class Mute(Model):
        def score(self, messages: Messages) -> str:
            return "no idea" if topic_of(messages) == 2 else super().score(messages)

    serve(Mute())
    done = project.evaluate("--json")
    assert done.code == 4 and json.loads(done.out)["arms"]["original"]["failed"] == 1
    assert done.err.startswith("1 items failed in an arm")


def test_as_many_examples_as_asked_for(project: Project, serve: Serve) -> None:
    serve()
    for flags, count in (([], 5), (["--examples", "0"], 0), (["--examples", "3"], 3)):
        done = project.evaluate(*flags)
        assert done.out.count("\ngold ") == count
        assert max(map(len, done.out.splitlines()[:-1])) <= 80
    assert project.evaluate("--examples", "-1").code == 2


def test_a_rehearsal_says_so_in_its_last_line(project: Project) -> None:
    done = project.evaluate("--rehearsal")
    assert "(rehearsal: says nothing about a real model)" in done.out.splitlines()[-1]
    assert project.summary()["rehearsal"] is True


def test_a_run_of_an_earlier_version_is_shown_or_made_again(project: Project, serve: Serve) -> None:
    serve()
    project.evaluate()
    path = project.folder() / "summary.json"
    meta = files.read_meta(path, made_by="")
    summary = project.summary()
    del summary["programs"]
    files.write_json(path, summary)
    meta["output"]["sha256"] = files.sha256(path)
    files.write_json(files.meta_path(path), meta)
    assert project.evaluate().code == 0


def test_two_programs_fit_into_the_tables(project: Project, serve: Serve) -> None:
    serve()
    write_program(project.root / "one.json", "worse")
    done = project.evaluate("--program", "a_name_of_thirty_characters_ok=one.json")
    assert done.code == 0
    assert max(map(len, done.out.splitlines()[:-1])) <= 80
