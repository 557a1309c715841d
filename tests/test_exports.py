"""What is exported, on which side of the split it goes, and what is no negative of a question."""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from conftest import COLLECTION, SAMPLE, tree_digest
from export_corpus import (
    ListedStore,
    Passage,
    asked,
    documents,
    prose,
    question,
    sample_results,
    write_ledger,
)
from export_questions import SUMMARY, main
from question_optimizer import duplicates
from question_optimizer.cli import run
from question_optimizer.embedding import embedder_of
from question_optimizer.errors import UserError
from question_optimizer.exports.dataset import choose, fill, holds_question, results_of
from question_optimizer.exports.folders import recover, replaced
from question_optimizer.exports.likeness import alike_pairs, groups_of
from question_optimizer.exports.negatives import mine
from question_optimizer.exports.splitting import DEFAULT_SHARES, Division, Kept, divide, read_kept
from question_optimizer.exports.workspace import Workspace
from question_optimizer.generation.corpus_index import open_index, read_store
from question_optimizer.generation.ledger_records import Result
from question_optimizer.records import GoldItem, Split
from question_optimizer.words import LOOKED_AT

LOGBOOKS = "Why does the harbour master of Altona keep two logbooks?"


@dataclass
class Drawn:
    """A workspace after the split, with what was left out of it."""

    work: Workspace
    division: Division
    left_out: Counter[str]

    def sides(self, column: str) -> dict[str, set[str]]:
        """{value of a chunk's column: the sides on which questions about it are}."""
        found: dict[str, set[str]] = defaultdict(set)
        for value, side in self.work.ask(
            f"SELECT c.{column}, q.side FROM questions AS q JOIN chunks AS c ON c.number=q.chunk "
            "WHERE q.side IS NOT NULL"
        ):
            found[value].add(side)
        return dict(found)


@pytest.fixture
def drawn(tmp_path: Path) -> Any:
    """Fills a workspace with passages and results, and splits it."""
    opened: list[Workspace] = []

    def draw(
        passages: Sequence[Passage],
        results: Iterable[Result] | None = None,
        gold: Sequence[GoldItem] = (),
        *,
        kept: Kept | None = None,
        shares: dict[Split, float] = DEFAULT_SHARES,
        seed: int = 0,
        checked: str | None = None,
        limit: int | None = None,
    ) -> Drawn:
        folder = tmp_path / f"work-{len(opened)}"
        folder.mkdir()
        work = Workspace(folder)
        opened.append(work)
        left_out = fill(
            work,
            map(asked, passages) if results is None else results,
            ListedStore(passages),
            checked=checked,
            text_key=None,
            limit=limit,
            seed=seed,
        )
        division = divide(work, gold, shares=shares, seed=seed, kept=kept or Kept())
        return Drawn(work, division, left_out + division.left_out)

    yield draw
    for work in opened:
        work.close()


def gold_item(passage: Passage, split: Split, **other: Any) -> GoldItem:
    fields = {
        "chunk_text": passage.text,
        "persona_description": "",
        "gold_question": question(("gold", passage.id)),
        "chunk_id": passage.id,
        "document_id": passage.document,
        "split": split,
    }
    return GoldItem(**{**fields, **other})


# ---------------------------------------------------------------------- likeness


def test_texts_alike_are_those_that_the_gates_name(tmp_path: Path) -> None:
    rng = random.Random(1)
    texts = [question(n) for n in range(120)]
    texts += [text.replace(rng.choice(text), "x", 2) for text in texts[:60]] + texts[:3] + ["", "?"]
    exact = {(i, j) for i, j, _ in duplicates.near_duplicates(texts)}
    assert len(exact) > 30
    repeats = {180, 181, 182}  # of 0, 1 and 2, and compared with these only
    found = set(alike_pairs(texts, tmp_path, lambda i, j: True))
    assert found == {pair for pair in exact if pair[1] not in repeats or pair[1] - pair[0] == 180}
    groups = groups_of(texts, tmp_path)
    assert all(groups.of(i) == groups.of(j) for i, j in exact)
    assert all(groups.of(n) == n for n in range(len(texts)) if n not in {j for _, j in exact})


def test_a_chunk_is_compared_to_its_end_unlike_a_question(tmp_path: Path) -> None:
    start = prose("start", 40)
    texts = [start + prose("one", 60), start + prose("other", 60), start + prose("one", 60) + " x"]
    assert len(start) > LOOKED_AT
    assert list(alike_pairs(texts, tmp_path, lambda i, j: True)) == [(0, 2)]


# ---------------------------------------------------------------------- what goes in


def test_only_checked_questions_without_findings_on_unchanged_chunks_go_in(drawn: Any) -> None:
    passages = documents(6, 3)
    fit, found, off, gone, changed, inside = passages[:6]
    label = f"generated_query: {question('x')} {inside.text}"
    passages[5] = inside = replace(inside, text=label)
    results = [
        asked(fit),
        asked(found, checked="record", findings=(("copied", "as it is"),)),
        asked(off, checked="off"),
        asked(replace(gone, id="gone")),
        asked(changed, text_sha256="0" * 64),
        asked(inside, question("x")),
        *map(asked, passages[6:]),
    ]
    one = drawn(passages, results)
    reasons = ("findings", "unchecked", "chunk_gone", "text_changed", "question_in_text")
    assert one.left_out == Counter(dict.fromkeys(reasons, 1))
    assert sum(one.work.sizes().values()) == 13
    assert drawn(passages, results, checked="evaluation").left_out["unchecked"] == 18
    everything = drawn(passages, results, checked="any")
    assert not {"findings", "unchecked"} & everything.left_out.keys()
    assert sum(everything.work.sizes().values()) == 15


def test_keywords_may_stand_in_a_text_and_a_whole_question_may_not() -> None:
    text = "To checkpoint the WAL file, call it. What does a checkpoint do to the WAL file?"
    assert not holds_question(text, "WAL file")
    assert holds_question(text, "what does a checkpoint do  to the WAL file")
    assert holds_question("generated_query: WAL file\n" + text, "WAL file")


def test_a_larger_limit_keeps_what_a_smaller_one_chose(drawn: Any) -> None:
    def chosen(limit: int, seed: int = 0) -> set[str]:
        work = drawn(documents(10), limit=limit, seed=seed).work
        return {row[0] for row in work.ask("SELECT id FROM questions")}

    assert len(chosen(8)) == 8
    assert chosen(8) < chosen(20) and chosen(8) != chosen(8, seed=1)
    assert drawn(documents(10), limit=20).left_out == {"beyond_limit": 30}


# ---------------------------------------------------------------------- sides


def test_whole_documents_go_to_a_side_and_the_shares_are_met(drawn: Any) -> None:
    one = drawn(documents(40))
    assert all(len(sides) == 1 for sides in one.sides("document").values())
    assert one.work.sizes() == {"train": 160, "dev": 20, "test": 20}
    assert drawn(documents(40)).division.kept == one.division.kept
    assert drawn(documents(40), seed=1).division.kept != one.division.kept


def test_large_documents_go_to_every_side(drawn: Any) -> None:
    passages = [
        Passage(f"{d}-{c}", f"document {d}", prose((d, c), 1))
        for d in range(30)
        for c in range(10 if d < 10 else 1)
    ]
    held_out = Counter[str]()
    for seed in range(6):
        sides = drawn(passages, seed=seed).division.kept.sides
        held_out.update(d for d, side in sides.items() if side != "train")
    assert sum(held_out[f"document {d}"] for d in range(10)) > 4


def test_an_assignment_never_moves_when_more_comes(drawn: Any) -> None:
    few = drawn(documents(12)).division.kept
    more = drawn(documents(40), kept=few).division.kept
    assert len(more.sides) == 40
    assert {document: more.sides[document] for document in few.sides} == few.sides
    assert few != Kept() and len(few.sides) == 12, "what was kept is not changed in place"


def test_documents_that_share_a_text_or_a_question_stay_together(drawn: Any) -> None:
    for seed in range(6):
        passages = documents(12)
        text = prose("shared", 6)
        passages[0].text = passages[50].text = text
        passages[5].text, passages[55].text = text[:-30] + "another end.", prose("other")
        results = [asked(passage) for passage in passages]
        results[20] = asked(
            passages[20], "Why does the harbour master of Altona keep two logbooks?"
        )
        results[45] = asked(passages[45], f"{LOGBOOKS} Now?")
        sides = drawn(passages, results, seed=seed).division.kept.sides
        assert sides["document 000"] == sides["document 010"] == sides["document 001"]
        assert sides["document 004"] == sides["document 009"]


def test_a_text_of_many_documents_ties_none_and_stays_on_one_side(drawn: Any) -> None:
    passages = documents(20)
    for passage in passages[::5]:
        passage.text = "Licensed under the terms that are named in the annex."
    one = drawn(passages)
    assert one.sides("text")[passages[0].text] == {"train"}
    assert {*one.division.kept.sides.values()} == {"train", "dev", "test"}
    assert one.left_out == {"alike_elsewhere": 4}


def test_what_was_tied_too_late_is_left_out_and_not_moved(drawn: Any) -> None:
    kept = drawn(documents(12)).division.kept
    here = next(n for n in range(12) if kept.sides[f"document {n:03}"] == "train")
    there = next(n for n in range(12) if kept.sides[f"document {n:03}"] == "test")
    passages = documents(12)
    passages[5 * here].text = passages[5 * there].text
    later = drawn(passages, kept=kept)
    assert later.division.kept.sides == kept.sides
    assert later.left_out == {"alike_elsewhere": 1}
    assert len(later.sides("text")[passages[5 * there].text]) == 1


def test_gold_test_documents_are_never_trained_on_nor_its_train_documents_tested(
    drawn: Any,
) -> None:
    passages = documents(10)
    splits: list[Split] = ["test", "dev", "train"]
    gold = [gold_item(passages[5 * n], splits[n // 3]) for n in range(9)]
    sides = drawn(passages, gold=gold).division.kept.sides
    assert {sides[f"document {n:03}"] for n in range(6)} <= {"dev", "test"}
    assert {sides[f"document {n:03}"] for n in range(6, 9)} <= {"train", "dev"}


def test_a_gold_test_text_is_known_again_under_another_id(drawn: Any) -> None:
    passages = documents(10)
    for seed in range(5):
        stranger = gold_item(passages[7], "test", chunk_id="other", document_id="renamed")
        kept = drawn(passages, gold=[stranger], seed=seed).division.kept
        assert kept.sides["document 001"] != "train"


def test_a_question_of_the_gold_test_set_is_not_trained_on(drawn: Any) -> None:
    passages = documents(10)
    passages.append(Passage("far", "far", prose("far")))
    same = gold_item(Passage("?", "elsewhere", prose("elsewhere")), "test")
    repeated = [asked(passages[5 * n], same.gold_question) for n in range(8)]
    one = drawn(passages, [*map(asked, passages), *(replace(r, slot=1) for r in repeated)], [same])
    sides = {row[0] for row in one.work.ask(_SIDE_OF, same.gold_question)}
    assert sides <= {"dev", "test", None} and one.left_out["gold_held"] > 0


_SIDE_OF = "SELECT side FROM questions WHERE question=?"


def test_a_document_trained_on_before_the_gold_set_held_it_out_is_left_out(drawn: Any) -> None:
    passages = documents(10)
    kept = drawn(passages).division.kept
    trained = next(p for p in passages if kept.sides[p.document] == "train")
    later = drawn(passages, gold=[gold_item(trained, "test")], kept=kept)
    assert later.division.kept.sides == kept.sides
    assert later.left_out == {"gold_held": 5}
    assert trained.document not in later.sides("document")


def test_one_document_is_split_by_section(drawn: Any) -> None:
    passages = [
        Passage(f"{s}-{c}", "manual", prose((s, c)), [f"chapter {s // 4}", f"section {s}"])
        for s in range(20)
        for c in range(3)
    ]
    one = drawn(passages)
    assert one.division.kept.unit == "section"
    assert all(len(sides) == 1 for sides in one.sides("place").values())
    assert one.work.sizes() == {"train": 48, "dev": 6, "test": 6}
    plain = drawn([replace(passage, headings=[]) for passage in passages])
    assert plain.division.kept.unit == "chunk"


def test_a_side_without_a_share_gets_nothing(drawn: Any) -> None:
    passages = documents(10)
    gold = [gold_item(passages[0], "test")]
    one = drawn(passages, gold=gold, shares={"train": 1, "dev": 0, "test": 0})
    assert one.work.sizes() == {"train": 45, "dev": 0, "test": 0}
    assert one.left_out == {"gold_held": 5}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "sides must be train, dev, test"),
        ('{"unit": "document", "sides": {"a": "valid"}}', "sides must be train, dev, test"),
        ('{"unit": "page", "sides": {}}', "unit must be document, section, chunk"),
    ],
)
def test_a_damaged_assignment_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(UserError, match=said):
        read_kept(tmp_path / "splits.json")


# ---------------------------------------------------------------------- negatives


def test_negatives_are_near_and_no_answers(drawn: Any, tmp_path: Path) -> None:
    """Vectors are chosen so that what must be passed over is nearer than what may be taken."""
    own = Passage("own", "a", prose("own"), ["one"], before="previous", after="next")
    never = [
        Passage("previous", "a", prose("previous"), ["two"]),
        Passage("next", "a", prose("next"), ["three"]),
        Passage("sibling", "a", prose("sibling"), ["one"]),
        Passage("copy", "a", own.text + " x", ["four"]),
        Passage("answer", "a", prose("answer"), ["five"]),
        Passage("too near", "a", prose("too near"), ["six"]),
    ]
    held = Passage("held", "held", prose("held"))
    fit = [Passage("first", "a", prose("first"), ["seven"]), Passage("free", "b", prose("free"))]
    nearness: dict[object, float] = {"own": 1.0, "too near": 0.96, "first": 0.9, "free": 0.8}
    passages = [
        own,
        *never,
        held,
        *fit,
        Passage("c", "c", prose("c")),
        Passage("d", "d", prose("d")),
    ]
    shown = {p.text: nearness.get(p.id, 0.94 if p in (*never, held) else 0.1) for p in passages}
    results = [asked(own, LOGBOOKS), asked(never[4], f"{LOGBOOKS} Now?")]
    results += [asked(passages[-2]), asked(passages[-1])]
    shares: dict[Split, float] = {"train": 1, "dev": 0, "test": 0}
    one = drawn(passages, results, [gold_item(held, "test")], shares=shares)

    def embed(texts: list[str]) -> list[list[float]]:
        cosines = [shown.get(text, 1.0) for text in texts]
        return [[cosine, (1 - cosine**2) ** 0.5] for cosine in cosines]

    embedder = embedder_of(embed)
    store = ListedStore(passages)
    index = open_index(tmp_path / "cache", "listed", lambda: read_store(store), embedder)
    complete = mine(one.work, one.division, index, embedder, 2)
    index.close()
    mined = one.work.ask(
        "SELECT c.id, ROUND(n.score, 2) FROM negatives AS n JOIN chunks AS c ON c.number=n.chunk "
        "JOIN questions AS q ON q.number=n.question WHERE q.id='own-0' ORDER BY n.place"
    )
    assert list(mined) == [("first", 0.9), ("free", 0.8)]
    assert complete == 2, "the questions on c and d are searched for in vain: all is nearer"


def test_negatives_are_looked_for_deeper_where_too_many_are_nearer(
    drawn: Any, tmp_path: Path
) -> None:
    own = Passage("own", "a", prose("own"))
    nearer = [Passage(f"near {n}", f"near {n}", prose(("near", n), 1)) for n in range(150)]
    farther = Passage("far", "far", prose("far"))
    passages = [own, *nearer, farther]
    shares: dict[Split, float] = {"train": 1, "dev": 0, "test": 0}
    one = drawn(passages, [asked(own)], shares=shares)

    def embed(texts: list[str]) -> list[list[float]]:
        cosines = [{own.text: 0.9, farther.text: 0.1}.get(text, 1.0) for text in texts]
        return [[cosine, (1 - cosine**2) ** 0.5] for cosine in cosines]

    embedder, store = embedder_of(embed), ListedStore(passages)
    told: list[int] = []
    index = open_index(tmp_path / "cache", "listed", lambda: read_store(store), embedder)
    complete = mine(one.work, one.division, index, embedder, 1, advance=lambda: told.append(1))
    index.close()
    mined = one.work.ask("SELECT c.id FROM negatives AS n JOIN chunks AS c ON c.number=n.chunk")
    assert (list(mined), complete, len(told)) == ([("far",)], 1, 1)


def test_a_text_that_another_side_asks_about_is_no_negative(drawn: Any, tmp_path: Path) -> None:
    """A licence stands in many documents and is asked about in one; gold holds out another text."""
    own, free = Passage("own", "a", prose("own")), Passage("free", "b", prose("free"))
    licence, held = prose("licence"), Passage("gone", "gone", prose("held"))
    copies = [Passage("copy", "a", licence), Passage("copy of gold's", "a", held.text)]
    tested = Passage("tested", "t", licence)
    passages = [own, free, *copies, tested]
    kept = Kept("document", {"a": "train", "t": "test"})
    results = [asked(own), asked(tested, LOGBOOKS)]
    one = drawn(passages, results, [gold_item(held, "test")], kept=kept)
    assert one.sides("id") == {"own": {"train"}, "tested": {"test"}}

    def embed(texts: list[str]) -> list[list[float]]:
        cosines = [{free.text: 0.1}.get(text, 0.5) for text in texts]
        cosines = [
            1.0 if text in (own.text, question(("own", 0))) else cosine
            for text, cosine in zip(texts, cosines, strict=True)
        ]
        return [[cosine, (1 - cosine**2) ** 0.5] for cosine in cosines]

    embedder, store = embedder_of(embed), ListedStore(passages)
    index = open_index(tmp_path / "cache", "listed", lambda: read_store(store), embedder)
    mine(one.work, one.division, index, embedder, 2)
    index.close()
    mined = one.work.ask(
        "SELECT c.id FROM negatives AS n JOIN chunks AS c ON c.number=n.chunk "
        "JOIN questions AS q ON q.number=n.question WHERE q.side='train'"
    )
    assert list(mined) == [("free",)]


# ---------------------------------------------------------------------- the folder


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "exports"
    for content in ("old", "new"):
        with replaced(place, finished_by="done") as folder:
            (folder / content).write_text(content)
            (folder / "done").write_text("")
    assert sorted(path.name for path in place.iterdir()) == ["done", "new"]
    before = tree_digest(place)
    with pytest.raises(ValueError), replaced(place, finished_by="done") as folder:
        (folder / "half").write_text("")
        raise ValueError
    assert tree_digest(place) == before and [p.name for p in tmp_path.iterdir()] == ["exports"]
    place.rename(tmp_path / ".exports.old")  # killed between the two renamings
    recover(place)
    assert tree_digest(place) == before and [p.name for p in tmp_path.iterdir()] == ["exports"]


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.odt").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"), replaced(tmp_path, finished_by="x"):
        pass
    assert (tmp_path / "thesis.odt").read_text() == "years of work"


# ---------------------------------------------------------------------- the script


def test_the_script_exports_counts_and_keeps_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = sample_results(SAMPLE / "small_sqlite", model="rehearsal")
    write_ledger(tmp_path, COLLECTION, results[::4])
    flags = ["--qdrant-path", str(SAMPLE / "small_sqlite"), "--data-dir", str(tmp_path)]
    flags += ["--format", "pairs,parquet"]
    assert main([*flags, "--dry-run", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["would_write"]["pairs"] == counted["sizes"]
    assert not (tmp_path / "exports").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["generation.sqlite"]

    assert main(flags) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    sizes = {split: counted["sizes"][split] for split in ("train", "dev", "test")}
    sides = ", ".join(f"{split} {count}" for split, count in sizes.items())
    note = "written by the rehearsal and not by a model"
    assert said == f"{sum(sizes.values())} questions ({sides}, {note}) -> {tmp_path}/exports"
    for split, count in sizes.items():
        lines = (tmp_path / "exports" / "pairs" / f"{split}.jsonl").read_text().splitlines()
        assert len(lines) == count > 0
    assert "Made in a rehearsal" in (tmp_path / "exports" / "README.md").read_text()
    meta = json.loads((tmp_path / "exports" / f"{SUMMARY}.meta.json").read_text())
    assert meta["rehearsal"] is True and meta["counts"] == sizes
    first = read_kept(tmp_path / "exports" / "splits.json").sides

    write_ledger(tmp_path, COLLECTION, results)
    assert main([*flags, "--format", "pairs"]) == 0
    later = read_kept(tmp_path / "exports" / "splits.json").sides
    assert first.items() <= later.items()
    assert not (tmp_path / "exports" / "parquet").exists(), "the folder is replaced as a whole"


def test_the_configuration_is_told_and_chosen_by_the_beginning_of_its_fingerprint(
    tmp_path: Path,
) -> None:
    path = tmp_path / "generation.sqlite"
    first = write_ledger(tmp_path, "listed", [asked(p) for p in documents(2)])
    second = write_ledger(
        tmp_path, "listed", [asked(documents(1)[0])], models=("\x1b[31mother\nmodel",)
    )
    write_ledger(tmp_path, "elsewhere", [asked(documents(1)[0])])
    latest = choose(path, "listed", None)
    assert [one.configuration for one in latest.chosen] == [second.configuration]
    exported, others = latest.told().splitlines()
    assert exported.startswith(
        f"exporting configuration {second.fingerprint[:8]} (1 question, pipeline aaaaaaaa, "
        "other model, last used 20"
    )
    assert others.startswith(f"not exported: {first.fingerprint[:8]} (10 questions, pipeline aaa")
    assert others.endswith(
        "; choose with --configuration, or take what stands: --configuration all"
    )
    chosen = choose(path, "listed", first.fingerprint[:4].upper())
    assert [one.configuration for one in chosen.chosen] == [first.configuration]
    assert [one.configuration for one in chosen.others] == [second.configuration]
    listed = f"choose one of: {second.fingerprint}, {first.fingerprint}"
    for prefix, what in (
        ("", "several configurations begin with ''"),
        ("not hex\x1b[0m", "no configuration begins with 'not hex'"),
    ):
        with pytest.raises(UserError) as refused:
            choose(path, "listed", prefix)
        assert refused.value.exit_code == 2
        assert str(refused.value) == f"{path}: {what}; {listed}"
    write_ledger(tmp_path, "listed", [], personas="c" * 16)
    assert choose(path, "listed", None) == latest, "what has no question is not the default"
    assert choose(path, "listed", "all").chosen == [*latest.chosen, *latest.others]


def test_the_script_says_in_one_line_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--qdrant-path", str(SAMPLE / "small_sqlite"), "--data-dir", str(tmp_path)]

    def said(*more: str) -> str:
        assert run(lambda: main([*flags, *more])) == 2
        return capsys.readouterr().err.splitlines()[-1].partition(": ")[2]

    assert said() == (
        f"{tmp_path}/generation.sqlite: does not exist; run optimized_question_generator.py first"
    )
    ledger = write_ledger(tmp_path, COLLECTION, [asked(Passage("gone", "d", "text"))])
    assert said("--configuration", "0" * 16).endswith(
        f"no configuration begins with '{'0' * 16}'; choose one of: {ledger.fingerprint}"
    )
    assert "no question to export (1 have a chunk that is no longer in" in said()
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "notes.txt").write_text("")
    assert "exports: holds other files and would be replaced" in said()
    with pytest.raises(SystemExit) as stopped:
        main([*flags, "--format", "csv"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("shares", ["80/20", "a/b/c", "0/0/0", "1/-1/1", "nan/1/1", "inf/1/1"])
def test_shares_that_are_none_are_refused(shares: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--shares", shares])
    assert "must be three shares such as 80/10/10" in capsys.readouterr().err


def test_all_configurations_give_of_each_chunk_what_stands_in_the_collection(
    tmp_path: Path,
) -> None:
    """And of a chunk whose question stands nowhere that of the configuration used last."""
    passages = documents(1)
    old, new, unwritten, anothers = (passage.id for passage in passages[:4])
    first = write_ledger(tmp_path, "listed", [asked(p) for p in passages[:3]])
    second = write_ledger(
        tmp_path,
        "listed",
        [asked(p, f"What of {p.id} anew?") for p in passages[:4]],
        models=("other",),
    )

    class Written(ListedStore):
        def payloads(self, ids: Any) -> Any:
            whose = {old: first.fingerprint, new: second.fingerprint, anothers: "f" * 16}
            for point_id, payload in super().payloads(ids):
                told = {"generated_query_provenance": {"configuration": whose.get(point_id)}}
                more = {"generated_query": "?", **told} if point_id in whose else {}
                yield point_id, {**payload, **more}

    path = tmp_path / "generation.sqlite"
    choice = choose(path, "listed", "all")
    assert choice.told().startswith("exporting configurations ") and "not exported" not in (
        choice.told()
    )
    found = {r.chunk_id: r.query for r in results_of(path, choice, Written(passages))}
    assert found == {
        old: asked(passages[0]).query,
        new: f"What of {new} anew?",
        unwritten: f"What of {unwritten} anew?",
    }


def test_the_cause_of_other_shares_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = sample_results(SAMPLE / "small_sqlite", model="rehearsal")
    write_ledger(tmp_path, COLLECTION, results[::8])
    flags = ["--qdrant-path", str(SAMPLE / "small_sqlite"), "--data-dir", str(tmp_path)]
    flags += ["--format", "pairs"]

    def causes(*more: object) -> str:
        assert main([*flags, *map(str, more)]) == 0
        lines = capsys.readouterr().err.splitlines()
        return next((line for line in lines if line.startswith("shares reached")), "")

    assert causes() == ""
    assert re.search(
        r"; ([1-9]\d*) of \1 documents stay where an earlier", causes("--shares", "1/1/1")
    )
    of_documents = {result.document: result.chunk_id for result in results[::8]}
    held = [Passage(chunk, document, prose(chunk)) for document, chunk in of_documents.items()][:15]
    items = [gold_item(passage, "test").model_dump(mode="json") for passage in held]
    (tmp_path / "gold_dataset.json").write_text(json.dumps(items))
    assert causes("--out", tmp_path / "anew").endswith(
        f"; 15 of {len(of_documents)} documents hold gold dev or test items and are not trained on"
    )
