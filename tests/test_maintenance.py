"""The script: exit codes and last lines, what waits, what it would do, and back again."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import clean_environment, tree_digest
from generator_runs import Generator, Scripted, change, corpus, generator_for, payloads, questions
from question_optimizer.generation.maintenance import apply, target_over
from question_optimizer.locks import only_one
from question_optimizer.qdrant_folder import QdrantFolder

HOLD = """
import sys, time
from qdrant_client import QdrantClient
client = QdrantClient(path=sys.argv[1])
print("held", flush=True)
time.sleep(120)
"""


@pytest.fixture
def units(tmp_path: Path) -> Path:
    return corpus(tmp_path / "units", 6)


@pytest.fixture
def generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Generator:
    return Generator(tmp_path, monkeypatch, capsys)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[int]:
    """The folder open in a client of another process; its number."""
    holder = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLD, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


def run_of(stdout: str) -> str:
    found = re.search(r"run (\d{8}-\d{4}-[0-9a-f]{4})", stdout)
    assert found, stdout
    return found[1]


# ---------------------------------------------------------------------- a run


def test_the_last_line_tells_what_was_made_and_where_the_page_is(
    units: Path, generator: Generator
) -> None:
    done = generator("--qdrant-path", units, "--gates", "record")
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert re.fullmatch(
        r"6 questions generated \(rehearsal\), 6 chunks written back as run \d{8}-\d{4}-[0-9a-f]{4}"
        r" -> data/generation_report\.html",
        line,
    )
    assert Path("data/generation_report.html").is_file()
    assert len(questions(units)) == 6
    again = generator("--qdrant-path", units, "--gates", "record")
    assert again.stdout == (
        "0 questions generated (rehearsal), 0 chunks written back -> data/generation_report.html\n"
    )


def test_the_script_refuses_questions_for_training_unless_told_otherwise() -> None:
    from question_optimizer.programs.generation_script import parse

    assert parse([], "").gates == "training"
    assert parse(["--gates", "record"], "").gates == "record"


def test_a_missing_pipeline_names_the_phase_that_makes_it(
    units: Path, generator: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    import optimized_question_generator
    from question_optimizer.cli import run

    argv = ["--qdrant-path", str(units), "--rehearsal"]
    assert run(lambda: optimized_question_generator.main(argv)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "optimized_pipeline.json: does not exist; run optimize_pipeline.py first, or" in said
    assert "--original" in said
    assert {path.name for path in generator.data.glob("generat*")} <= {"generation.sqlite.lock"}


def test_a_second_generator_on_the_same_data_dir_is_refused(
    units: Path, generator: Generator
) -> None:
    with only_one(generator.data / "generation.sqlite.lock", "test"):
        done = generator("--qdrant-path", units, "--limit", "1")
    assert done.returncode == 75
    assert "another generator is running in process" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert questions(units) == {}


def test_a_changed_configuration_needs_a_decision(units: Path, generator: Generator) -> None:
    args = ("--qdrant-path", units, "--gates", "off")
    assert generator(*args, "--limit", "4").returncode == 0
    personas = Path("others.json")
    personas.write_text(
        json.dumps([{"id": "new", "name": "New", "description": "New.", "source": "t"}])
    )
    others = (*args, "--personas-file", personas)
    asked = generator(*others)
    assert asked.returncode == 2
    assert asked.stdout == ""
    assert "personas changed since 4 chunks of 'units' got their questions" in asked.stderr
    assert "--redo makes all 4 again" in asked.stderr
    assert len(questions(units)) == 4
    kept = generator(*others, "--keep")
    assert kept.returncode == 0
    assert kept.stdout.startswith("2 questions generated")
    assert "4 chunks done under another configuration" in kept.stderr
    redone = generator(*others, "--redo")
    assert redone.stdout.startswith("4 questions generated (rehearsal), 4 chunks written back")


# ---------------------------------------------------------------------- while it is open elsewhere


def test_while_the_folder_is_open_elsewhere_questions_wait_in_the_ledger(
    units: Path, generator: Generator
) -> None:
    args = ("--qdrant-path", units, "--gates", "record")
    with held(units) as holder:
        before = tree_digest(units)
        refused = generator(*args)
        assert refused.returncode == 75
        assert refused.stderr.splitlines()[-1].count(str(holder)) == 1
        kept = generator(*args, "--even-if-locked")
        assert kept.returncode == 75
        assert "6 questions generated (rehearsal), 0 chunks written back" in kept.stdout
        assert "--apply writes them later" in kept.stderr.splitlines()[-1]
        looked = generator(*args, "--even-if-locked", "--dry-run")
        assert looked.returncode == 0
        assert "6 to change" in looked.stdout
        assert generator(*args, "--apply").returncode == 75
        assert generator(*args, "--runs").returncode == 0
        assert tree_digest(units) == before
    applied = generator(*args, "--apply")
    assert applied.returncode == 0
    assert applied.stdout.startswith("6 chunks written back, 0 had it already; run ")
    assert len(questions(units)) == 6
    nothing = generator(*args, "--apply")
    assert nothing.stdout.startswith("nothing waits in data/generation.sqlite; --apply --redo ")
    assert generator(*args).stdout.startswith("0 questions generated (rehearsal), 0 chunks")


def test_what_waits_is_written_whatever_configuration_made_it(tmp_path: Path, units: Path) -> None:
    """Two pipelines that wrote nothing; the later one's question of a chunk stands in the end."""
    import asyncio

    def saying(state: str) -> Scripted:
        return Scripted(lambda asked, n: f"{state} {asked.chunk_text[4:30]}?", state=state)

    data = tmp_path / "data"
    for state, limit in (("first", 4), ("second", 2)):
        generator = generator_for(
            units, data, pipeline=saying(state), limit=limit, changed="redo", write_back=False
        )
        assert asyncio.run(generator.generate()).written == 0
    with QdrantFolder(units) as store:
        written = apply(
            data / "generation.sqlite",
            store.collection,
            lambda: target_over(store, units),
            run="20260101-0000-abcd",
        )
    assert written is not None
    assert [question.split()[0] for question in questions(units).values()] == [
        *["second"] * 2,
        *["first"] * 2,
    ]


# ---------------------------------------------------------------------- looking


def test_dry_run_counts_and_changes_nothing(units: Path, generator: Generator) -> None:
    before = tree_digest(generator.folder)
    done = generator("--qdrant-path", units, "--dry-run")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "6 chunks: 6 questions to make"
    assert "dry run: 12 calls (12 student)" in done.stdout
    assert "24 calls at the very most" in done.stdout
    assert tree_digest(generator.folder) == before


def test_dry_run_tells_planned_calls_and_what_is_left(units: Path, generator: Generator) -> None:
    generator("--qdrant-path", units, "--gates", "record", "--limit", "2")
    change(units, {"generated_query": "somebody else's?"}, 6)
    args = ("--qdrant-path", units, "--gates", "record", "--per-chunk", "3", "--limit", "4")
    done = generator(*args, "--dry-run")
    assert "6 chunks: 10 questions to make" in done.stdout
    assert "1 with somebody else's question" in done.stdout
    assert "1 beyond --limit" in done.stdout
    assert "dry run: 10 calls" in done.stdout


def test_dry_run_shows_what_would_be_written_and_writes_none_of_it(
    units: Path, generator: Generator
) -> None:
    args = ("--qdrant-path", units, "--gates", "record")
    change(units, {"generated_query": "the old one?"}, 2)
    generator(*args, "--no-write-back", "--overwrite")
    before = tree_digest(units)
    done = generator(*args, "--dry-run", "--overwrite")
    shown = done.stdout.splitlines()
    assert "- generated_query: the old one?" in shown
    assert sum(line.startswith("+ generated_query: ") for line in shown) == 3  # and no flood
    counts = next(line for line in shown if line.startswith("6 to change"))
    assert counts.startswith("6 to change, 0 hold their question already")
    assert shown[-1].startswith("dry run: ")
    applied = generator(*args, "--apply", "--dry-run")
    assert applied.stdout.splitlines()[-1] == counts
    assert tree_digest(units) == before


def test_dry_run_decides_nothing_on_what_another_configuration_made(
    units: Path, generator: Generator
) -> None:
    args = ("--qdrant-path", units, "--gates", "off")
    generator(*args, "--limit", "4")
    personas = Path("others.json")
    personas.write_text(
        json.dumps([{"id": "new", "name": "New", "description": "New.", "source": "t"}])
    )
    others = (*args, "--personas-file", personas)
    before = tree_digest(generator.folder)
    looked = generator(*others, "--dry-run")
    assert "6 chunks: 2 questions to make, 4 done under another configuration" in looked.stdout
    assert "6 questions to make" in generator(*others, "--redo", "--dry-run").stdout
    assert tree_digest(generator.folder) == before
    assert generator(*others).returncode == 2


# ---------------------------------------------------------------------- back again


def test_undo_restores_what_stood_there_and_apply_redo_puts_it_back(
    units: Path, generator: Generator
) -> None:
    args = ("--qdrant-path", units, "--gates", "record")
    change(units, {"generated_query": "the old one?"}, 2)
    before = payloads(units)
    made = generator(*args, "--overwrite")
    run = run_of(made.stdout)
    after = payloads(units)
    digest = tree_digest(units)
    would = generator(*args, "--undo", "last", "--dry-run")
    assert would.stdout == f"6 chunks would be restored as they were before run {run}\n"
    assert tree_digest(units) == digest
    undone = generator(*args, "--undo", "last")
    assert undone.stdout == f"6 chunks restored as they were before run {run}\n"
    assert payloads(units) == before
    left = generator(*args)
    assert left.stdout.startswith("0 questions generated (rehearsal), 0 chunks written back")
    assert "6 chunks taken out by --undo" in left.stderr
    assert payloads(units) == before
    back = generator(*args, "--apply", "--redo")
    assert back.returncode == 0
    for point_id, payload in payloads(units).items():
        for told in (payload, after[point_id]):
            told["generated_query_provenance"].pop("run")
        assert payload == after[point_id]


def test_undo_leaves_what_others_changed_since(units: Path, generator: Generator) -> None:
    args = ("--qdrant-path", units, "--gates", "record")
    generator(*args)
    change(units, {"generated_query": "by hand?"}, 3)
    undone = generator(*args, "--undo", "last")
    assert undone.stdout.startswith("5 chunks restored")
    assert "1 chunks were changed since, and are left as they are" in undone.stderr
    assert questions(units) == {3: "by hand?"}


def test_undo_counts_what_is_no_longer_there(units: Path, generator: Generator) -> None:
    from qdrant_client import QdrantClient, models

    args = ("--qdrant-path", units, "--gates", "record")
    generator(*args)
    client = QdrantClient(path=str(units))
    client.delete("units", models.PointIdsList(points=[4]))
    client.close()
    undone = generator(*args, "--undo", "last")
    assert undone.stdout.startswith("5 chunks restored")
    assert "1 chunks are no longer in the collection" in undone.stderr


def test_runs_lists_what_was_written_and_what_was_undone(units: Path, generator: Generator) -> None:
    args = ("--qdrant-path", units, "--gates", "off")
    assert generator(*args, "--runs").returncode == 2
    first = run_of(generator(*args, "--limit", "2").stdout)
    second = run_of(generator(*args).stdout)
    generator(*args, "--undo", second)
    lines = generator(*args, "--runs").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == [second, first]
    assert [line.split("  ")[2] for line in lines] == ["undone", "2 chunks"]
    last = generator(*args, "--undo", "last")
    assert f"before run {first}" in last.stdout
    assert questions(units) == {}
    none = generator(*args, "--undo", "last")
    assert none.returncode == 2
    assert "there is no last run" in none.stderr
    unknown = generator(*args, "--undo", "20200101-0000-0000")
    assert unknown.returncode == 2
    assert first in unknown.stderr
