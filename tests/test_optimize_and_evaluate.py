"""Optimisation and evaluation as a person meets them: outages, budgets, Ctrl-C, resumption."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, SAMPLE, LLMServer, Script, clean_environment
from question_optimizer import rehearsal

ACCOUNT = """
[[accounts]]
name = "only"
model = "m"
base_url = "{url}/v1"
api_key_env = "ONLY_KEY"
concurrency = 4
input_price = 1.0
output_price = 2.0
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data dir with a gold set and an optimised pipeline, made by the rehearsal."""
    root = tmp_path_factory.mktemp("prepared")
    common = ["--data-dir", str(root / "data"), "--rehearsal"]
    common += ["--personas-file", str(SAMPLE / "personas.json")]
    for command in (
        ["fetch_chunks.py", "--qdrant-path", str(SAMPLE / "small_sqlite")],
        ["annotate_chunks.py", "--replay", str(SAMPLE / "decisions.jsonl")],
        ["optimize_pipeline.py", "--num-candidate-programs", "1"],
    ):
        subprocess.run(
            [sys.executable, str(ROOT / command[0]), *command[1:], *common],
            env=clean_environment(),
            check=True,
            capture_output=True,
        )
    shutil.rmtree(root / "data" / "cache")
    return root / "data"


@pytest.fixture
def project(
    prepared: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> Callable[..., LLMServer]:
    """Put data and an account into the test's folder, served by the given reply."""
    shutil.copytree(prepared, tmp_path / "data")

    def serve(reply: Callable[[list[dict[str, Any]]], str] = rehearsal.answer) -> LLMServer:
        server = llm_server(reply)
        (tmp_path / "llm_providers.toml").write_text(ACCOUNT.format(url=server.url))
        return server

    return serve


KEY = {"ONLY_KEY": "sk-only-key-0123456789"}


def is_judge(messages: list[dict[str, Any]]) -> bool:
    return "`answerable`" in messages[0]["content"]


def test_an_unreadable_judge_stops_the_search_instead_of_scoring_zero(
    project: Callable[..., LLMServer], script: Script, tmp_path: Path
) -> None:
    project(lambda m: "no idea" if is_judge(m) else rehearsal.answer(m))
    before = (tmp_path / "data" / "optimized_pipeline.json").read_bytes()
    done = script("optimize_pipeline.py", "--fresh", "--num-candidate-programs", "1", **KEY)
    assert done.returncode == 4
    assert "could not be judged" in done.stderr
    assert "the judge's answer could not be read" in done.stderr
    assert (tmp_path / "data" / "optimized_pipeline.json").read_bytes() == before


def test_an_item_that_cannot_be_judged_is_left_out_of_both_arms_and_counted(
    project: Callable[..., LLMServer], script: Script, tmp_path: Path
) -> None:
    gold = json.loads((tmp_path / "data" / "gold_dataset.json").read_text(encoding="utf-8"))
    victim = next(item for item in gold if item["split"] == "test")["gold_question"]
    project(
        lambda m: "no idea" if is_judge(m) and victim in m[-1]["content"] else rehearsal.answer(m)
    )
    done = script("evaluate_pipeline.py", "--json", **KEY)
    summary = json.loads(done.stdout)
    assert done.returncode == 4
    assert summary["comparisons"][0]["n"] == summary["items"] - 1
    assert [summary["arms"][arm]["failed"] for arm in ("original", "optimised")] == [1, 1]
    rows = next((tmp_path / "data" / "runs").iterdir()) / "scores.jsonl"
    failed = [r for r in map(json.loads, rows.read_text().splitlines()) if r["score"] is None]
    assert {row["error"] for row in failed} == {"the judge's answer could not be read"}
    assert {row["gold_question"] for row in failed} == {victim}


def test_the_test_split_is_never_shown_to_the_optimiser(
    project: Callable[..., LLMServer], script: Script, tmp_path: Path
) -> None:
    gold = json.loads((tmp_path / "data" / "gold_dataset.json").read_text(encoding="utf-8"))
    server = project()
    done = script("optimize_pipeline.py", "--fresh", "--num-candidate-programs", "1", **KEY)
    assert done.returncode == 0, done.stderr
    sent = "\n".join(str(body["messages"]) for *_, body in server.requests)
    for item in gold:
        assert (item["gold_question"] in sent) <= (item["split"] != "test")
    assert any(item["gold_question"] in sent for item in gold if item["split"] == "dev")


def test_the_budget_ends_the_run_before_it_is_passed_and_a_higher_one_resumes(
    project: Callable[..., LLMServer], script: Script
) -> None:
    server = project()
    poor = script("evaluate_pipeline.py", "--max-cost", "0.02", **KEY)
    assert poor.returncode == 5
    assert "budget reached" in poor.stderr and "--max-cost" in poor.stderr
    paid = len(server.requests)
    assert 0 < paid < 40
    rich = script("evaluate_pipeline.py", "--max-cost", "5", **KEY)
    assert rich.returncode == 0, rich.stderr
    bodies = [json.dumps(body, sort_keys=True) for *_, body in server.requests]
    assert not set(bodies[:paid]) & set(bodies[paid:]), "a paid call was paid again"


def test_ctrl_c_keeps_what_was_answered_and_names_the_command_that_resumes(
    project: Callable[..., LLMServer], script: Script, tmp_path: Path
) -> None:
    def slow(messages: list[dict[str, Any]]) -> str:
        time.sleep(0.05)
        return rehearsal.answer(messages)

    server = project(slow)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate_pipeline.py")],
        cwd=tmp_path,
        env=clean_environment(**KEY),
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(server.requests) < 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == (
        "evaluate_pipeline.py: resume with: python evaluate_pipeline.py"
    )
    assert "Traceback" not in stderr
    answered = len(server.requests)
    done = script("evaluate_pipeline.py", **KEY)
    assert done.returncode == 0, done.stderr
    bodies = [json.dumps(body, sort_keys=True) for *_, body in server.requests]
    assert not set(bodies[:answered]) & set(bodies[answered:]), "an answer was thrown away"


def test_dry_runs_call_nothing_and_say_what_they_would(
    project: Callable[..., LLMServer], script: Script
) -> None:
    server = project()
    for name, calls in (("optimize_pipeline.py", "student"), ("evaluate_pipeline.py", "judge")):
        done = script(name, "--dry-run", **KEY)
        assert done.returncode == 0
        for word in ("dry run:", calls, "tokens", "cost ", "no limit per minute"):
            assert word in done.stdout
    assert "show a score difference of about 0." in done.stdout
    assert server.requests == []


def test_evaluating_before_optimising_names_the_phase_to_run(
    project: Callable[..., LLMServer], script: Script, tmp_path: Path
) -> None:
    project()
    for path in (tmp_path / "data").glob("optimized_pipeline*"):
        path.unlink()
    done = script("evaluate_pipeline.py", **KEY)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("does not exist; run optimize_pipeline.py first")
    assert not (tmp_path / "data" / "runs").exists()


def test_a_students_failure_is_left_out_of_the_search_and_never_counts_zero(
    project: Callable[..., LLMServer], script: Script, tmp_path: Path
) -> None:
    server = project()
    server.fail = lambda n: (400, {}, '{"error": {"message": "filtered"}}') if n % 9 == 0 else None
    before = (tmp_path / "data" / "optimized_pipeline.json").read_bytes()
    done = script("optimize_pipeline.py", "--fresh", "--num-candidate-programs", "1", **KEY)
    assert done.returncode == 4
    assert "could not be judged (LMInvalidRequestError" in done.stderr
    assert (tmp_path / "data" / "optimized_pipeline.json").read_bytes() == before


def test_failed_items_are_asked_again_by_the_same_command(
    project: Callable[..., LLMServer], script: Script, tmp_path: Path
) -> None:
    healthy = False
    project(lambda m: "no idea" if is_judge(m) and not healthy else rehearsal.answer(m))
    poor = script("evaluate_pipeline.py", **KEY)
    assert poor.returncode == 4
    assert "no item was scored in both optimised and original" in poor.stdout
    healthy = True
    done = script("evaluate_pipeline.py", **KEY)
    assert done.returncode == 0, done.stderr
    assert "95 % interval" in " ".join(done.stdout.split())


def test_a_lost_file_of_a_run_is_made_again_from_the_cache(
    project: Callable[..., LLMServer], script: Script, tmp_path: Path
) -> None:
    server = project()
    assert script("evaluate_pipeline.py", **KEY).returncode == 0
    asked = len(server.requests)
    run = next((tmp_path / "data" / "runs").iterdir())
    kept = (run / "scores.jsonl").read_bytes()
    for name in ("scores.jsonl", "report.html"):
        (run / name).unlink()
    assert script("evaluate_pipeline.py", **KEY).returncode == 0
    assert (run / "scores.jsonl").read_bytes() == kept
    assert (run / "report.html").exists()
    assert len(server.requests) == asked


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("optimize_pipeline.py", ["--max-cost", "nan"], "must be a number, not negative"),
        ("optimize_pipeline.py", ["--max-cost", "-1"], "must be a number, not negative"),
        ("optimize_pipeline.py", ["--pass-score", "7"], "must be from 0 to 1"),
        ("optimize_pipeline.py", ["--num-candidate-programs", "-3"], "must be a whole number"),
        ("optimized_question_generator.py", ["--limit", "-1"], "must be a whole number"),
        ("evaluate_pipeline.py", ["--examples", "x"], "must be a whole number"),
    ],
)
def test_numbers_that_cannot_work_are_refused(
    name: str, flags: list[str], message: str, script: Script
) -> None:
    done = script(name, *flags)
    assert done.returncode == 2
    assert message in done.stderr
