"""One run at a time: a second session or process is told who holds the data dir."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import SAMPLE, Script
from question_optimizer.errors import UserError
from question_optimizer.locks import lock_holder, only_one


def test_a_second_session_on_the_same_data_dir_is_refused(script: Script, tmp_path: Path) -> None:
    sample = script("fetch_chunks.py", "--qdrant-path", SAMPLE / "small_sqlite")
    assert sample.returncode == 0
    with only_one(tmp_path / "data" / "annotations.sqlite.lock", "test"):
        done = script("annotate_chunks.py", "--rehearsal")
    assert done.returncode == 75
    said = f"another session of the unnamed annotator is running in process {os.getpid()}"
    assert said in done.stderr
    assert not (tmp_path / "data" / "gold_dataset.json").exists()


def test_a_lock_goes_with_its_block_and_names_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    assert lock_holder(lock) is None
    with only_one(lock, "a test"):
        assert str(os.getpid()) in (lock_holder(lock) or "")
        with (
            pytest.raises(UserError, match="a test is running") as refused,
            only_one(lock, "a test"),
        ):
            pass
        assert refused.value.exit_code == 75
    assert lock_holder(lock) is None
    with only_one(lock, "a test"):
        pass
