"""Files: whole or not at all, the bad line named, and a meta file that means "finished"."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, clean_environment
from question_optimizer import files
from question_optimizer.errors import UserError
from question_optimizer.records import Chunk

# ---------------------------------------------------------------------- writing


def test_writing_says_whether_anything_changed_and_leaves_equal_files_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "out.json"
    assert files.write_json(path, {"a": "é"}) is True
    before = path.stat()
    assert files.write_json(path, {"a": "é"}) is False
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino
    assert files.write_json(path, {"a": "e"}) is True
    assert path.read_text(encoding="utf-8") == '{\n  "a": "e"\n}\n'


def test_rows_are_written_one_a_line_in_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert files.write_jsonl(path, [{"a": "é\n"}, {"b": 2}]) is True
    assert path.read_bytes() == '{"a": "é\\n"}\n{"b": 2}\n'.encode()


def test_rows_that_break_off_leave_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    files.write_jsonl(path, [{"a": 1}])

    def rows() -> Iterator[dict[str, Any]]:
        yield {"a": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_jsonl(path, rows())
    assert path.read_text() == '{"a": 1}\n'
    assert os.listdir(tmp_path) == ["rows.jsonl"]


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from question_optimizer import files
from question_optimizer.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    files.write_atomic(Path(sys.argv[1]), "new" * 100_000)
except UserError as error:
    print(error)
"""


def test_a_write_that_fails_halfway_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(path)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == (
        f"{path}: cannot be written (File too large); free the disk or change --data-dir\n"
    ), done.stderr
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


_KILLED = """
import os, signal, sys, threading
from pathlib import Path
from question_optimizer import files
path = Path(sys.argv[1])
part = f".{path.name}.{os.getpid()}-"
def watch():
    while not any(name.startswith(part) for name in os.listdir(path.parent)):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
files.write_atomic(path, b"new" * 100_000_000)
"""


def test_a_write_killed_halfway_leaves_the_old_file_and_the_next_write_tidies_up(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(path)],
        cwd=ROOT,
        env=clean_environment(),
        check=False,
    )
    assert killed.returncode == -9
    assert path.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2
    files.write_atomic(path, "new")
    assert os.listdir(tmp_path) == ["out.txt"]


def test_the_unfinished_file_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    others = tmp_path / f".out.txt.{os.getppid()}-1.tmp"
    others.write_text("being written")
    files.write_atomic(tmp_path / "out.txt", "mine")
    assert others.read_text() == "being written"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("folder", "Is a directory"),
        ("a_file/out.json", "File exists"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_in_one_line(
    tmp_path: Path, place: str, reason: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a_file").write_text("")
    path = tmp_path / place
    with pytest.raises(UserError) as refusal:
        files.write_json(path, {})
    assert str(refusal.value) == (
        f"{path}: cannot be written ({reason}); free the disk or change --data-dir"
    )
    assert sorted(os.listdir(tmp_path)) == ["a_file", "folder"]


# ---------------------------------------------------------------------- reading

BAD_CHUNKS = [
    (b'{"chunk_id": 1, "text": "a"}\n{"chunk_id": 2}\n', ":2: no chunk_text; rerun fetch.py"),
    (b'{"chunk_text": "a"}\n', ":1: no chunk_id; rerun fetch.py"),
    (
        b'\n\n{"chunk_id": 1, "text": "a"\n',
        ":3: not JSON (Expecting ',' delimiter); rerun fetch.py",
    ),
    (b'{"chunk_id": 1, "text": "a"}\nhello\n', ":2: not JSON (Expecting value); rerun fetch.py"),
    (b"[1]\n", ":1: not an object; rerun fetch.py"),
    (
        b'{"chunk_id": 1, "text": ""}\n',
        ":1: text: String should have at least 1 character; rerun fetch.py",
    ),
    (
        b'{"chunk_id": 1, "text": "a", "page_no": "ix"}\n',
        ":1: page_no: Input should be a valid integer, unable to parse string as an integer; "
        "rerun fetch.py",
    ),
    (b'{"text": "\xe9"}\n', ": not UTF-8 text (invalid continuation byte); rerun fetch.py"),
]


@pytest.mark.parametrize(("content", "message"), BAD_CHUNKS)
def test_a_bad_line_is_named_with_file_line_and_field(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "raw_chunks.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        files.read_records(path, Chunk, made_by="fetch.py")
    assert str(refusal.value) == f"{path}{message}"
    assert refusal.value.exit_code == 2


def test_the_missing_text_is_reported_as_the_design_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/raw_chunks.jsonl").write_text('{"chunk_id": 1, "chunk_text": "a"}\n{"chunk_id": 2}')
    with pytest.raises(UserError) as refusal:
        files.read_records(Path("data/raw_chunks.jsonl"), Chunk, made_by="fetch_chunks.py")
    expected = "data/raw_chunks.jsonl:2: no chunk_text; rerun fetch_chunks.py"
    assert str(refusal.value) == expected


def test_text_is_accepted_for_chunk_text_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "raw_chunks.jsonl"
    path.write_text('{"chunk_id": 1, "text": "a"}\n\n{"chunk_id": 2, "chunk_text": "b"}\n')
    chunks = files.read_records(path, Chunk, made_by="fetch.py")
    assert [(chunk.chunk_id, chunk.chunk_text) for chunk in chunks] == [(1, "a"), (2, "b")]


def test_a_missing_or_unreadable_file_says_what_to_run(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    for read in (
        lambda path: files.read_json(path, made_by="x.py"),
        lambda path: list(files.read_jsonl(path, made_by="x.py")),
    ):
        with pytest.raises(UserError) as refusal:
            read(missing)
        assert str(refusal.value) == f"{missing}: does not exist; run x.py first"
        with pytest.raises(UserError) as refusal:
            read(tmp_path)
        assert str(refusal.value) == f"{tmp_path}: cannot be read (Is a directory)"


def test_bad_json_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "gold.json"
    path.write_text('[\n  {"a": 1},\n  {"b" 2}\n]')
    with pytest.raises(UserError) as refusal:
        files.read_json(path, made_by="x.py")
    assert str(refusal.value) == f"{path}:3: not JSON (Expecting ':' delimiter); rerun x.py"
    path.write_bytes(b"\xff\xfe[]")
    with pytest.raises(UserError) as refusal:
        files.read_json(path, made_by="x.py")
    assert str(refusal.value) == f"{path}: not UTF-8 text (invalid start byte); rerun x.py"


def test_a_digest_does_not_depend_on_key_order() -> None:
    assert files.digest({"a": 1, "b": [2]}) == files.digest({"b": [2], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": "1"})


# ---------------------------------------------------------------------- meta

SETTINGS = {"seed": 0, "size": 12}
INPUTS = {"in.json": "ab" * 32}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    path = tmp_path / "out.json"
    files.write_json(path, [1, 2])
    files.write_meta(path, phase="test", settings=SETTINGS, inputs=INPUTS, counts={"rows": 2})
    return path


def test_a_finished_output_is_known_by_its_settings_inputs_and_content(finished: Path) -> None:
    assert files.is_finished(finished, settings=SETTINGS, inputs=INPUTS)
    reordered = dict(reversed(SETTINGS.items()))
    assert files.is_finished(finished, settings=reordered, inputs=INPUTS)
    assert not files.is_finished(finished, settings=SETTINGS | {"seed": 1}, inputs=INPUTS)
    assert not files.is_finished(finished, settings={"seed": 0}, inputs=INPUTS)
    assert not files.is_finished(finished, settings=SETTINGS, inputs={"in.json": "cd" * 32})
    assert not files.is_finished(finished, settings=SETTINGS, inputs=INPUTS | {"more": "ef"})


def test_an_output_that_was_changed_or_lost_is_not_finished(finished: Path) -> None:
    content = finished.read_text()
    finished.write_text(content.replace("2", "3"))
    assert not files.is_finished(finished, settings=SETTINGS, inputs=INPUTS)
    finished.write_text(content)
    assert files.is_finished(finished, settings=SETTINGS, inputs=INPUTS)
    finished.unlink()
    assert not files.is_finished(finished, settings=SETTINGS, inputs=INPUTS)


@pytest.mark.parametrize(
    "meta",
    [
        "",
        "not JSON",
        "[]",
        "{}",
        '{"schema_version": "1"}',
        '{"schema_version": 2}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "output": null}',
        '{"schema_version": 1, "output": []}',
    ],
)
def test_an_output_with_a_damaged_or_newer_meta_is_not_finished(finished: Path, meta: str) -> None:
    files.meta_path(finished).write_text(meta)
    assert files.is_finished(finished, settings=SETTINGS, inputs=INPUTS) is False


def test_an_output_without_meta_is_refused_as_unfinished(finished: Path) -> None:
    files.meta_path(finished).unlink()
    with pytest.raises(UserError) as refusal:
        files.read_meta(finished, made_by="optimize.py")
    assert str(refusal.value) == (
        f"{finished}: unfinished, out.json.meta.json is missing; rerun optimize.py"
    )
    finished.unlink()
    with pytest.raises(UserError) as refusal:
        files.read_meta(finished, made_by="optimize.py")
    assert str(refusal.value) == (
        f"{files.meta_path(finished)}: does not exist; run optimize.py first"
    )


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (
            '{"schema_version": 2}',
            ": schema version 2 is newer than the 1 this program knows; upgrade question-optimizer",
        ),
        ('{"phase": "x"}', ": no schema_version; rerun x.py"),
        ("[]", ": no schema_version; rerun x.py"),
        ("{", ":1: not JSON (Expecting property name enclosed in double quotes); rerun x.py"),
    ],
)
def test_a_meta_that_cannot_be_trusted_is_refused_in_one_line(
    finished: Path, meta: str, message: str
) -> None:
    files.meta_path(finished).write_text(meta)
    with pytest.raises(UserError) as refusal:
        files.read_meta(finished, made_by="x.py")
    assert str(refusal.value) == f"{files.meta_path(finished)}{message}"


def test_a_meta_written_twice_has_the_same_bytes_and_no_clock_in_it(finished: Path) -> None:
    place = files.meta_path(finished)
    first = place.read_bytes()
    place.unlink()
    os.utime(finished, (1, 1))
    changed = files.write_meta(
        finished, phase="test", settings=SETTINGS, inputs=INPUTS, counts={"rows": 2}
    )
    assert changed is True
    assert place.read_bytes() == first
    again = files.write_meta(
        finished, phase="test", settings=SETTINGS, inputs=INPUTS, counts={"rows": 2}
    )
    assert again is False
    meta = json.loads(first)
    assert list(meta) == [
        "schema_version",
        "phase",
        "output",
        "settings",
        "inputs",
        "counts",
        "versions",
    ]
    assert meta["output"] == {"name": "out.json", "sha256": files.sha256(finished)}
    assert meta["versions"]["dspy"].startswith("3.4.")
