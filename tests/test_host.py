"""The installed distribution inside an application that has its own config, client and accounts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, SAMPLE, LLMServer, clean_environment

HOST = Path(__file__).parent / "host"
CONCURRENCY = 8  # of the host's generator


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the distribution alone is installed, built from a copy of the sources."""
    root = tmp_path_factory.mktemp("install")
    ignored = shutil.ignore_patterns(".venv", ".git", "data", "*.egg-info", "build", "__pycache__")
    shutil.copytree(ROOT, root / "source", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", root / "site", root / "source"],
        check=True,
        capture_output=True,
        env=clean_environment(),
    )
    return root / "site"


@pytest.fixture(scope="module")
def hosted(
    installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Any], LLMServer]]:
    """What the host's `main.py` told at its end, and the server that it asked."""
    folder = tmp_path_factory.mktemp("hosted")
    shutil.copytree(SAMPLE / "small_sqlite", folder / "qdrant")
    (folder / "data").mkdir()
    server = LLMServer()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        done = subprocess.run(
            [sys.executable, "main.py"],
            cwd=HOST,
            env=clean_environment(
                PYTHONPATH=str(installed),
                PYTHONDONTWRITEBYTECODE="1",
                HOST_QDRANT=str(folder / "qdrant"),
                HOST_LLM=f"{server.url}/v1",
                HOST_DATA=str(folder / "data"),
            ),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    yield {**told, "stderr": done.stderr}, server


def test_the_distribution_installs_no_config_and_no_phase(installed: Path) -> None:
    found = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert found - {"__pycache__"} == {
        "question_optimizer",
        "custom_lm.py",
        "dspy_pipeline.py",
        "dspy_signatures.py",
        "optimized_question_generator.py",
    }


def test_the_generator_fills_every_node_of_a_host_with_its_own_modules(
    hosted: tuple[dict[str, Any], LLMServer],
) -> None:
    told, _ = hosted
    assert told["config"] == "the host's own config"
    assert told["prompt"] == "Write a question."
    assert told["schema"].startswith("What the host's former")
    assert told["ingested"] == 2
    assert told["nodes"] == told["queries"] == told["client_still_open"] == 650
    assert told["alias"] is True
    assert told["rest"]["exit_code"] == told["rest"]["failed"] == told["failures"] == 0
    assert told["nothing_free"] > 0, "eight workers on five slots must have met a busy dispatcher"


def test_vectors_ids_and_the_texts_for_embedding_and_llm_are_the_same_to_the_byte(
    hosted: tuple[dict[str, Any], LLMServer],
) -> None:
    told, _ = hosted
    assert told["changed"] == []
    assert told["new_or_gone"] == 0


def test_llamaindex_retrieves_a_node_with_its_query(
    hosted: tuple[dict[str, Any], LLMServer],
) -> None:
    told, server = hosted
    asked = [str(body["messages"][-1]) for *_, body in server.requests]
    assert told["retrieved"]
    assert any("train safety engineer" in text and "spindle drive" in text for text in asked)
    assert not any("depot technician" in text and "spindle drive" in text for text in asked)


def test_a_day_that_the_hosts_dispatcher_ends_ends_the_run_and_the_next_one_goes_on(
    hosted: tuple[dict[str, Any], LLMServer],
) -> None:
    told, _ = hosted
    assert told["calls_day_one"] == {"free": 50, "paid": 70}
    first = told["day_one"]
    assert first["exit_code"] == 75
    assert "handed out no client" in first["stopped"]
    assert first["failed"] == 0
    assert 120 / 2 - CONCURRENCY <= first["generated"] == first["written"] <= 120 / 2


def test_a_cancelled_run_is_completed_with_nothing_asked_twice_but_what_was_in_flight(
    hosted: tuple[dict[str, Any], LLMServer],
) -> None:
    told, server = hosted
    assert told["cancelled"] is True
    assert told["again"]["generated"] == told["again"]["written"] == 0
    assert told["queries"] == 650
    assert 0 <= len(server.requests) - 2 * 650 <= CONCURRENCY


def test_the_hosts_loop_keeps_beating(hosted: tuple[dict[str, Any], LLMServer]) -> None:
    """By the time that its own thread computed between two beats; the wall's tells as much of how
    busy the machine is."""
    told, _ = hosted
    assert told["worst_cpu"] < 0.3
