"""Every kind of leak, planted into the files of a clean export, is found in them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import COLLECTION, SAMPLE, tree_digest
from export_corpus import sample_results, write_ledger
from export_questions import SUMMARY, main, refuse_leaks
from question_optimizer.cli import run
from question_optimizer.errors import UserError
from question_optimizer.exports.folders import replaced
from question_optimizer.exports.leaks import find_leaks

Row = dict[str, Any]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with an export of forty questions, triplets made by hand, and a gold set."""
    data = tmp_path_factory.mktemp("data")
    write_ledger(data, COLLECTION, sample_results(SAMPLE / "small_sqlite"))
    flags = ["--qdrant-path", str(SAMPLE / "small_sqlite"), "--data-dir", str(data)]
    asked = ["--limit", "40", "--shares", "40/30/30", "--format", "pairs,beir,parquet,hf"]
    assert main([*flags, *asked]) == 0
    folder = data / "exports"
    for side in ("train", "dev", "test"):
        pairs = lines(folder / "pairs" / f"{side}.jsonl")
        others = [*pairs[1:], pairs[0]]
        rows = [{**p, "negative": o["positive"]} for p, o in zip(pairs, others, strict=True)]
        (folder / "triplets").mkdir(exist_ok=True)
        write_lines(folder / "triplets" / f"{side}.jsonl", rows)
    assert main(["--data-dir", str(data), "--check", str(folder)]) == 0
    return data


@pytest.fixture
def data(clean: Path, tmp_path: Path) -> Path:
    """A copy to plant a leak in."""
    return Path(shutil.copytree(clean, tmp_path / "data"))


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def add(folder: Path, name: str, *, like: Row, **changed: Any) -> None:
    """One more row at the end of a file of pairs or triplets."""
    path = folder / name
    write_lines(path, [*lines(path), {**like, **changed}])


def moved(folder: Path) -> None:
    """A row of train also in test, as it is."""
    add(folder, "pairs/test.jsonl", like=lines(folder / "pairs" / "train.jsonl")[0])


def same_document(folder: Path) -> None:
    train, dev = (lines(folder / "pairs" / f"{side}.jsonl")[0] for side in ("train", "dev"))
    add(folder, "pairs/dev.jsonl", like=dev, document=train["document"])


def same_question(folder: Path) -> None:
    train, test = (lines(folder / "pairs" / f"{side}.jsonl")[0] for side in ("train", "test"))
    add(folder, "pairs/test.jsonl", like=test, anchor=train["anchor"].upper())


def near_question(folder: Path) -> None:
    train, test = (lines(folder / "pairs" / f"{side}.jsonl")[0] for side in ("train", "test"))
    add(folder, "triplets/test.jsonl", like=test, negative="far", anchor=train["anchor"] + " Why?")


def near_text(folder: Path) -> None:
    dev, test = (lines(folder / "pairs" / f"{side}.jsonl")[0] for side in ("dev", "test"))
    add(folder, "pairs/dev.jsonl", like=dev, positive="Well: " + test["positive"])


def question_in_text(folder: Path) -> None:
    row = lines(folder / "pairs" / "train.jsonl")[0]
    text = f"generated_query: {row['anchor']}\n{row['positive']}"
    add(folder, "pairs/train.jsonl", like=row, positive=text)


def negative_is_positive(folder: Path) -> None:
    row = lines(folder / "triplets" / "train.jsonl")[0]
    add(folder, "triplets/train.jsonl", like=row, negative=row["positive"] + " So it is.")


def negative_is_another_positive(folder: Path) -> None:
    one, other = lines(folder / "pairs" / "train.jsonl")[:2]
    add(folder, "pairs/train.jsonl", like=other, anchor=one["anchor"])
    add(folder, "triplets/train.jsonl", like=one, negative=other["positive"])


def missing_id(folder: Path) -> None:
    with (folder / "beir" / "qrels" / "test.tsv").open("a") as file:
        query = lines(folder / "beir" / "queries.jsonl")[0]["_id"]
        file.write(f"{query}\tnowhere\t1\n")


def judged_on_two_sides(folder: Path) -> None:
    first = (folder / "beir" / "qrels" / "train.tsv").read_text().splitlines()[1]
    with (folder / "beir" / "qrels" / "dev.tsv").open("a") as file:
        file.write(first + "\n")


def in_parquet(folder: Path, place: str = "parquet") -> None:
    import pyarrow
    from pyarrow import parquet

    train, test = (parquet.read_table(folder / place / f"{side}.parquet") for side in SIDES)
    both = pyarrow.concat_tables([test, train.slice(0, 1)])
    parquet.write_table(both, folder / place / "test.parquet")


SIDES = ("train", "test")


def in_hugging_face(folder: Path) -> None:
    in_parquet(folder, "hf/data")


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (moved, "between train and test, the same document"),
        (same_document, "between train and dev, the same document"),
        (same_question, "between train and test, the same question"),
        (near_question, "between train and test, nearly the same question"),
        (near_text, "between dev and test, nearly the same chunk text"),
        (question_in_text, "in train, a question inside its own text"),
        (negative_is_positive, "in train, a negative that repeats the positive"),
        (negative_is_another_positive, "in train, a negative that is a positive of the same"),
        (missing_id, "in test, a judgement on an id that is not there: 'nowhere'"),
        (judged_on_two_sides, "between train and dev, the same document"),
        (in_parquet, "between train and test, the same document"),
        (in_hugging_face, "between train and test, the same document"),
    ],
)
def test_a_planted_leak_is_found(
    data: Path, plant: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(data / "exports")
    check = ["--data-dir", str(data), "--check", str(data / "exports")]
    assert run(lambda: main(check)) == 3
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and f"leak {said}" in told[0]


def gold_item(row: Row, split: str, **changed: Any) -> Row:
    item = {
        "chunk_text": row["positive"],
        "persona_description": "",
        "gold_question": "What would nobody else ever ask about whales in winter?",
        "chunk_id": "known to gold alone",
        "split": split,
    }
    return {**item, **changed}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "between train and gold, the same chunk text"),
        (
            {"chunk_text": "Whales. {positive}"},
            "between train and gold, nearly the same chunk text",
        ),
        ({"chunk_text": "-", "chunk_id": "{chunk_id}"}, "between train and gold, the same chunk"),
        (
            {"chunk_text": "-", "gold_question": "{anchor}"},
            "between train and gold, the same quest",
        ),
    ],
)
def test_what_the_gold_set_holds_out_is_not_trained_on(
    data: Path, changed: Row, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["--data-dir", str(data), "--check", str(data / "exports")]
    train, test = (
        max(lines(data / "exports" / "pairs" / f"{side}.jsonl"), key=size) for side in SIDES
    )
    for row, split, code in ((train, "train", 0), (test, "test", 0), (train, "test", 3)):
        filled = {key: text.format(**row) for key, text in changed.items()}
        (data / "gold_dataset.json").write_text(json.dumps([gold_item(row, split, **filled)]))
        assert run(lambda: main(check)) == code
    assert f"leak {said}" in capsys.readouterr().err


def size(row: Row) -> int:
    return len(row["positive"])


def test_all_leaks_are_told_to_whom_asks_for_all(data: Path, tmp_path: Path) -> None:
    for plant in (moved, near_text, missing_id, negative_is_positive):
        plant(data / "exports")
    (tmp_path / "scratch").mkdir()
    kinds = {leak.kind for leak in find_leaks(data / "exports", [], tmp_path / "scratch")}
    assert {"the same document", "nearly the same chunk text"} < kinds
    assert {
        "a judgement on an id that is not there",
        "a negative that repeats the positive",
    } < kinds


def test_a_leak_leaves_the_old_export_where_it_was(data: Path, tmp_path: Path) -> None:
    old = data / "exports"
    before = tree_digest(old)
    with pytest.raises(UserError) as refused, replaced(old, finished_by=SUMMARY) as folder:
        shutil.copytree(old, folder, dirs_exist_ok=True)
        moved(folder)
        refuse_leaks(folder, [], tmp_path)
    assert refused.value.exit_code == 3
    assert "(pairs/train.jsonl:1)" in str(refused.value)
    assert tree_digest(old) == before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pairs/dev.jsonl", '{"anchor": "x"}\n', "pairs/dev.jsonl:1: no positive; rerun"),
        ("pairs/dev.jsonl", "{", "pairs/dev.jsonl:1: not JSON"),
        ("pairs/dev.jsonl", None, "pairs/dev.jsonl: does not exist"),
        ("beir/qrels/dev.tsv", "a\tb\tc\na b 1\n", "dev.tsv:2: must be query-id, corpus-id, score"),
        (
            "beir/queries.jsonl",
            '{"_id": "1", "text": "x"}\n' * 2,
            "queries.jsonl:2: _id occurs twice",
        ),
        ("parquet/dev.parquet", "no", "parquet/dev.parquet: cannot be read"),
        (f"{SUMMARY}.meta.json", None, "unfinished"),
    ],
)
def test_a_damaged_export_is_refused_in_one_line(
    data: Path, name: str, content: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data / "exports" / name
    path.unlink() if content is None else path.write_text(content)
    assert run(lambda: main(["--data-dir", str(data), "--check", str(data / "exports")])) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and said in told[0]


@pytest.mark.parametrize("key", ["document_id", "file_name"])
def test_no_document_of_the_gold_sets_test_is_trained_on(
    data: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by another of its chunks either; where documents were split, that is."""
    train = lines(data / "exports" / "pairs" / "train.jsonl")[0]
    item = gold_item(train, "test", chunk_text="Whales.", **{key: train["document"]})
    (data / "gold_dataset.json").write_text(json.dumps([item]))
    check = ["--data-dir", str(data), "--check", str(data / "exports")]
    assert run(lambda: main(check)) == 3
    assert "between train and gold, the same document" in capsys.readouterr().err
    splits = data / "exports" / "splits.json"
    splits.write_text(json.dumps({**json.loads(splits.read_text()), "unit": "section"}))
    assert run(lambda: main(check)) == 0


def test_documents_may_be_on_two_sides_where_sections_were_split(data: Path) -> None:
    same_document(data / "exports")
    check = ["--data-dir", str(data), "--check", str(data / "exports")]
    assert run(lambda: main(check)) == 3
    splits = data / "exports" / "splits.json"
    splits.write_text(json.dumps({**json.loads(splits.read_text()), "unit": "section"}))
    assert run(lambda: main(check)) == 0


def test_a_split_group_on_two_sides_is_a_leak(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two documents, as where texts alike tie them."""
    folder = data / "exports" / "pairs"
    train, dev = (lines(folder / f"{side}.jsonl")[0] for side in ("train", "dev"))
    add(folder, "dev.jsonl", like=dev, split_group=train["split_group"])
    check = ["--data-dir", str(data), "--check", str(data / "exports")]
    assert run(lambda: main(check)) == 3
    assert "between train and dev, the same split group" in capsys.readouterr().err


@pytest.mark.parametrize("held", ["test", "gold"])
def test_a_text_that_is_held_out_is_no_negative_to_train_on(
    data: Path, held: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = data / "exports"
    train, test = (lines(folder / "triplets" / f"{side}.jsonl")[0] for side in SIDES)
    text = test["positive"]
    if held == "gold":
        text = "Whales in winter, of which nobody else tells anything here."
        item = gold_item(test, "test", chunk_text=text)
        (data / "gold_dataset.json").write_text(json.dumps([item]))
    add(folder, "triplets/train.jsonl", like=train, negative=text)
    check = ["--data-dir", str(data), "--check", str(folder)]
    assert run(lambda: main(check)) == 3
    said = f"between train and {held}, a negative that is a positive of another side"
    assert said in capsys.readouterr().err
