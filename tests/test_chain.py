"""All phases together: twice, killed at random moments, and over HTTP to two kinds of provider."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, SAMPLE, LLMServer, Script, clean_environment, tree_digest

# What may differ between two runs that did the same work: logs of calls, SQLite's own layout.
_VOLATILE = (
    *("cache/", "annotations.sqlite", "generation.sqlite", "daily_request_log.json"),
    *("optimize.lock", "generation_summary.json", "generation_report.html"),
)
_KILLS = int(os.environ.get("CHAIN_KILLS", "1"))  # of each phase


def phases(data: Path, qdrant: Path, *extra: str) -> dict[str, list[str]]:
    """The command of each phase, small enough for a test."""
    common = ["--data-dir", str(data), "--personas-file", str(SAMPLE / "personas.json"), *extra]
    replay = ["--replay", str(SAMPLE / "decisions.jsonl")]
    # One persona needs no embedding model, which would cost every process eight seconds.
    generate = ["--qdrant-path", str(qdrant), "--limit", "40"]
    generate += ["--personas-file", str(ROOT / "tests" / "one_persona.json")]
    return {
        "fetch_chunks.py": [*common, "--qdrant-path", str(qdrant)],
        "annotate_chunks.py": [*common, *replay],
        "optimize_pipeline.py": [*common, "--num-candidate-programs", "2"],
        "evaluate_pipeline.py": common,
        "optimized_question_generator.py": [*common, *generate],
    }


def run_phase(name: str, args: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / name), *args],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def outputs(data: Path) -> dict[str, str]:
    return {
        name: digest for name, digest in tree_digest(data).items() if not name.startswith(_VOLATILE)
    }


def queries(qdrant: Path) -> dict[str, Any]:
    """{point id: (query in the payload, query in LlamaIndex's node, vector)}, by the client."""
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(qdrant))
    try:
        points, _ = client.scroll("sqlite_docs", limit=1000, with_vectors=True)
        return {
            str(p.id): (
                p.payload.get("generated_query"),
                json.loads(p.payload["_node_content"])["metadata"].get("generated_query"),
                p.vector,
            )
            for p in points
        }
    finally:
        client.close()


def calls_made(data: Path) -> int:
    log = json.loads((data / "daily_request_log.json").read_text(encoding="utf-8"))
    return sum(entry["requests"] for day in log.values() for entry in day.values())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(data dir, Qdrant folder) after one uninterrupted run of all phases."""
    root = tmp_path_factory.mktemp("chain")
    data, qdrant = root / "data", root / "qdrant"
    shutil.copytree(SAMPLE / "small_sqlite", qdrant)
    for name, args in phases(data, qdrant, "--rehearsal").items():
        done = run_phase(name, args, root)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert "rehearsal" in done.stdout.splitlines()[-1], name
    return data, qdrant


def test_every_phase_leaves_the_files_of_the_contract(finished: tuple[Path, Path]) -> None:
    data, qdrant = finished
    run = next((data / "runs").iterdir())
    for path in (
        *(data / name for name in ("raw_chunks.jsonl", "rejected_chunks.jsonl")),
        *(data / name for name in ("gold_dataset.json", "optimized_pipeline.json")),
        data / "generated_questions.jsonl",
        run / "summary.json",
    ):
        meta = json.loads(path.with_name(path.name + ".meta.json").read_text(encoding="utf-8"))
        assert meta["schema_version"] == 1
        assert meta["output"]["name"] == path.name
        assert meta.get("rehearsal", True) is True, f"{path} does not say it is a rehearsal's"
    assert {p.name for p in run.iterdir()} >= {"scores.jsonl", "summary.json", "report.html"}
    assert "Rehearsal" in (run / "report.html").read_text(encoding="utf-8")
    assert sum(query is not None for query, *_ in queries(qdrant).values()) == 40


def test_optimisation_visibly_moves_the_rehearsed_score(finished: tuple[Path, Path]) -> None:
    summary = json.loads(
        next((finished[0] / "runs").iterdir()).joinpath("summary.json").read_text()
    )
    assert summary["comparisons"][0]["low"] > 0.05
    assert summary["comparisons"][0]["n"] == summary["items"] >= 20


def test_a_second_run_changes_nothing_and_calls_no_model(finished: tuple[Path, Path]) -> None:
    data, qdrant = finished
    before, asked, written = tree_digest(data), calls_made(data), tree_digest(qdrant)
    for name, args in phases(data, qdrant, "--rehearsal").items():
        done = run_phase(name, args, data.parent)
        assert done.returncode == 0, f"{name}: {done.stderr}"
    assert calls_made(data) == asked
    changed = {
        name
        for name, digest in tree_digest(data).items()
        if before.get(name) != digest and not name.endswith(".json.shared")  # who is attached
    }
    assert changed == set()
    assert tree_digest(qdrant) == written


@pytest.mark.parametrize(
    "name",
    [
        "fetch_chunks.py",
        "annotate_chunks.py",
        "optimize_pipeline.py",
        "evaluate_pipeline.py",
        "optimized_question_generator.py",
    ],
)
def test_a_phase_killed_at_random_moments_ends_with_the_same_files(
    name: str, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    data, qdrant = tmp_path / "data", tmp_path / "qdrant"
    order = list(phases(data, qdrant))
    args = phases(data, qdrant, "--rehearsal")[name]
    chance = random.Random(name)
    longest = {"fetch_chunks.py": 0.4, "annotate_chunks.py": 9.0}
    latest = longest.get(name, 3.5)
    landed = 0
    while landed < _KILLS:
        if landed == 0:  # from the start, without any cache: every call is made anew
            for folder in (data, qdrant):
                shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(SAMPLE / "small_sqlite", qdrant)
            _copy_results_before(name, order, finished[0], data)
        if _killed(name, args, tmp_path, after_seconds=chance.uniform(0.05, latest)):
            landed += 1
        else:  # it was done before the kill: kill earlier next time, and begin again
            landed, latest = 0, latest * 0.7
            assert latest > 0.05, "no kill ever landed"
    done = run_phase(name, args, tmp_path)
    assert done.returncode == 0, done.stderr
    expected = {
        k: v for k, v in outputs(finished[0]).items() if _phase_of(k, order) <= order.index(name)
    }
    assert outputs(data) == expected
    if name == order[-1]:
        assert queries(qdrant) == queries(finished[1])


def _killed(name: str, args: list[str], cwd: Path, *, after_seconds: float) -> bool:
    """Start a phase and SIGKILL it after a while; whether it was still running then."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / name), *args],
        cwd=cwd,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(timeout=after_seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def _phase_of(output: str, order: list[str]) -> int:
    """The place in the chain of the phase that makes an output."""
    makers = {
        "raw_chunks": 0,
        "rejected_chunks": 0,
        "gold_dataset": 1,
        "judge_check": 2,
        "optimized_pipeline": 2,
        "test_set_openings": 3,
        "runs": 3,
        "generated_questions": 4,
    }
    return next(place for prefix, place in makers.items() if output.startswith(prefix))


def _copy_results_before(name: str, order: list[str], source: Path, target: Path) -> None:
    """What the phases before `name` made; no cache, so that every call is made anew."""
    for relative in outputs(source):
        if _phase_of(relative, order) < order.index(name):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / relative, target / relative)


PROVIDERS = """
[[accounts]]
name = "open"
model = "little-model"
base_url = "{openai}/v1"
api_key_env = "OPEN_KEY"
concurrency = 4
roles = ["student", "teacher"]

[[accounts]]
name = "anthropic"
kind = "anthropic"
model = "judging-model"
base_url = "{anthropic}"
api_key_env = "OTHER_KEY"
concurrency = 4
roles = ["judge"]
"""


def test_the_chain_runs_over_an_openai_server_and_an_anthropic_one(
    script: Script, qdrant: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> None:
    openai, anthropic = llm_server(), llm_server()
    providers = tmp_path / "llm_providers.toml"
    providers.write_text(PROVIDERS.format(openai=openai.url, anthropic=anthropic.url))
    keys = {"OPEN_KEY": "sk-open-secret-123456", "OTHER_KEY": "sk-ant-secret-654321"}
    texts = ""
    for name, args in phases(tmp_path / "data", qdrant).items():
        done = script(name, *args, **keys)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert "rehearsal" not in done.stdout.splitlines()[-1]
        texts += done.stdout + done.stderr
    assert {path for path, *_ in openai.requests} == {"/v1/chat/completions"}
    assert {path for path, *_ in anthropic.requests} == {"/v1/messages"}
    assert {body["model"] for *_, body in openai.requests} == {"little-model"}
    assert all(body["max_tokens"] for *_, body in anthropic.requests)
    for server, key in ((openai, keys["OPEN_KEY"]), (anthropic, keys["OTHER_KEY"])):
        assert any(key in value for value in server.requests[0][1].values())
    written = [query for query, *_ in queries(qdrant).values() if query]
    assert len(written) == 40
    for path in (tmp_path / "data").rglob("*"):
        if path.is_file():
            texts += path.read_bytes().decode(errors="replace")
    for key in keys.values():
        assert key not in texts


@pytest.mark.parametrize(
    "name",
    [
        "annotate_chunks.py",
        "custom_lm.py",
        "optimize_pipeline.py",
        "evaluate_pipeline.py",
        "optimized_question_generator.py",
    ],
)
def test_a_start_without_key_or_rehearsal_says_how_to_set_up_a_provider(
    name: str, script: Script, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    before = tree_digest(finished[0])
    args: list[object] = ["--data-dir", finished[0], "--personas-file", SAMPLE / "personas.json"]
    args += ["hello"] if name == "custom_lm.py" else []
    args += ["--qdrant-path", finished[1]] if "generator" in name else []
    done = script(name, *args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    for word in ("llm_providers.toml", "OpenAI", "Anthropic", "Ollama", "--rehearsal"):
        assert word in done.stderr
    assert tree_digest(finished[0]) == before
