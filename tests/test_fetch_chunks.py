"""Phase 1a as a person runs it: what it prints, what it writes, what it leaves alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import COLLECTION, Script, tree_digest
from qdrant_server import QdrantServer, make_folder, serving, untouched

OUTPUTS = [
    "raw_chunks.jsonl",
    "raw_chunks.jsonl.meta.json",
    "rejected_chunks.jsonl",
    "rejected_chunks.jsonl.meta.json",
]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ids(path: Path) -> list[int | str]:
    return [row["chunk_id"] for row in rows(path)]


def test_the_sample_ends_in_four_files_and_one_line(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    with untouched(qdrant):
        done = script("fetch_chunks.py", "--qdrant-path", qdrant)
    assert done.returncode == 0
    assert done.stdout == "200 chunks -> data/raw_chunks.jsonl\n"
    assert done.stderr == "coverage: 21 of 22 documents (95 %), 120 of 230 headings (52 %)\n"
    data = tmp_path / "data"
    assert sorted(path.name for path in data.iterdir()) == OUTPUTS
    chunks = rows(data / "raw_chunks.jsonl")
    assert len({row["chunk_id"] for row in chunks}) == len(chunks) == 200
    for row in chunks:
        assert row["chunk_text"]
        assert row["file_name"].endswith(".html")
        assert row["existing_query"] is None
    assert (data / "rejected_chunks.jsonl").read_text() == ""
    for name in ("raw_chunks.jsonl", "rejected_chunks.jsonl"):
        meta = json.loads((data / f"{name}.meta.json").read_text())
        assert meta["schema_version"] == 1
        assert meta["phase"] == "fetch_chunks"
        assert meta["output"] == {"name": name, "sha256": tree_digest(data)[name]}
        assert meta["settings"]["seed"] == 0
        assert meta["settings"]["sample_size"] == 200
        assert meta["settings"]["collection"] == COLLECTION
        assert meta["counts"]["points"] == 648
        assert meta["counts"]["chunks"] == 200
        assert meta["counts"]["without_text"] == 0
        assert meta["counts"]["text_keys"] == {"_node_content.text": 200}
        assert "qdrant-client" in meta["versions"]


def test_second_run_changes_nothing(qdrant: Path, tmp_path: Path, script: Script) -> None:
    first = script("fetch_chunks.py", "--qdrant-path", qdrant)
    with untouched(tmp_path):
        second = script("fetch_chunks.py", "--qdrant-path", qdrant)
    assert second.returncode == 0
    assert (second.stdout, second.stderr) == (first.stdout, first.stderr)


def test_the_three_ways_write_the_same_bytes(qdrant: Path, tmp_path: Path, script: Script) -> None:
    served = Path(shutil.copytree(qdrant, tmp_path / "served"))
    size = ("--sample-size", 250)
    with untouched(qdrant), serving(served) as server:
        ways: dict[str, list[object]] = {
            "direct": ["--qdrant-path", qdrant],
            "client": ["--qdrant-path", qdrant, "--via-client"],
            "server": ["--qdrant-url", server.url],
        }
        for name, where in ways.items():
            done = script("fetch_chunks.py", *where, *size, "--data-dir", name)
            assert done.returncode == 0
            assert done.stderr.startswith("coverage: 22 of 22 documents (100 %), 141 of 230 ")
            assert done.stdout == f"250 chunks -> {name}/raw_chunks.jsonl\n"
    direct = tree_digest(tmp_path / "direct")
    assert sorted(direct) == OUTPUTS
    assert tree_digest(tmp_path / "client") == direct
    assert tree_digest(tmp_path / "server") == direct


def test_a_larger_sample_starts_with_the_smaller_one(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    for size in (150, 250):
        args = ("--sample-size", size, "--data-dir", size)
        assert script("fetch_chunks.py", "--qdrant-path", qdrant, *args).returncode == 0
    smaller = (tmp_path / "150" / "raw_chunks.jsonl").read_bytes()
    larger = (tmp_path / "250" / "raw_chunks.jsonl").read_bytes()
    assert larger.startswith(smaller)
    assert (smaller.count(b"\n"), larger.count(b"\n")) == (150, 250)


def test_the_seed_comes_from_flag_environment_or_file(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    def drawn(name: str, *flags: object, **environ: str) -> list[int | str]:
        args = ("--qdrant-path", qdrant, "--data-dir", name, *flags)
        assert script("fetch_chunks.py", *args, **environ).returncode == 0
        return ids(tmp_path / name / "raw_chunks.jsonl")

    default = drawn("default")
    environment = drawn("environment", QO_SEED="7")
    assert default != environment
    assert drawn("flag", "--seed", 7) == environment
    assert drawn("flag over environment", "--seed", 0, QO_SEED="7") == default
    (tmp_path / ".env").write_text("QO_SEED=7\n")
    assert drawn("file") == environment
    assert drawn("environment over file", QO_SEED="0") == default
    meta = json.loads((tmp_path / "file" / "raw_chunks.jsonl.meta.json").read_text())
    assert meta["settings"]["seed"] == 7


def test_print_config_names_every_origin_and_does_nothing(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    with untouched(tmp_path):
        done = script(
            *("fetch_chunks.py", "--print-config", "--qdrant-path", qdrant),
            QO_SEED="7",
            QO_QDRANT_API_KEY="sesame",
        )
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert lines["qdrant_path"] == [str(qdrant), "flag", "--qdrant-path"]
    assert lines["seed"] == ["7", "environment", "QO_SEED"]
    assert lines["data_dir"] == ["data", "default"]
    assert lines["qdrant_api_key"] == ["********", "environment", "QO_QDRANT_API_KEY"]
    assert "sesame" not in done.stdout


def test_a_flag_that_names_the_folder_beats_a_server_from_the_environment(
    qdrant: Path, script: Script
) -> None:
    done = script("fetch_chunks.py", "--qdrant-path", qdrant, QO_QDRANT_URL="http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (0, "200 chunks -> data/raw_chunks.jsonl\n")


def test_points_without_text_are_counted_reported_and_listed(
    tmp_path: Path, script: Script
) -> None:
    payloads = {n: {"text": f"chunk {n}"} if n % 3 else {"title": "t"} for n in range(12)}
    folder = make_folder(tmp_path / "q", payloads)
    done = script("fetch_chunks.py", "--qdrant-path", folder, "--sample-size", 8)
    assert done.returncode == 0
    assert done.stdout == "8 chunks -> data/raw_chunks.jsonl\n"
    data = tmp_path / "data"
    rejected = rows(data / "rejected_chunks.jsonl")
    assert done.stderr == (f"passed over: {len(rejected)} no_text -> data/rejected_chunks.jsonl\n")
    assert rejected
    assert {row["chunk_id"] for row in rejected} <= {0, 3, 6, 9}
    for row in rejected:
        assert row == {"chunk_id": row["chunk_id"], "reason": "no_text", "measure": 0}
    assert sorted(ids(data / "raw_chunks.jsonl")) == [n for n in range(12) if n % 3]
    meta = json.loads((data / "raw_chunks.jsonl.meta.json").read_text())
    assert meta["counts"]["without_text"] == len(rejected)


def test_a_collection_that_is_too_small_is_taken_whole_and_said_so(
    tmp_path: Path, script: Script
) -> None:
    folder = make_folder(tmp_path / "q", {n: {"text": f"chunk {n}"} for n in range(5)})
    done = script("fetch_chunks.py", "--qdrant-path", folder)
    assert done.returncode == 0
    assert done.stdout == "5 chunks -> data/raw_chunks.jsonl\n"
    assert done.stderr == "the collection has only 5 chunks with text, 200 were asked for\n"


def test_the_text_key_is_used_and_recorded(tmp_path: Path, script: Script) -> None:
    folder = make_folder(tmp_path / "q", {1: {"doc": {"body": "deep"}, "text": "other"}})
    args = ("--sample-size", 1, "--text-key", "doc.body")
    done = script("fetch_chunks.py", "--qdrant-path", folder, *args)
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = rows(tmp_path / "data" / "raw_chunks.jsonl")
    assert row["chunk_text"] == "deep"
    meta = json.loads((tmp_path / "data" / "raw_chunks.jsonl.meta.json").read_text())
    assert meta["settings"]["text_key"] == "doc.body"
    assert meta["counts"]["text_keys"] == {"doc.body": 1}


def test_metadata_and_the_old_question_are_kept(tmp_path: Path, script: Script) -> None:
    metadata = {
        "document_id": "None",
        "file_name": "doors.pdf",
        "headings": ["3 Türen"],
        "doc_items": [{"prov": [{"page_no": 12}]}, {"prov": [{"page_no": 11}]}],
        "generated_query": "Which door?",
    }
    payload = {"_node_content": json.dumps({"text": "Doors close.", "metadata": metadata})}
    folder = make_folder(tmp_path / "q", {4: {**metadata, **payload}})
    script("fetch_chunks.py", "--qdrant-path", folder)
    (row,) = rows(tmp_path / "data" / "raw_chunks.jsonl")
    assert row == {
        "chunk_id": 4,
        "chunk_text": "Doors close.",
        "document_id": "doors.pdf",
        "file_name": "doors.pdf",
        "headings": ["3 Türen"],
        "page_no": 11,
        "existing_query": "Which door?",
    }


# ---------------------------------------------------------------------- designs and filters

FILTERED = ("--filters", "too_short, boilerplate,near_duplicate", "--min-words", 10)


def test_filters_refill_the_sample_and_keep_what_they_left_out(
    tmp_path: Path, script: Script
) -> None:
    fit = "Valve {} closes when the pressure in its brake pipe falls below the limit."
    payloads = {n: {"text": fit.format(n), "document_id": f"{n % 2}"} for n in range(8)}
    payloads |= {n: {"text": "which expands to:\x1b[31m"} for n in range(8, 20)}
    payloads |= {20: {"text": fit.format(3)}, 21: {"title": "no text"}}
    folder = make_folder(tmp_path / "q", payloads)
    done = script("fetch_chunks.py", "--qdrant-path", folder, "--sample-size", 8, *FILTERED)
    assert (done.returncode, done.stdout) == (0, "8 chunks -> data/raw_chunks.jsonl\n")
    data = tmp_path / "data"
    assert len({row["chunk_text"] for row in rows(data / "raw_chunks.jsonl")}) == 8
    rejected = {row["chunk_id"]: row for row in rows(data / "rejected_chunks.jsonl")}
    short = [row for row in rejected.values() if row["reason"] == "too_short"]
    assert short[0] == {
        "chunk_id": short[0]["chunk_id"],
        "reason": "too_short",
        "measure": 4.0,
        "chunk_text": "which expands to:",
    }
    meta = json.loads((data / "raw_chunks.jsonl.meta.json").read_text())
    assert meta["settings"]["filters"] == ["boilerplate", "too_short", "near_duplicate"]
    assert meta["settings"]["min_words"] == 10
    assert sum(meta["counts"]["passed_over"].values()) == len(rejected)
    passed, covered = done.stderr.splitlines()
    assert passed.startswith(f"passed over: {len(short)} too_short, 1 n")
    assert passed.endswith(" -> data/rejected_chunks.jsonl")
    assert covered == "coverage: 2 of 2 documents (100 %)"


def test_a_near_duplicate_names_the_chunk_it_is_like(tmp_path: Path, script: Script) -> None:
    folder = make_folder(tmp_path / "q", {n: {"text": "The same words."} for n in range(3)})
    done = script("fetch_chunks.py", "--qdrant-path", folder, "--filters", "near_duplicate")
    assert done.returncode == 0
    assert "the collection has only 1 fit chunks, 200 were asked for" in done.stderr
    (kept,) = ids(tmp_path / "data" / "raw_chunks.jsonl")
    for row in rows(tmp_path / "data" / "rejected_chunks.jsonl"):
        assert (row["reason"], row["like"], row["measure"]) == ("near_duplicate", kept, 1.0)


def test_filters_that_leave_nothing_say_so(tmp_path: Path, script: Script) -> None:
    folder = make_folder(tmp_path / "q", {n: {"text": "An example:"} for n in range(3)})
    with untouched(tmp_path):
        done = script("fetch_chunks.py", "--qdrant-path", folder, "--filters", "all")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "fetch_chunks.py: collection 'docs': none of its chunks is fit (3 too_short); "
        "leave out some --filters\n"
    )


def test_a_design_is_recorded_and_reaches_every_document(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    size = ("--sample-size", 44, "--design", "by-document", "--allocation", "equal")
    done = script("fetch_chunks.py", "--qdrant-path", qdrant, *size)
    assert (done.returncode, done.stdout) == (0, "44 chunks -> data/raw_chunks.jsonl\n")
    assert done.stderr.startswith("coverage: 22 of 22 documents (100 %), ")
    meta = json.loads((tmp_path / "data" / "raw_chunks.jsonl.meta.json").read_text())
    assert meta["settings"]["design"] == "by-document"
    assert meta["settings"]["allocation"] == "equal"
    coverage = meta["counts"]["coverage"]
    assert (coverage["documents"], coverage["of_documents"], coverage["looked_at"]) == (22, 22, 648)
    found = rows(tmp_path / "data" / "raw_chunks.jsonl")
    assert any(row.get("next_text") for row in found)
    assert all(row.get("next_text") != "" for row in found)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("payloads", "flags", "message"),
    [
        ({}, [], "collection 'docs': has no points; ingest documents first"),
        (
            {1: {"title": "t"}, 2: {}},
            [],
            "collection 'docs': none of its 2 points has text under _node_content.text, text, "
            "chunk_text, document, page_content, content; name it with --text-key",
        ),
        (
            {1: {"text": "t"}},
            ["--text-key", "body"],
            "collection 'docs': none of its 1 points has text under body; name it with --text-key",
        ),
    ],
    ids=["no points", "no text", "no text there"],
)
def test_a_collection_without_chunks_leaves_no_file(
    tmp_path: Path, script: Script, payloads: dict[Any, Any], flags: list[str], message: str
) -> None:
    folder = make_folder(tmp_path / "q", payloads)
    with untouched(tmp_path):
        done = script("fetch_chunks.py", "--qdrant-path", folder, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"fetch_chunks.py: {message}\n"


def test_a_failed_run_leaves_the_last_good_files(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    assert script("fetch_chunks.py", "--qdrant-path", qdrant).returncode == 0
    with untouched(tmp_path):
        args = ("--qdrant-path", qdrant, "--collection", "nope")
        assert script("fetch_chunks.py", *args).returncode == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no chunks to read: give --qdrant-path or --qdrant-url (or QO_QDRANT_PATH)"),
        (["--sample-size", "0"], "argument --sample-size: must be at least 1"),
        (["--sample-size", "-5"], "argument --sample-size: must be at least 1"),
        (["--sample-size", "many"], "argument --sample-size: "),
        (["--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (
            ["--filters", "too_short,short"],
            "argument --filters: 'short' is none of: all, none, boilerplate, table_of_contents, "
            "references, undecoded_formula, table_residue, garbled, too_short, near_duplicate",
        ),
        (["--design", "even"], "argument --design: invalid choice: 'even'"),
        (
            ["--allocation", "equal"],
            "argument --allocation: needs --design by-document or by-heading",
        ),
        (["--min-words", "9"], "argument --min-words: needs --filters with too_short"),
        (["--qdrant-path", "."], ".: has no meta.json, so it is no Qdrant folder"),
    ],
)
def test_a_wrong_command_line_is_explained(
    tmp_path: Path, script: Script, flags: list[str], message: str
) -> None:
    (tmp_path / "something").touch()
    with untouched(tmp_path):
        done = script("fetch_chunks.py", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fetch_chunks.py: ")
    assert message in last
    assert "_positive" not in last
    assert "Traceback" not in done.stderr


def test_a_data_folder_that_cannot_be_one_is_named(
    qdrant: Path, tmp_path: Path, script: Script
) -> None:
    (tmp_path / "taken").write_text("a file")
    with untouched(tmp_path):
        done = script("fetch_chunks.py", "--qdrant-path", qdrant, "--data-dir", "taken")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fetch_chunks.py: taken/raw_chunks.jsonl: cannot be written (")
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------------- servers


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QdrantServer]:
    folder = make_folder(tmp_path / "served", {n: {"text": f"t{n}"} for n in range(5)})
    make_folder(folder, {}, collection="spare")
    with serving(folder) as server:
        yield server


def test_a_server_is_only_read(server: QdrantServer, script: Script) -> None:
    args = ("--qdrant-url", server.url, "--collection", "docs", "--sample-size", 5)
    done = script("fetch_chunks.py", *args, QO_QDRANT_API_KEY="sesame")
    assert (done.returncode, done.stdout) == (0, "5 chunks -> data/raw_chunks.jsonl\n")
    assert [(method, path) for method, path, _ in server.requests if path != "/"] == [
        ("GET", "/collections"),
        ("GET", "/aliases"),
        ("POST", "/collections/docs/points/count"),
        ("POST", "/collections/docs/points/scroll"),
        ("POST", "/collections/docs/points"),
    ]
    assert {headers["api-key"] for headers in server.headers_seen} == {"sesame"}


def test_an_older_server_is_read_without_a_word(server: QdrantServer, script: Script) -> None:
    server.version = "1.0.0"
    args = ("--qdrant-url", server.url, "--collection", "docs", "--sample-size", 5)
    done = script("fetch_chunks.py", *args)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path, script: Script) -> None:
    with untouched(tmp_path):
        done = script("fetch_chunks.py", "--qdrant-url", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fetch_chunks.py: http://127.0.0.1:1: no answer from Qdrant (")
    assert done.stderr.endswith("); is it running there?\n")
    assert done.stderr.count("\n") == 1


def test_a_server_that_fails_half_way_is_one_line_and_leaves_no_file(
    server: QdrantServer, tmp_path: Path, script: Script
) -> None:
    server.fail = lambda method, path: (503, "no") if path.endswith("/points") else None
    done = script("fetch_chunks.py", "--qdrant-url", server.url, "--collection", "docs")
    assert done.returncode in (2, 75)
    assert done.stderr.startswith(f"fetch_chunks.py: {server.url}: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()
