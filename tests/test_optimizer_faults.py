"""Every optimiser among failing accounts: the same result, or none and the reason; never a zero.

MIPROv2, GEPA and SIMBA turn whatever a program or metric raises into a score of zero. Here they are
run by the script, over real HTTP, while accounts fail. The long form, with an outage of a minute,
is `benchmarks/optimizers.py --only outage`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import optimizers
from limit_server import Server, running
from optimizers import KEYS, SMALL, Project, faults_of, flags_of, healthy, outage, providers, watch

# Two of those that would score a failure with zero.
THROUGH_OUTAGES = optimizers.OPTIMIZERS if os.environ.get("OUTAGES") == "all" else ("mipro", "gepa")
LATENCY_SECONDS = 0.02
ITEMS = 8  # of each split
OUTAGE_SECONDS = 3.0
SEARCHING = 30  # answers; the unoptimised program's scores took 24, so the optimiser is at work


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return optimizers.make_gold(tmp_path_factory.mktemp("gold"), most=ITEMS)


@pytest.fixture
def project(server: Server, gold: Path, tmp_path: Path) -> Project:
    return Project(tmp_path / "project", gold, providers(server))


@pytest.mark.parametrize("optimizer", THROUGH_OUTAGES)
def test_an_outage_changes_no_score(
    optimizer: str, server: Server, gold: Path, project: Project, tmp_path: Path
) -> None:
    """All accounts away for a while, a third of the judge's answers spoilt, one judge dead."""
    flags = flags_of(optimizer, SMALL[optimizer])
    server.configure(healthy(LATENCY_SECONDS))
    course = watch(Project(tmp_path / "calm", gold, providers(server)), server, flags)
    failing = outage(
        OUTAGE_SECONDS,
        after=course.delivered // 2,
        unreadable=0.25,
        cut=0.1,
        latency=LATENCY_SECONDS,
    )
    server.configure(failing)
    project.run("optimize_pipeline.py", *flags).must(0)
    assert project.outcome() == course.outcome
    faults = faults_of(server)
    assert faults["503"] and faults["unreadable"] + faults["malformed"], faults
    assert server.stats()["keys"]["judge-2"]["refused"]


def with_judges(server: Server, **judge: Any) -> None:
    """Healthy accounts, but for the judge's."""
    key = healthy(LATENCY_SECONDS)["default"]
    judges = {name: {**key, **judge} for name in KEYS if name.startswith("judge")}
    server.configure({"default": key, "keys": judges})


@pytest.mark.parametrize(
    ("optimizer", "answers"),
    [("bootstrap", 0), *((optimizer, SEARCHING) for optimizer in optimizers.OPTIMIZERS)],
)
def test_dead_judges_stop_the_run_instead_of_scoring_zero(
    optimizer: str, answers: int, server: Server, project: Project
) -> None:
    """Dead from the start, or once so many answers have been given."""
    server.configure(healthy(LATENCY_SECONDS))
    running = project.start("optimize_pipeline.py", *flags_of(optimizer, SMALL[optimizer]))
    while server.stats()["delivered"] < answers and running.process.poll() is None:
        time.sleep(0.01)
    with_judges(server, refuse=401)
    done = running.wait()
    assert done.code == 2, done.stderr
    assert "judge" in done.stderr.splitlines()[-1]
    assert "Incorrect API key provided" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.data / "optimized_pipeline.json").exists()


@pytest.mark.parametrize(
    ("optimizer", "split", "number"),
    [
        ("bootstrap", "dev", 2),
        *((optimizer, "train", ITEMS) for optimizer in optimizers.OPTIMIZERS),
    ],
)
def test_a_choice_never_rests_on_what_could_not_be_judged(
    optimizer: str, split: str, number: int, server: Server, project: Project
) -> None:
    """The judge cannot be read on some items, however often it tries: on the dev set before the
    search, or on the train set within it."""
    items = json.loads((project.data / "gold_dataset.json").read_text(encoding="utf-8"))
    hard = [item["gold_question"] for item in items if item["split"] == split][:number]
    faults = [{"kind": "unreadable", "marker": json.dumps(text)[1:-1]} for text in hard]
    with_judges(server, faults=faults)
    done = project.run("optimize_pipeline.py", *flags_of(optimizer, SMALL[optimizer]))
    assert done.code == 4, done.stderr
    assert "could not be judged (the judge's answer could not be read)" in done.stderr
    assert not (project.data / "optimized_pipeline.json").exists()
