"""The installed distribution inside an application that has its own config, client and accounts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT, LLMServer, clean_environment

HOST = Path(__file__).parent / "host"


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


def test_the_distribution_installs_no_config_and_no_phase(installed: Path) -> None:
    found = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert found - {"__pycache__"} == {
        "question_optimizer",
        "custom_lm.py",
        "dspy_pipeline.py",
        "dspy_signatures.py",
        "optimized_question_generator.py",
    }


def test_the_generator_runs_beside_a_host_with_its_own_config(
    installed: Path, qdrant: Path, tmp_path: Path, llm_server: Callable[..., LLMServer]
) -> None:
    server = llm_server()
    done = subprocess.run(
        # -P: not the repository's root, where another `config` stands
        [sys.executable, "main.py"],
        cwd=HOST,
        env=clean_environment(
            PYTHONPATH=str(installed),
            PYTHONDONTWRITEBYTECODE="1",
            HOST_QDRANT=str(qdrant),
            HOST_LLM=f"{server.url}/v1",
            HOST_DATA=str(tmp_path / "data"),
        ),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["config"] == "the host's own config"
    assert told["generated"] == told["written"] == told["queries"] == 30
    assert told["again"] == 0
    assert told["refused"] > 0, "six workers on two slots must have met a busy dispatcher"
    assert told["successes"] == len(server.requests) == 60
    assert told["ticks"] > 20, "the host's loop stood still"
    assert told["client_still_open"] == 648
    assert told["alias"] is True
    personas = [str(body["messages"]) for *_, body in server.requests]
    assert all("A depot technician who works on trains at night." in text for text in personas)
