"""The gold set: any tool's three texts are enough, and what is wrong is named by entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from question_optimizer.errors import UserError
from question_optimizer.gold import GoldSet, read_gold


def entry(number: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "chunk_text": f"chunk {number}",
        "persona_description": "a persona",
        "gold_question": f"question {number}?",
        **more,
    }


@pytest.fixture
def gold(tmp_path: Path):
    def read(rows: Any) -> GoldSet:
        path = tmp_path / "gold_dataset.json"
        path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
        return read_gold(path)

    return read


def test_a_foreign_set_with_only_the_three_texts_fills_all_sides(gold) -> None:
    found = gold([entry(number) for number in range(10)])
    sides = [item.split for item in found.items]
    assert (sides.count("train"), sides.count("dev"), sides.count("test")) == (3, 3, 4)
    assert [item.gold_question for item in found.items] == [f"question {n}?" for n in range(10)]
    assert len({item.chunk_id for item in found.items}) == 10


def test_reading_a_foreign_set_again_gives_the_same_ids_and_sides(gold) -> None:
    rows = [entry(number) for number in range(10)]
    assert gold(rows).items == gold(rows).items
    by_question = {item.gold_question: item for item in gold(rows).items}
    for item in gold(list(reversed(rows))).items:  # known by its content, not by its place
        assert item == by_question[item.gold_question]


def test_a_foreign_set_with_documents_is_split_by_document(gold) -> None:
    found = gold([entry(number, document_id=f"d{number % 4}") for number in range(20)])
    for document in range(4):
        assert len({i.split for i in found.items if i.document_id == f"d{document}"}) == 1
    assert {item.split for item in found.items} == {"train", "dev", "test"}


def test_items_that_have_a_side_keep_it_and_their_document_follows(gold) -> None:
    rows = [entry(0, document_id="a", split="test"), entry(1, document_id="a")]
    rows += [entry(n, document_id=f"d{n}") for n in range(2, 8)]
    found = gold(rows)
    assert [item.split for item in found.items[:2]] == ["test", "test"]


def test_a_side_holds_its_items_in_file_order(gold) -> None:
    found = gold([entry(n, chunk_id=n, split=("train", "test")[n % 2]) for n in range(6)])
    assert [item.chunk_id for item in found.side("train")] == [0, 2, 4]
    assert [item.chunk_id for item in found.side("test")] == [1, 3, 5]


def test_an_empty_side_says_how_to_fill_it(gold) -> None:
    found = gold([entry(0, chunk_id=0, split="train"), entry(1, chunk_id=1, split="train")])
    with pytest.raises(UserError) as refusal:
        found.side("dev")
    assert str(refusal.value) == (
        f"{found.path}: no item in the dev split of 2; "
        "annotate chunks of more documents with annotate_chunks.py"
    )


CORRECT = "; correct it or rerun annotate_chunks.py"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"items": []}, ": must be a list of gold items; rerun annotate_chunks.py"),
        ([], ": holds no gold question yet; run annotate_chunks.py first"),
        ('[\n{"a": 1},', ":2: not JSON (Expecting value); rerun annotate_chunks.py"),
        (
            [entry(), {"chunk_text": "a", "gold_question": "q?"}],
            f": entry 2: no persona_description{CORRECT}",
        ),
        ([entry(), entry(), {}], f": entry 3: no chunk_text{CORRECT}"),
        (
            [entry(gold_question="")],
            f": entry 1: gold_question: String should have at least 1 character{CORRECT}",
        ),
        (
            [entry(split="validation")],
            f": entry 1: split: Input should be 'train', 'dev' or 'test'{CORRECT}",
        ),
        (
            [entry(query_format="prose")],
            ": entry 1: query_format: Value error, 'prose' is none of: formal question, keywords"
            + CORRECT,
        ),
        (["a question"], ": entry 1: record: Input should be a valid dictionary or instance"),
        (
            [entry(), entry(chunk_text="")],
            f": entry 2: chunk_text: String should have at least 1 character{CORRECT}",
        ),
    ],
)
def test_what_is_wrong_is_named_by_entry_and_field(gold, rows: Any, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        gold(rows)
    place = str(refusal.value).partition("gold_dataset.json")[2]
    assert place.startswith(message)
    assert refusal.value.exit_code == 2


def test_a_missing_gold_set_names_the_phase_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        read_gold(tmp_path / "gold_dataset.json")
    assert str(refusal.value) == (
        f"{tmp_path / 'gold_dataset.json'}: does not exist; run annotate_chunks.py first"
    )


def test_a_set_without_sides_keeps_a_chunk_on_one_side_and_its_sides_as_it_grows(
    tmp_path: Path,
) -> None:
    """Two questions a chunk, no ids, no documents: as another tool may write it."""

    def write(chunks: int) -> dict[str, set[str | None]]:
        rows = [
            {
                "chunk_text": f"chunk {number}",
                "persona_description": "who",
                "gold_question": f"question {k} on {number}?",
            }
            for number in range(chunks)
            for k in range(2)
        ]
        (tmp_path / "gold_dataset.json").write_text(json.dumps(rows), encoding="utf-8")
        sides: dict[str, set[str | None]] = {}
        for item in read_gold(tmp_path / "gold_dataset.json", keep_sides=True).items:
            sides.setdefault(item.chunk_text, set()).add(item.split)
        return sides

    before, after = write(20), write(30)
    assert all(len(sides) == 1 for sides in after.values())
    assert {text: after[text] for text in before} == before


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    row = {"chunk_text": "a \ud83d b", "persona_description": "p", "gold_question": "q \ud83d?"}
    (tmp_path / "gold_dataset.json").write_text(json.dumps([row]), encoding="utf-8")
    [item] = read_gold(tmp_path / "gold_dataset.json").items
    assert (item.chunk_text, item.gold_question) == ("a \ufffd b", "q \ufffd?")
