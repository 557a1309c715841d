"""The script: exit codes and last lines, what waits, what it would do, and back again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import clean_environment, tree_digest
from generator_runs import (
    Generator,
    Scripted,
    change,
    corpus,
    generator_for,
    payloads,
    questions,
    twins_at_first,
)
from question_optimizer.generation.maintenance import apply, target_over
from question_optimizer.generation.outcome import GenerationSummary
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


def other_personas(folder: Path) -> Path:
    """A file of personas by which another configuration is told."""
    file = folder / "others.json"
    file.write_text(
        json.dumps([{"id": "new", "name": "New", "description": "New.", "source": "t"}])
    )
    return file


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
    assert f"next: python export_questions.py --qdrant-path {units}" in done.stderr.splitlines()
    again = generator("--qdrant-path", units, "--gates", "record", "--retry-failed")
    assert again.stdout == (
        "0 questions generated (rehearsal), 0 chunks written back -> data/generation_report.html\n"
    )
    assert again.stderr.splitlines()[:2] == [
        "everything is done already",
        "--retry-failed: no question has failed",
    ]
    assert "WARNING" not in again.stderr
    looked = generator("--qdrant-path", units, "--gates", "record", "--dry-run")
    assert looked.stdout.splitlines()[-1] == "dry run: 0 calls, nothing to do"


def test_the_script_refuses_questions_for_training_unless_told_otherwise() -> None:
    from question_optimizer.programs.generation_script import parse

    assert parse([], "").gates == "training"
    assert parse(["--gates", "record"], "").gates == "record"


@pytest.mark.parametrize("flags", [["--ray-workers", "2"], ["--ray-address", "auto", "--apply"]])
def test_what_is_about_a_cluster_is_refused_where_none_is_asked_for(
    units: Path, generator: Generator, flags: list[str]
) -> None:
    done = generator("--qdrant-path", units, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert f"{flags[0]} is about a cluster: add --engine ray, or leave it out" in line


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
    others = (*args, "--personas-file", other_personas(generator.folder))
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
    assert f"next: python export_questions.py --qdrant-path {units} --configuration all\n" in (
        kept.stderr
    ), "or the others' questions, which stand there, would be left out"
    redone = generator(*others, "--redo")
    assert redone.stdout.startswith("4 questions generated (rehearsal), 4 chunks written back")


def test_who_leaves_the_question_is_told_what_redo_takes_and_that_nothing_changed(
    units: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("--qdrant-path", units, "--gates", "off")
    generator(*args, "--limit", "4")
    before = tree_digest(units)
    ours, theirs = os.openpty()
    with open(theirs, encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        os.write(ours, b"N\n")
        left = generator(*args, "--personas-file", other_personas(generator.folder))
    os.close(ours)
    assert left.returncode == 2
    asked, redo, nothing = left.stderr.splitlines()
    assert "--redo makes all 4 again" in asked
    assert redo.startswith("redo: 6 questions, about 12 calls (12 student), about ")
    assert nothing == "optimized_question_generator.py: nothing changed"
    assert tree_digest(units) == before


def test_an_interrupted_redo_goes_on_and_says_so(units: Path, generator: Generator) -> None:
    args = ("--qdrant-path", units, "--gates", "off")
    generator(*args)
    others = (*args, "--personas-file", other_personas(generator.folder))
    stopped = generator(*others, "--redo", "--max-calls", "3")
    assert stopped.returncode == 5
    assert re.search(r"^\d questions still to make, \d of them begun$", stopped.stderr, re.M)
    said = "going on with --redo, chosen earlier; --keep leaves the rest"
    assert said in generator(*others).stderr.splitlines()
    assert said not in generator(*others).stderr.splitlines()


async def test_what_is_asked_again_is_counted_beside_what_was_planned(
    units: Path, tmp_path: Path
) -> None:
    """Chunks 4 and 6 get the same words; who comes second is asked for another question."""
    generator = generator_for(
        units, tmp_path / "data", pipeline=Scripted(twins_at_first), gates="training", max_rank=6
    )
    summary = await generator.generate()
    assert (summary.generated, summary.to_do, summary.again) == (6, 7, 1)


def test_while_the_corpus_is_indexed_the_chunks_done_are_told() -> None:
    summary = GenerationSummary()
    summary.indexed(512, 1648)
    assert summary.doing == "reading and embedding 1,648 chunks, 512 done"
    summary.indexed(1648, 1648)
    assert summary.doing == "checking against the corpus"


def test_too_many_questions_a_chunk_are_refused_in_one_line(
    units: Path, generator: Generator
) -> None:
    refused = generator("--qdrant-path", units, "--per-chunk", "99")
    assert refused.returncode == 2
    assert "the quotas allow 12 different questions a chunk" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


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
        looked = generator(*args, "--dry-run")
        assert looked.returncode == 0
        assert "6 to change" in looked.stdout
        assert generator(*args, "--apply").returncode == 75
        assert generator(*args, "--runs").returncode == 0
        assert tree_digest(units) == before
    applied = generator(*args, "--apply")
    assert applied.returncode == 0
    assert applied.stdout.startswith("6 chunks written back, 0 had it already; run ")
    assert len(questions(units)) == 6
    with (units / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert generator(*args, "--undo", "last").returncode == 75
        looked = generator(*args, "--undo", "last", "--dry-run")
        assert looked.stdout.startswith("6 chunks would be restored")
    nothing = generator(*args, "--apply")
    assert nothing.stdout == "nothing waits in data/generation.sqlite\n"
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


def test_what_was_left_unchecked_is_told_where_nothing_waits(
    units: Path, generator: Generator
) -> None:
    args = ("--qdrant-path", units, "--gates", "record")
    generator(*args, "--limit", "2", "--no-write-back")
    with contextlib.closing(sqlite3.connect(generator.data / "generation.sqlite")) as connection:
        connection.execute("UPDATE results SET checked=''")  # as a run that is killed leaves it
        connection.commit()
    told = [
        "nothing waits in data/generation.sqlite",
        "2 questions are not yet checked against the corpus; run the generator once more",
    ]
    assert generator(*args, "--apply").stdout.splitlines() == told
    assert generator(*args, "--apply", "--dry-run").stdout.splitlines() == told
    looked = generator(*args, "--limit", "2", "--dry-run").stdout.splitlines()
    assert looked[-1] == "dry run: 0 calls, 2 questions to check against the corpus"
    assert generator(*args, "--runs").stdout.startswith("nothing was written yet\nconfiguration ")


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
    applied = generator(*args, "--apply", "--dry-run", "--overwrite")
    assert applied.stdout.splitlines()[-1] == counts
    without = generator(*args, "--apply", "--dry-run").stdout.splitlines()[-1]
    assert without.startswith("5 to change") and without.endswith("1 hold somebody else's")
    assert tree_digest(units) == before


def test_dry_run_decides_nothing_on_what_another_configuration_made(
    units: Path, generator: Generator
) -> None:
    args = ("--qdrant-path", units, "--gates", "off")
    generator(*args, "--limit", "4")
    others = (*args, "--personas-file", other_personas(generator.folder))
    before = tree_digest(generator.folder)
    looked = generator(*others, "--dry-run")
    assert "6 chunks: 2 questions to make, 4 done under another configuration" in looked.stdout
    assert "counted as with --keep; --redo --dry-run counts all of them" in looked.stdout
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
    nothing = generator(*args, "--apply", "--dry-run")
    assert nothing.stdout.splitlines() == [
        "nothing waits in data/generation.sqlite",
        "--apply --redo brings back what was undone: 6 chunks",
    ]
    ledger = (generator.data / "generation.sqlite").read_bytes()
    would = generator(*args, "--apply", "--redo", "--dry-run")
    assert would.stdout.splitlines()[-1].startswith("6 to change, ")
    assert (generator.data / "generation.sqlite").read_bytes() == ledger
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
    *lines, whose = generator(*args, "--runs").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == [second, first]
    assert [line.split("  ")[2] for line in lines] == ["undone", "2 chunks"]
    minute = r"20\d\d-\d\d-\d\d \d\d:\d\d UTC"
    assert all(re.fullmatch(minute, line.split("  ")[1]) for line in lines)
    named = r"configuration [0-9a-f]{8} \(6 questions, pipeline [0-9a-f]{8}, rehearsal, "
    assert re.fullmatch(rf"{named}last used {minute}\)", whose)
    last = generator(*args, "--undo", "last")
    assert f"before run {first}" in last.stdout
    assert questions(units) == {}
    none = generator(*args, "--undo", "last")
    assert none.returncode == 2
    assert "there is no last run" in none.stderr
    unknown = generator(*args, "--undo", "20200101-0000-0000")
    assert unknown.returncode == 2
    assert first in unknown.stderr


def test_apply_leaves_a_question_that_somebody_put_there_meanwhile_until_told_otherwise(
    units: Path, generator: Generator
) -> None:
    args = ("--qdrant-path", units, "--gates", "record")
    generator(*args, "--no-write-back")
    change(units, {"generated_query": "the host's own?"}, 3)
    applied = generator(*args, "--apply")
    assert applied.returncode == 0
    assert applied.stdout.startswith("5 chunks written back, 0 had it already")
    assert "1 chunks hold somebody else's question by now; --apply --overwrite" in applied.stderr
    assert questions(units)[3] == "the host's own?"
    over = generator(*args, "--apply", "--overwrite")
    assert over.stdout.startswith("1 chunks written back, 0 had it already")
    assert questions(units)[3] != "the host's own?"
