"""A finished evaluation in MLflow: refused in time where MLflow is missing, whole where it is."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from conftest import LLMServer
from question_optimizer import files
from question_optimizer.tracking import EXPERIMENT, figures
from test_evaluation import Project, Serve, project_in, serving, write_program

# MLflow's rule for names of parameters, metrics and tags (mlflow/utils/validation.py, 3.17)
NAME = re.compile(r"[/\w.\- :]{1,250}")


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    return project_in(tmp_path, monkeypatch, capsys)


@pytest.fixture
def serve(project: Project, llm_server: Callable[..., LLMServer]) -> Serve:
    return serving(project, llm_server)


# ---------------------------------------------------------------------- figures

ARM = {"items": 8, "score": 0.5, "passed": None, "gates": {"empty": 1}, "histogram": [1, 2]}
COMPARISON = {
    "arm": "optimised",
    "against": "original",
    "decides": True,
    "n": 8,
    "difference": 0.25,
    "low": None,
    "verdict": "GO",
    "items_needed": None,
    "mcnemar": {"p": 0.5},
}


def test_every_number_of_arms_and_of_deciding_comparisons_is_a_metric() -> None:
    summary = {
        "arms": {"original": ARM, "optimised": {**ARM, "score": 1}},
        "comparisons": [
            COMPARISON,
            {**COMPARISON, "against": "existing", "decides": False},
        ],
    }
    assert figures(summary) == {
        "original.items": 8.0,
        "original.score": 0.5,
        "optimised.items": 8.0,
        "optimised.score": 1.0,
        "optimised_vs_original.n": 8.0,
        "optimised_vs_original.difference": 0.25,
    }


def test_truth_values_texts_and_gaps_are_no_metrics() -> None:
    odd = {"a": True, "b": "1", "c": None, "d": [1], "e": {"x": 1}, "f": -0.5}
    assert figures({"arms": {"x": odd}, "comparisons": []}) == {"x.f": -0.5}


@pytest.mark.parametrize("arm", ["größe", "a:b", "a b", "x=1", "[red]"])
def test_a_metric_has_a_name_that_mlflow_takes(arm: str) -> None:
    found = figures({"arms": {arm: {"score": 1.0}}, "comparisons": []})
    assert all(NAME.fullmatch(name) for name in found)


# ---------------------------------------------------------------------- without MLflow


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="MLflow is installed")
def test_without_mlflow_nothing_is_asked_and_nothing_written(
    project: Project, serve: Serve
) -> None:
    server = serve()
    done = project.evaluate("--mlflow")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "evaluate_pipeline.py: --mlflow needs MLflow: pip install mlflow, or mlflow-skinny and "
        "sqlalchemy\n"
    )
    assert not server.requests and not (project.data / "runs").exists()
    assert project.evaluate("--mlflow", "--dry-run").code == 0


# ---------------------------------------------------------------------- a stand-in for its API

STAND_IN = r'''
"""Takes what MLflow's fluent API takes, refuses what it refuses, and keeps it in a file."""
import json, math, re, types, contextlib, os
kept = []
def _name(name):
    if not re.fullmatch(r"[/\w.\- :]{1,250}", name):
        raise ValueError(f"invalid name {name!r}")
def set_experiment(name):
    kept.append(["experiment", name])
@contextlib.contextmanager
def start_run(run_name):
    kept.append(["run", run_name])
    yield types.SimpleNamespace(info=types.SimpleNamespace(run_id="0123"))
    with open("mlflow_kept.json", "w") as file:
        json.dump(kept, file)
def log_params(params):
    for name, value in params.items():
        _name(name)
        assert isinstance(value, str) and len(value) <= 6000, value
    kept.append(["params", params])
def set_tags(tags):
    kept.append(["tags", tags])
def log_metrics(metrics):
    for name, value in metrics.items():
        _name(name)
        assert isinstance(value, float) and math.isfinite(value), (name, value)
    kept.append(["metrics", metrics])
def log_artifacts(folder):
    kept.append(["artifacts", sorted(os.listdir(folder))])
'''


@pytest.fixture
def stand_in(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of MLflow's name with the functions that are used; where it keeps what it got."""
    if "mlflow" in sys.modules:
        pytest.skip("MLflow itself is loaded")
    (project.root / "stand_in").mkdir()
    (project.root / "stand_in" / "mlflow.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(project.root / "stand_in"))
    yield project.root / "mlflow_kept.json"
    sys.modules.pop("mlflow", None)


def test_parameters_figures_verdict_and_files_are_logged(
    project: Project, serve: Serve, stand_in: Path
) -> None:
    server = serve()
    write_program(project.root / "one.json", "worse")
    done = project.evaluate("--mlflow", "--program", "größe=one.json")
    assert (done.code, done.err) == (0, "")
    kept: dict[str, Any] = dict(json.loads(stand_in.read_text(encoding="utf-8")))
    assert kept["experiment"] == EXPERIMENT and kept["run"] == project.folder().name
    params = kept["params"]
    assert params["seed"] == "0" and params["mode"] == "replay" and params["repeats"] == "1"
    assert params["arms"] == "['original', 'optimised', 'größe']"
    gold = project.data / "gold_dataset.json"
    assert params["input gold_dataset.json"] == files.sha256(gold)
    assert params["input größe_ one.json"] == files.sha256(project.root / "one.json")
    assert kept["tags"] == {"verdict": "GO", "rehearsal": False}
    assert kept["metrics"] == figures(project.summary())
    assert kept["metrics"]["optimised.score"] == 0.875
    assert kept["metrics"]["optimised_vs_original.difference"] == 0.375
    assert set(kept["artifacts"]) == {path.name for path in project.folder().iterdir()}
    assert {"scores.jsonl", "summary.json", "report.html"} <= set(kept["artifacts"])
    calls = len(server.requests)
    assert project.evaluate("--mlflow", "--program", "größe=one.json").code == 0
    assert len(server.requests) == calls  # a finished run is logged from its files


def test_a_run_without_any_score_can_be_logged(
    project: Project, serve: Serve, stand_in: Path
) -> None:
    server = serve()
    text = '{"error": {"message": "filtered"}}'
    server.fail = lambda number: (400, {}, text)
    assert project.evaluate("--mlflow").code == 4
    kept = dict(json.loads(stand_in.read_text(encoding="utf-8")))
    assert kept["tags"]["verdict"] == "INCONCLUSIVE"
    assert all(map(math.isfinite, kept["metrics"].values()))


# ---------------------------------------------------------------------- MLflow itself


@pytest.fixture
def tracked(project: Project, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a store of the project's own."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    uri = f"sqlite:///{project.root / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def test_a_run_is_found_again_in_mlflow(project: Project, serve: Serve, tracked: str) -> None:
    import mlflow

    serve()
    assert project.evaluate("--mlflow").code == 0
    client = mlflow.MlflowClient(tracked)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == project.folder().name
    assert run.data.params["seed"] == "0"
    assert run.data.metrics == pytest.approx(figures(project.summary()))
    assert run.data.tags["verdict"] == "GO"
    artifacts = {found.path for found in client.list_artifacts(run.info.run_id)}
    assert {"scores.jsonl", "summary.json", "report.html"} <= artifacts


def test_a_store_that_mlflow_cannot_use_is_said_before_any_call(
    project: Project, serve: Serve, tracked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    done = project.evaluate("--mlflow")
    assert (done.code, len(done.err.splitlines()), len(server.requests)) == (2, 1, 0)
