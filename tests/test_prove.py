"""Before and after training on an export: measured, refused where it would leak, not oversold."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from question_optimizer.errors import UserError
from question_optimizer.exports import prove, training
from question_optimizer.exports.proof_inputs import Corpus, questions_of
from question_optimizer.exports.proof_verdict import compared, verdict_of
from question_optimizer.exports.training import Found, Question
from question_optimizer.reports.proof import write_proof_report

DOCUMENTS = (
    *("harbour", "lighthouse", "monastery", "railway", "observatory", "vineyard"),
    *("castle", "aquarium", "brewery", "shipyard", "orchard", "theatre"),
)
TRAINED, HELD_OUT = DOCUMENTS[:6], DOCUMENTS[6:]
# An invented word stands for each topic: no model knows it before it was trained on it.
TOPICS = {
    "zorblat": "Bread is baked twice a week in a stone oven, with rye flour and sour dough.",
    "quimfret": "Bicycles are repaired in the shed, their chains oiled and their tyres patched.",
    "vuldrask": "Bees are kept on the roof, and honey is taken from their hives in July.",
    "hepplink": "Roof tiles that a storm has broken are replaced by a slater from the village.",
    "droxmire": "Visitors buy their tickets at the desk, and children under six pay nothing.",
}


@dataclass
class Settings:
    data_dir: Path
    embedding_model: str = "all-MiniLM-L6-v2"
    seed: int = 0


def chunk_id(document: str, word: str) -> str:
    return f"{document}-{word}"


def text_of(document: str, word: str) -> str:
    return f"At the {document}: {TOPICS[word]}"


def asked(document: str, word: str) -> str:
    return f"{word} at the {document}"


PLACES = [(document, word) for document in DOCUMENTS for word in TOPICS]
CORPUS = {chunk_id(*place): text_of(*place) for place in PLACES}


def pair(document: str, word: str, question: str | None = None) -> dict[str, str]:
    return {
        "anchor": question or asked(document, word),
        "positive": text_of(document, word),
        "question_id": f"q-{document}-{word}",
        "chunk_id": chunk_id(document, word),
        "document": document,
        "split_group": document,
        "model": "some-model",
    }


def gold_item(document: str, word: str, question: str | None = None) -> dict[str, Any]:
    return {
        "chunk_text": text_of(document, word),
        "persona_description": "Looks after old buildings.",
        "gold_question": question or asked(document, word),
        "chunk_id": chunk_id(document, word),
        "document_id": document,
        "split": "train" if document in TRAINED else "test",
    }


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@dataclass
class World:
    """An export and a gold set on disk, and the proof over them."""

    data_dir: Path

    @property
    def folder(self) -> Path:
        return self.data_dir / "exports"

    def export(self, train: Sequence[Mapping[str, str]], **others: Any) -> None:
        for split in ("train", "dev", "test"):
            rows = train if split == "train" else others.get(split, [])
            write_jsonl(self.folder / "pairs" / f"{split}.jsonl", rows)
        write_jsonl(
            self.folder / "beir" / "corpus.jsonl",
            [{"_id": name, "title": "", "text": text} for name, text in CORPUS.items()],
        )

    def gold(self, items: Sequence[Mapping[str, Any]]) -> None:
        (self.data_dir / "gold_dataset.json").write_text(json.dumps(items), encoding="utf-8")

    def prove(self, *flags: str, seed: int = 0) -> dict[str, Any]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--dry-run", action="store_true")
        prove.add_arguments(parser)
        args = parser.parse_args(["--prove", *flags])
        settings = Settings(self.data_dir, seed=seed)
        assert prove.run(self.folder, settings, args, report=write_proof_report) == 0
        path = self.folder / "proof.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Two test processes with two threads each spend most of their time waiting for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.export([pair(*place) for place in PLACES if place[0] in TRAINED])
    made.gold([gold_item(*place) for place in PLACES if place[0] in HELD_OUT])
    return made


QUICKLY = ("--prove-epochs", "2", "--prove-batch-size", "15", "--prove-learning-rate", "7e-4")


# ---------------------------------------------------------------------- figures


def test_the_questions_figures_have_the_evaluators_own_means() -> None:
    model = training.load("all-MiniLM-L6-v2")
    questions = [
        Question(f"q{n}", f"{word} {document}", frozenset(relevant), document)
        for n, (document, word) in enumerate(PLACES)
        for relevant in [{chunk_id(document, word), chunk_id(DOCUMENTS[n % 7], "zorblat")}]
    ]
    retrieved = training.evaluate(model, CORPUS, training.encoded(model, CORPUS), questions)
    found = [retrieved.found[question.id] for question in questions]
    assert 0.05 < retrieved.means["ndcg"] < 0.95  # neither all nor nothing, which any formula gives
    assert fmean(one.ndcg for one in found) == pytest.approx(retrieved.means["ndcg"], abs=1e-12)
    assert fmean(one.recall for one in found) == pytest.approx(retrieved.means["recall"], abs=1e-12)
    assert {one.rank for one in found} > {1, 2}


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ([1], (1.0, 1.0, 1)),
        ([3], (0.5, 1.0, 3)),
        ([11], (0.0, 0.0, 11)),
        ([], (0.0, 0.0, None)),
        ([1, 20], (1 / (1 + 1 / 1.584962500721156), 0.5, 1)),
    ],
)
def test_one_questions_figures(ranks: list[int], expected: tuple[float, float, int]) -> None:
    hits = [f"r{rank}" if rank in ranks else f"x{rank}" for rank in range(1, 31)]
    relevant = {f"r{rank}" for rank in ranks} or {"elsewhere"}
    assert training.found(hits, relevant) == pytest.approx(expected)


def served(*ndcg: float) -> dict[str, Found]:
    return {f"q{n}": Found(value, 1.0, 1) for n, value in enumerate(ndcg)}


def of_documents(*documents: str) -> list[Question]:
    return [Question(f"q{n}", "?", frozenset({"c"}), d) for n, d in enumerate(documents)]


@pytest.mark.parametrize(
    ("gains", "documents", "state", "ending"),
    [
        ([0.3, 0.4] * 10, list("abcdefghij") * 2, "improved", ": shown"),
        ([-0.3, -0.4] * 10, list("abcdefghij") * 2, "worse", ": shown to be worse"),
        ([0.5, -0.4] * 10, list("abcdefghij") * 2, "not shown", ": not shown"),
        ([0.0] * 20, list("abcdefghij") * 2, "not shown", ": not shown"),
        # All of the gain is one document's.
        ([0.4] * 15 + [0.0] * 5, ["a"] * 15 + list("bcdef"), "not shown", "−0.105 to +0.267"),
        ([0.3] * 5, list("abcde"), "not shown", ": not shown"),  # p of five wins: .0625
    ],
)
def test_no_more_is_claimed_than_the_intervals_show(
    gains: list[float], documents: list[str], state: str, ending: str
) -> None:
    questions = of_documents(*documents)
    before = served(*[0.5] * len(gains))
    after = served(*[0.5 + gain for gain in gains])
    verdict = verdict_of(compared(questions, before, after, seed=0))
    assert verdict["state"] == state
    assert verdict["sentence"].endswith(ending)


def test_chunks_with_the_same_text_are_searched_as_one() -> None:
    corpus = Corpus({"1": "The same  text.", "2": "The same text.", "3": "Another."})
    assert list(corpus.texts) == ["1", "3"]
    assert corpus.identical == 1
    assert corpus.place("2", "whatever") == "1"
    assert corpus.place("gone", "The same text.") == "1"
    assert corpus.place("gone", "Not there.") is None


def test_a_question_of_two_chunks_is_one_that_either_answers() -> None:
    found = questions_of([("Why?", "a", "A", ""), ("Why?", "b", "B", ""), ("How?", None, "C", "")])
    assert [(q.text, q.relevant, q.document) for q in found] == [("Why?", {"a", "b"}, "A")]


# ---------------------------------------------------------------------- the whole proof


def test_training_that_helps_is_shown_to_help(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    kept_in = str(world.data_dir / "m")
    proof = world.prove(*QUICKLY, "--prove-shares", "0.5,1", "--save-model", kept_in)
    human = proof["trainings"][-1]["sets"]["human"]
    assert proof["verdict"]["state"] == "improved"
    assert human["ndcg"]["low"] > 0.1
    assert human["questions"] == 30 == len(proof["rows"])
    assert human["ndcg"]["after"] == pytest.approx(
        fmean(row["after"]["ndcg"] for row in proof["rows"]), abs=1e-6
    )
    assert [(one["share"], one["pairs"]) for one in proof["trainings"]] == [(0.5, 15), (1.0, 30)]
    shown, said = capsys.readouterr()
    assert shown.splitlines()[-1].endswith(f"-> {world.folder / 'proof.html'}")
    assert proof["verdict"]["sentence"] in shown
    assert "trained on 30 pairs" in said

    kept = training.load(kept_in)
    again = training.evaluate(
        kept,
        CORPUS,
        training.encoded(kept, CORPUS),
        [Question("q", asked("castle", "zorblat"), frozenset({"castle-zorblat"}), "castle")],
    )
    row = next(row for row in proof["rows"] if row["question"] == asked("castle", "zorblat"))
    assert again.found["q"].rank == row["after"]["rank"]

    world.prove(*QUICKLY, "--prove-shares", "0.5,1")  # the same again: shown, not done again
    assert capsys.readouterr() == (shown, "")


def test_training_that_teaches_nothing_is_not_said_to_help(world: World) -> None:
    wrong = {"zorblat": "hepplink", "quimfret": "droxmire", "hepplink": "zorblat"}
    pairs = [
        pair(document, word, f"{wrong.get(word, 'nothing')} {number}")
        for number, (document, word) in enumerate(PLACES)
        if document in TRAINED
    ]
    world.export(pairs, test=[pair(*place) for place in PLACES[30:40]])
    proof = world.prove(seed=3)
    assert proof["verdict"]["state"] == "not shown"
    assert proof["verdict"]["sentence"].endswith(": not shown")
    assert proof["trainings"][0]["sets"]["test"]["questions"] == 10
    page = (world.folder / "proof.html").read_text(encoding="utf-8")
    assert "<h2>Not shown</h2>" in page and "Shown: these questions help" not in page

    again = World(world.data_dir / "again")
    again.export(pairs, test=[pair(*place) for place in PLACES[30:40]])
    again.gold([gold_item(*place) for place in PLACES if place[0] in HELD_OUT])
    assert again.prove(seed=3) == proof


def test_what_a_proof_would_take_is_told_without_one(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.prove("--dry-run", "--prove-shares", "0.25,1", "--prove-batch-size", "8") == {}
    assert capsys.readouterr().out == (
        "dry run: 1 steps on 8 pairs, 4 steps on 30 pairs (batches of 8, 1 epochs); "
        "30 human questions; 60 chunks embedded 3 times\n"
    )


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("leaked", "named"),
    [
        (pair("castle", "droxmire"), "chunk castle-droxmire, which"),
        (pair("castle", "zorblat"), "document castle, which"),
        (
            {**pair("castle", "droxmire"), "chunk_id": "other", "document": "elsewhere"},
            "chunk other, the same text as chunk castle-droxmire",
        ),
    ],
)
def test_gold_among_the_training_pairs_is_refused(
    world: World, leaked: dict[str, str], named: str
) -> None:
    world.gold([gold_item("castle", "droxmire")])
    world.export([pair("harbour", "zorblat"), leaked])
    with pytest.raises(UserError, match=named) as caught:
        world.prove("--dry-run")
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_of_all_gold_items_those_trained_on_are_left_out(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.gold([gold_item(*place) for place in PLACES])
    world.prove("--dry-run", "--prove-on", "all")
    assert "30 human questions" in capsys.readouterr().out
    world.export([pair(*place) for place in PLACES[:5]])
    world.prove("--dry-run", "--prove-on", "all")
    assert "55 human questions" in capsys.readouterr().out


def test_without_enough_gold_nothing_is_proved(world: World) -> None:
    world.gold([gold_item("castle", word) for word in list(TOPICS)[:4]])
    with pytest.raises(UserError, match="4 questions to prove it with; at least 5") as caught:
        world.prove("--dry-run")
    assert caught.value.exit_code == 2
    lost = {"chunk_id": "gone", "chunk_text": "Not there."}
    world.gold([gold_item("castle", word) | lost for word in TOPICS])
    with pytest.raises(UserError, match=r"0 questions .* 5 not in the exported corpus"):
        world.prove("--dry-run")
    (world.data_dir / "gold_dataset.json").unlink()
    with pytest.raises(UserError, match=r"gold_dataset\.json: does not exist; run annotate_chunks"):
        world.prove("--dry-run")


def test_a_missing_library_is_named_with_what_brings_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"datasets is not .*'question-optimizer\[exports\]'"):
        world.prove()


def test_a_folder_that_holds_something_is_not_overwritten_by_a_model(world: World) -> None:
    with pytest.raises(UserError, match="is there already"):
        world.prove("--save-model", str(world.folder))


@pytest.mark.parametrize("given", ["", "0", "1.5", "-1,1", "nan", "half", "0.5,,1"])
def test_shares_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"as in 0\.25,0\.5,1"):
        prove.shares(given)


# ---------------------------------------------------------------------- the page


def test_a_hostile_question_stays_text_on_the_page(world: World) -> None:
    question = "<script>alert(1)</script>\x1b[31m"
    row = {"ndcg": 0.5, "recall": 1.0, "rank": 3}
    better = {"ndcg": 1.0, "recall": 1.0, "rank": 1}
    questions = of_documents(*"abcdef")
    found = compared(questions, served(*[0.5] * 6), served(*[0.6] * 6), seed=0)
    proof = {
        "model": "<b>m</b>",
        "rehearsal": {"questions": True, "gold": True},
        "counts": {
            "train_pairs": 3,
            "chunks": 60,
            "identical_chunks": 1,
            "gold_left_out": {"in the training pairs": 2},
        },
        "versions": {},
        "verdict": verdict_of(found, gold_items=12),
        "trainings": [{"share": 1, "pairs": 3, "steps": 1, "sets": {"human": found}}],
        "rows": [
            {
                "set": "human",
                "question": question,
                "document": "d",
                "source": "<i>",
                "before": row,
                "after": after,
            }
            for after in (row, better)
        ],
    }
    (world.folder / "proof.json").write_text(json.dumps(proof), encoding="utf-8")
    prove.files.write_meta(world.folder / "proof.json", phase="x", settings={}, inputs={})
    page = write_proof_report(world.folder).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;</p>" in page
    assert (
        "<script>alert" not in page
        and "\x1b" not in page
        and "<b>m" not in page
        and "<i>" not in page
    )
    assert "Rehearsal." in page and "2 gold questions left out: in the training pairs" in page
    assert page.index("✓ better, +0.500") < page.index("= the same")
