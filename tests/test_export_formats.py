"""An export is loaded by all that it is made for: trainer, evaluator, datasets, BEIR."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import COLLECTION, SAMPLE
from export_corpus import ListedStore, Passage, asked, documents, sample_results, write_ledger
from export_questions import main
from question_optimizer.embedding import Embedder, _carried_model
from question_optimizer.exports.cards import gather, write_cards
from question_optimizer.exports.dataset import fill
from question_optimizer.exports.formats import COLUMNS, Origin, plain_id, write
from question_optimizer.exports.splitting import DEFAULT_SHARES, Kept, divide
from question_optimizer.exports.workspace import SIDES, Workspace
from question_optimizer.generation.ledger_records import Configuration

FLAGS = ["--qdrant-path", str(SAMPLE / "small_sqlite")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty questions on the sample in all formats."""
    data = tmp_path_factory.mktemp("data")
    write_ledger(data, COLLECTION, sample_results(SAMPLE / "small_sqlite"))
    limit = ["--limit", "40", "--negatives", "2", "--shares", "60/20/20"]
    assert main([*FLAGS, "--data-dir", str(data), *limit]) == 0
    return data / "exports"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def in_export(exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The export as working directory, nothing loaded from the network or an older cache."""
    monkeypatch.chdir(exported)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    return exported


def test_the_code_in_the_readme_runs_as_it_stands(in_export: Path) -> None:
    readme = (in_export / "README.md").read_text(encoding="utf-8")
    known: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", readme, re.S):
        exec(block, known)
    summary = json.loads((in_export / "export.json").read_text())
    counts = summary["counts"]
    assert known["pairs"].column_names == ["anchor", "positive"]
    assert known["triplets"].column_names == ["anchor", "positive", "negative_1", "negative_2"]
    assert len(known["triplets"]) == counts["triplets"]["train"] > 0
    assert known["table"].num_rows == counts["parquet"]["train"]
    assert {side: len(rows) for side, rows in known["splits"].items()} == summary["sizes"]
    assert known["splits"]["test"].features["question"].dtype == "string"
    assert len(known["corpus"]) == 648
    assert len(known["queries"]) == summary["sizes"]["test"]

    model = Embedder()._transformer()
    few = dict(list(known["corpus"].items())[:5])
    few |= {i: known["corpus"][i] for found in known["qrels"].values() for i in found}
    known["evaluator"].corpus_ids = list(few)
    known["evaluator"].corpus = [chunk["text"] for chunk in few.values()]
    metrics = known["evaluator"](model)
    assert metrics["cosine_recall@10"] > 0.8


def test_the_training_script_trains(
    in_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    few = Path(shutil.copytree(in_export, tmp_path / "few"))
    train = few / "triplets" / "train.jsonl"
    # One step, which a warm-up would take at a rate of 0.
    short = sorted(train.read_text(encoding="utf-8").splitlines(keepends=True), key=len)[:4]
    train.write_text("".join(short), encoding="utf-8")
    tuned = tmp_path / "tuned"
    monkeypatch.setattr(sys, "argv", ["train.py", _carried_model(), str(tuned), "9"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for one another are slow beside other tests
    try:
        runpy.run_path(str(few / "train.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    before = (Path(_carried_model()) / "model.safetensors").read_bytes()
    after = (tuned / "model.safetensors").read_bytes()
    assert hashlib.sha256(after).digest() != hashlib.sha256(before).digest()


def test_every_format_has_the_same_questions_and_texts(exported: Path) -> None:
    from pyarrow import parquet

    corpus = {row["_id"]: row for row in lines(exported / "beir" / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in lines(exported / "beir" / "queries.jsonl")}
    for side in SIDES:
        pairs = lines(exported / "pairs" / f"{side}.jsonl")
        told = {(row["question_id"], row["anchor"], row["positive"]) for row in pairs}
        table = parquet.read_table(exported / "parquet" / f"{side}.parquet")
        assert table.column_names == [*COLUMNS, "rehearsal"]
        rows = table.to_pylist()
        assert {(r["question_id"], r["question"], r["chunk"]) for r in rows} == told
        assert {r["split"] for r in rows} == {side} and not any(r["rehearsal"] for r in rows)
        assert len({r["provenance"] for r in rows}) == len(rows)
        head, *judged = (exported / "beir" / "qrels" / f"{side}.tsv").read_text().splitlines()
        assert head == "query-id\tcorpus-id\tscore"
        found = {tuple(line.split("\t")) for line in judged}
        assert {(q, queries[q], corpus[c]["text"]) for q, c, _ in found} >= told
        for row in lines(exported / "triplets" / f"{side}.jsonl"):
            negatives = [corpus[i]["text"] for i in row["negative_chunk_ids"]]
            assert [row["negative_1"], row["negative_2"]] == negatives
            assert row["positive"] not in negatives


def test_the_card_names_splits_licence_models_and_checks(exported: Path) -> None:
    front, body = (exported / "hf" / "README.md").read_text().split("---\n")[1:3]
    assert "license: other" in front and "path: data/dev.parquet" in front
    assert "`some-model`" in body and "40 training" in body and "rehearsal" not in body


def test_identical_texts_are_all_answers_of_a_question(tmp_path: Path) -> None:
    passages = documents(6, 3)
    passages[9].text = passages[0].text
    with_twin = asked(passages[0])
    same_again = asked(passages[4], with_twin.query)
    work = filled(tmp_path, passages, [with_twin, same_again, *map(asked, passages[12:])])
    write("beir", work, tmp_path / "out", ORIGIN)
    judged = (tmp_path / "out" / "beir" / "qrels" / "train.tsv").read_text()
    judged += (tmp_path / "out" / "beir" / "qrels" / "dev.tsv").read_text()
    judged += (tmp_path / "out" / "beir" / "qrels" / "test.tsv").read_text()
    for query in ("000-0-0", "001-1-0"):
        found = set(re.findall(rf"^{query}\t(\S+)\t1$", judged, re.M))
        assert found == {"000-0", "003-0", "001-1"}


ORIGIN = Origin("f" * 16, "a" * 16, "rehearsal")
HOSTILE = 'Tab\there,\nline \u2028 end, "quote", \x00 nul, \ud800 half, \x1b[31m red, {"a": 1} ```'


def filled(tmp_path: Path, passages: list[Passage], results: list[Any]) -> Workspace:
    (tmp_path / "work").mkdir()
    work = Workspace(tmp_path / "work")
    store = ListedStore(passages)
    fill(work, results, store, checked=None, text_key=None, limit=None, seed=0)
    divide(work, [], shares=DEFAULT_SHARES, seed=0, kept=Kept())
    return work


def test_another_export_is_not_taken_for_the_one_that_was_loaded_before(tmp_path: Path) -> None:
    """`datasets` knows what it loaded by the folder's name and its card's front matter."""
    from datasets import load_dataset

    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        results = [asked(passage, slot=number) for passage in documents(8, 1)]
        work = filled(folder, documents(8, 1), results)
        counts = {"hf": write("hf", work, folder / "out", ORIGIN)}
        origin = Configuration("c", "p", "q", ("m",))
        write_cards(folder / "out", gather(work, origin, "document", {}, counts, negatives=0))
        loaded = load_dataset(str(folder / "out" / "hf"), cache_dir=str(tmp_path / "cache"))
        questions = {row["question"] for split in loaded.values() for row in split}
        assert questions == {result.query for result in results}


def test_hostile_text_stays_data(tmp_path: Path) -> None:
    from datasets import load_dataset
    from pyarrow import parquet

    passages = documents(8, 2)
    evil = passages[0]
    evil.id, evil.text = 'evil\t"1\n', HOSTILE + evil.text
    evil.headings = [HOSTILE]
    evil_question = f"What is {HOSTILE} meant to be?"
    result = asked(evil, evil_question, text_sha256="")
    work = filled(tmp_path, passages, [result, *map(asked, passages[1:])])
    for name in ("pairs", "beir", "parquet"):
        write(name, work, tmp_path / "out", ORIGIN)
    clean = evil.text.replace("\ud800", "\ufffd")
    files = {side: str(tmp_path / "out" / "pairs" / f"{side}.jsonl") for side in SIDES}
    loaded = load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
    rows = [row for split in loaded.values() for row in split]
    assert len(rows) == 16
    assert [r["positive"] for r in rows if r["chunk_id"] == evil.id] == [clean]
    tables = [
        parquet.read_table(tmp_path / "out" / "parquet" / f"{side}.parquet") for side in SIDES
    ]
    texts = [row["question"] for table in tables for row in table.to_pylist()]
    assert evil_question.replace("\ud800", "\ufffd") in texts
    qrels = [(tmp_path / "out" / "beir" / "qrels" / f"{side}.tsv").read_text() for side in SIDES]
    judged = [line.split("\t") for text in qrels for line in text.splitlines()[1:]]
    assert len(judged) == 16 and all(len(row) == 3 for row in judged)
    assert plain_id(evil.id) in {row[1] for row in judged}


def test_ids_are_kept_where_they_are_plain_and_never_meet() -> None:
    assert (
        plain_id("5a1b650c-f685-49b9-9df9-e16f45e0a7b9") == "5a1b650c-f685-49b9-9df9-e16f45e0a7b9"
    )
    strange = ["a\tb", "a\nb", 'a"b', "", "ä", "a b", "x" * 200]
    assert all(re.fullmatch("x[0-9a-f]{32}", plain_id(one)) for one in strange)
    assert len({plain_id(one) for one in strange}) == len(strange)


def test_an_empty_side_has_its_files_and_breaks_nothing(tmp_path: Path) -> None:
    passages = documents(4, 2)
    (tmp_path / "work").mkdir()
    work = Workspace(tmp_path / "work")
    store = ListedStore(passages)
    fill(work, map(asked, passages), store, checked=None, text_key=None, limit=None, seed=0)
    divide(work, [], shares={"train": 1, "dev": 0, "test": 0}, seed=0, kept=Kept())
    for name in ("pairs", "beir", "parquet", "hf"):
        counts = write(name, work, tmp_path / "out", ORIGIN)
        assert (counts["train"], counts["dev"], counts["test"]) == (8, 0, 0)
    assert (tmp_path / "out" / "pairs" / "test.jsonl").read_text() == ""
