"""A finished evaluation as a run in MLflow, for teams that keep their experiments there."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from question_optimizer import files
from question_optimizer.errors import UserError, reason_of

EXPERIMENT = "question-optimizer"
_LONGEST_PARAMETER = 500  # characters; MLflow refuses more


def require() -> None:
    """UserError where MLflow is not installed or its store cannot be used: better before the calls
    than after."""
    if find_spec("mlflow") is None:
        raise UserError(
            "--mlflow needs MLflow: pip install mlflow, or mlflow-skinny and sqlalchemy"
        )
    import mlflow

    try:
        mlflow.set_experiment(EXPERIMENT)
    except Exception as error:  # its own, SQLAlchemy's, requests': all mean the same here
        raise UserError(
            f"--mlflow: the store cannot be used ({reason_of(error)}); see MLFLOW_TRACKING_URI"
        ) from error


def log_run(folder: Path, *, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Log the run in `folder` and return MLflow's run id; where, MLFLOW_TRACKING_URI says.

    Settings and input hashes become parameters, figures of arms and comparisons metrics
    ("optimised.score"), the verdict a tag, and the run's files artifacts.
    """
    import mlflow

    summary = files.read_json(folder / "summary.json", made_by="evaluate_pipeline.py")
    # MLflow greets on stdout, which is for results.
    with redirect_stdout(sys.stderr), mlflow.start_run(run_name=folder.name) as run:
        named = {**settings, **{f"input {name}": digest for name, digest in inputs.items()}}
        mlflow.log_params({_key(name): str(v)[:_LONGEST_PARAMETER] for name, v in named.items()})
        mlflow.set_tags({"verdict": summary["verdict"], "rehearsal": summary["rehearsal"]})
        mlflow.log_metrics(figures(summary))
        mlflow.log_artifacts(str(folder))
        return str(run.info.run_id)


def figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """{"arm.figure": number} of every number of the arms and of the comparisons that decide."""
    found: dict[str, float] = {}
    for arm, values in summary["arms"].items():
        found |= {f"{_key(arm)}.{name}": v for name, v in _numbers(values).items()}
    for comparison in summary["comparisons"]:
        if comparison["decides"]:
            pair = f"{_key(comparison['arm'])}_vs_{_key(comparison['against'])}"
            found |= {f"{pair}.{name}": v for name, v in _numbers(comparison).items()}
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _key(name: str) -> str:
    """MLflow's names hold letters, digits and a few signs."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)
