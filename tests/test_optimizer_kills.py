"""SIGKILL at random moments of every optimiser: the same command ends with the same program.

Real processes and real HTTP; what was answered before a kill is not paid for again. The long form,
with more kills and larger settings, is `benchmarks/optimizers.py --only kills`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import optimizers
from limit_server import Server, running
from optimizers import SMALL, Project, flags_of, healthy, kill_often, providers, watch

KILLS = int(os.environ.get("OPTIMIZER_KILLS", "1"))
# Those that take longest, unless more kills are asked for.
KILLED = optimizers.OPTIMIZERS if KILLS > 1 else ("mipro", "gepa", "simba")
SEED = int(os.environ.get("OPTIMIZER_KILLS_SEED", "0"))
LATENCY_SECONDS = 0.02
ITEMS = 8  # of each split


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return optimizers.make_gold(tmp_path_factory.mktemp("gold"), most=ITEMS)


@pytest.mark.parametrize("optimizer", KILLED)
def test_a_killed_run_ends_as_if_it_had_been_left_alone(
    optimizer: str, server: Server, gold: Path, tmp_path: Path
) -> None:
    flags = flags_of(optimizer, SMALL[optimizer])
    server.configure(healthy(LATENCY_SECONDS))
    course = watch(Project(tmp_path / "calm", gold, providers(server)), server, flags)
    server.configure(healthy(LATENCY_SECONDS))
    project = Project(tmp_path / "killed", gold, providers(server))
    killed = kill_often(project, server, flags, course, kills=KILLS, seed=SEED)
    assert killed.kills > 0
    assert killed.outcome == course.outcome
    assert killed.twice(course) <= killed.in_flight
