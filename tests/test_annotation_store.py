"""The event log below the session: several writers, undo, drafts, old versions, the export."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, clean_environment, tree_digest
from question_optimizer import files
from question_optimizer.annotation.figures import comparisons
from question_optimizer.annotation.gold_file import GoldFile
from question_optimizer.annotation.session import Refused, gold_item
from question_optimizer.annotation.session import Session as AnnotationSession
from question_optimizer.annotation.store import AnnotationStore
from question_optimizer.errors import UserError
from question_optimizer.records import Chunk, Decision, GoldItem, Persona
from test_annotation import (
    BUYER,
    SUGGESTED,
    TECHNICIAN,
    Gate,
    Keyboard,
    at_desk,
    card_of,
    chunks_of,
    in_lines,
    numbered,
    three,
)


def written(store: AnnotationStore, chunk: Chunk, question: str) -> None:
    """Record a question of one's own, without a session."""
    decision = Decision(chunk_id=chunk.chunk_id, action="write", gold_question=question)
    item = GoldItem(
        chunk_text=chunk.chunk_text,
        persona_description="p",
        gold_question=question,
        chunk_id=chunk.chunk_id,
        annotator=store.annotator,
        split_group=chunk.document,
    )
    store.record(chunk, decision, item)


def put(store: AnnotationStore, chunk: Chunk, action: str) -> None:
    """Record a decision that makes no question."""
    decision = Decision.model_validate({"chunk_id": chunk.chunk_id, "action": action})
    store.record(chunk, decision, None)


@pytest.fixture
def anna(tmp_path: Path) -> Iterator[AnnotationStore]:
    with AnnotationStore(tmp_path / "log", "anna") as store:
        yield store


@pytest.fixture
def bob(tmp_path: Path) -> Iterator[AnnotationStore]:
    with AnnotationStore(tmp_path / "log", "bob") as store:
        yield store


def questions(items: list[GoldItem]) -> list[tuple[object, str, str]]:
    return [(item.chunk_id, item.annotator, item.gold_question) for item in items]


# ---------------------------------------------------------------------- the log


def test_every_event_tells_time_active_seconds_old_and_new_value(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(2), annotator="anna") as session:
        card_of(session)
        session.skip("other")
        session.open(0)
        card_of(session)
        session.pick(1)
        first, second = [e for e in session.store.events() if e.kind == "decision"]
    assert first.data["old"] is None
    assert second.data["old"] == first.data["decision"]
    assert first.data["decision"]["reason"] == "other"
    for event in (first, second):
        assert event.annotator == "anna"
        assert event.active_seconds is not None
        assert event.at.endswith("+00:00")
        assert event.data["decision"]["persona_id"] == "tech"


def test_nothing_in_the_log_ever_changes(anna: AnnotationStore) -> None:
    """Whatever is done only adds events."""
    (chunk, other) = chunks_of(2)
    steps: list[Callable[[], object]] = [
        lambda: written(anna, chunk, "one?"),
        lambda: written(anna, chunk, "two?"),
        anna.undo,
        lambda: anna.choose_persona(0, "buyer", by="person"),
        lambda: anna.choose_persona(0, None, by="person"),
        lambda: anna.keep_suggestions(0, TECHNICIAN, ["a"], ["m"]),
        lambda: anna.mark_bad(0, "a", True),
        lambda: anna.mark_bad(0, "a", False),
        lambda: anna.keep_own_question(0, "own?"),
        lambda: put(anna, other, "flag"),
        anna.undo,
        anna.undo,
    ]
    log = anna.events()
    for step in steps:
        step()
        longer = anna.events()
        assert longer[: len(log)] == log
        assert len(longer) == len(log) + 1
        log = longer
    assert anna.undo() is None
    assert anna.events() == log


def test_a_store_opened_anew_knows_what_the_first_one_knows(
    anna: AnnotationStore, tmp_path: Path
) -> None:
    chunks = chunks_of(6)
    anna.assign_splits(chunks, expected=chunks, sample=chunks, seed=0)
    for chunk in chunks:
        written(anna, chunk, f"{chunk.chunk_id}?")
    anna.undo()
    put(anna, chunks[1], "skip")
    put(anna, chunks[2], "defer")
    anna.choose_persona(3, "buyer", by="person")
    anna.keep_suggestions(3, BUYER, ["a", "b"], ["m"])
    anna.mark_bad(3, "a", True)
    anna.keep_own_question(4, "own?")
    with AnnotationStore(tmp_path / "log", "anna") as again:
        assert again.gold() == anna.gold()
        assert again.decisions() == anna.decisions()
        assert again.history() == anna.history()
        assert again.skipped() == anna.skipped() == {"no reason": 1}
        assert again.persona_of(3) == ("buyer", "person")
        assert again.suggested(3, BUYER) == anna.suggested(3, BUYER)
        assert again.bad(3) == {"a"}
        assert again.own_question(4) == "own?"
        assert again.annotators == ["anna"]
        assert again.split_unit == "document"
        assert [again.side(f"d{n}") for n in range(4)] == [anna.side(f"d{n}") for n in range(4)]


# ---------------------------------------------------------------------- two annotators


def test_two_annotators_finish_one_sample_at_once(tmp_path: Path) -> None:
    chunks = chunks_of(10)
    gate = Gate(then=numbered)
    with (
        at_desk(tmp_path / "log", chunks, annotator="anna", suggester=gate) as first,
        at_desk(tmp_path / "log", chunks, annotator="bob", suggester=gate) as second,
    ):
        for _ in chunks:  # in turns
            assert card_of(first).chunk == card_of(second).chunk
            first.pick(1)
            second.write(f"bob {card_of(second).chunk.chunk_id}?")
        assert (first.current, second.current) == (None, None)
        stores = first.store, second.store
        for store in stores:
            store.refresh()
        for store in stores:
            assert store.annotators == ["anna", "bob"]
            assert len(store.gold("anna")) == len(store.gold("bob")) == 10
            assert {item.annotator for item in store.gold()} == {"anna"}
        assert stores[0].gold() == stores[1].gold()
        assert [i.split for i in stores[0].gold("anna")] == [i.split for i in stores[0].gold("bob")]
        split = [event.subject for event in stores[0].events() if event.kind == "split"]
        assert sorted(split) == ["d0", "d1", "d2", "d3"]


def test_many_decisions_from_two_threads_each_with_a_store_are_all_there(tmp_path: Path) -> None:
    chunks = chunks_of(40)

    def work(name: str) -> None:
        with AnnotationStore(tmp_path / "log", name) as store:
            store.assign_splits(chunks, expected=chunks, sample=chunks, seed=hash(name) % 7)
            for chunk in chunks:
                written(store, chunk, f"{name} {chunk.chunk_id}?")
                store.keep_suggestions(chunk.chunk_id, TECHNICIAN, [name], [])
            store.undo()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("anna", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with AnnotationStore(tmp_path / "log") as store:
        assert questions(store.gold("anna")) == [(n, "anna", f"anna {n}?") for n in range(39)]
        assert questions(store.gold("bob")) == [(n, "bob", f"bob {n}?") for n in range(39)]
        assert [item.chunk_id for item in store.gold()] == list(range(39))
        assert Counter(event.kind for event in store.events()) == {
            "split": 4,
            "decision": 80,
            "suggested": 80,
            "undo": 2,
        }
        assert all(len(store.suggested(n, TECHNICIAN)) == 2 for n in range(40))


def test_an_undo_takes_back_no_one_elses_decision(
    anna: AnnotationStore, bob: AnnotationStore
) -> None:
    one, two = chunks_of(2)
    written(anna, one, "anna 0?")
    written(bob, one, "bob 0?")
    written(anna, two, "anna 1?")
    written(bob, two, "bob 1?")
    undone = anna.undo()
    assert undone is not None
    assert undone.decision.gold_question == "anna 1?"
    bob.refresh()
    assert questions(bob.gold()) == [(0, "anna", "anna 0?"), (1, "bob", "bob 1?")]
    anna.undo()
    assert anna.undo() is None
    bob.refresh()
    assert questions(bob.gold()) == [(0, "bob", "bob 0?"), (1, "bob", "bob 1?")]
    assert (anna.annotators, bob.annotators) == (["bob"], ["bob"])
    assert bob.undo() is not None
    assert bob.decision(0) is not None
    assert bob.decision(1) is None


def test_the_gold_set_has_the_question_of_whoever_decided_first(
    anna: AnnotationStore, bob: AnnotationStore
) -> None:
    one, two, three_ = chunks_of(3)
    written(bob, one, "bob 0?")
    written(anna, one, "anna 0?")
    put(anna, two, "skip")
    written(bob, two, "bob 1?")
    written(anna, three_, "anna 2?")
    written(anna, three_, "anna 2, better?")
    for store in (anna, bob):
        store.refresh()
        assert questions(store.gold()) == [
            (0, "bob", "bob 0?"),
            (1, "bob", "bob 1?"),  # a skip is no question
            (2, "anna", "anna 2, better?"),
        ]
    assert questions(anna.gold("anna")) == [(0, "anna", "anna 0?"), (2, "anna", "anna 2, better?")]


@pytest.mark.parametrize("action", ["defer", "flag"])
def test_a_chunk_put_off_was_not_decided_first(
    anna: AnnotationStore, bob: AnnotationStore, action: str
) -> None:
    (chunk,) = chunks_of(1)
    put(anna, chunk, action)
    written(bob, chunk, "bob?")
    anna.refresh()
    before = anna.gold()
    assert questions(before) == [(0, "bob", "bob?")]
    written(anna, chunk, "anna?")
    assert anna.gold() == before


def test_splits_are_assigned_once_by_whoever_comes_first(
    anna: AnnotationStore, bob: AnnotationStore
) -> None:
    chunks = chunks_of(24, documents=12)
    anna.assign_splits(chunks[:12], expected=chunks[:12], sample=chunks, seed=1)
    sides = {f"d{n}": anna.side(f"d{n}") for n in range(12)}
    assert None not in sides.values()
    groups = bob.assign_splits(chunks, expected=chunks, sample=chunks[:2], seed=2)
    assert {f"d{n}": bob.side(f"d{n}") for n in range(12)} == sides
    assert groups == {str(chunk.chunk_id): chunk.document for chunk in chunks}
    assert bob.split_unit == "document"
    assert Counter(event.kind for event in bob.events()) == {"split": 12}


def test_suggestions_made_for_one_annotator_serve_the_other(tmp_path: Path) -> None:
    gate = Gate()
    with at_desk(tmp_path / "log", chunks_of(3), annotator="anna", suggester=gate) as session:
        first = card_of(session).suggestions
        for chunk in chunks_of(3):
            session.preparation.wait(chunk, 30)
    asked = len(gate.asked)
    with at_desk(tmp_path / "log", chunks_of(3), annotator="bob", suggester=gate) as session:
        assert card_of(session).suggestions == first
        for chunk in chunks_of(3):
            session.preparation.wait(chunk, 30)
    assert (asked, len(gate.asked)) == (3, 3)


def test_a_persona_chosen_by_one_person_is_not_the_others(
    anna: AnnotationStore, bob: AnnotationStore
) -> None:
    anna.choose_persona(0, "tech", by="similarity")
    anna.choose_persona(0, "buyer", by="person")
    bob.refresh()
    assert anna.persona_of(0) == ("buyer", "person")
    assert bob.persona_of(0) == ("tech", "similarity")
    assert bob.given_personas() == ["tech"]
    bob.choose_persona(0, None, by="person")
    anna.refresh()
    assert anna.persona_of(0) == ("buyer", "person")
    assert bob.persona_of(0) == (None, "person")


def test_a_persona_chosen_by_an_unnamed_person_is_not_the_others(tmp_path: Path) -> None:
    with (
        AnnotationStore(tmp_path / "log") as unnamed,
        AnnotationStore(tmp_path / "log", "anna") as anna,
    ):
        anna.choose_persona(0, "tech", by="similarity")
        unnamed.choose_persona(0, None, by="person")
        anna.refresh()
        assert anna.persona_of(0) == ("tech", "similarity")
        assert anna.given_personas() == ["tech"]
        assert unnamed.persona_of(0) == (None, "person")


def test_of_the_choices_for_everybody_the_first_stands_while_its_persona_is_there(
    anna: AnnotationStore, bob: AnnotationStore
) -> None:
    both = {"tech", "buyer"}
    anna.choose_persona(0, "tech", by="similarity")
    bob.choose_persona(0, "buyer", by="llm", known=both)
    bob.choose_persona(0, None, by="llm", known=both)
    anna.refresh()
    assert anna.persona_of(0) == bob.persona_of(0) == ("tech", "similarity")
    assert len([e for e in anna.events() if e.kind == "persona"]) == 1
    assert bob.persona_of(0, {"buyer"}) is None  # the technician has left the file
    bob.choose_persona(0, "buyer", by="llm", known={"buyer"})
    anna.refresh()
    assert anna.persona_of(0, {"buyer"}) == ("buyer", "llm")
    anna.choose_persona(1, None, by="llm", known=both)
    bob.choose_persona(1, "tech", by="similarity", known=both)
    assert bob.persona_of(1) == (None, "llm")  # none fits: that stands too
    bob.choose_persona(1, "tech", by="person")
    anna.refresh()
    assert (bob.persona_of(1), anna.persona_of(1)) == (("tech", "person"), (None, "llm"))


@pytest.mark.parametrize("what", ["suggestions", "persona"])
def test_a_pick_takes_what_was_shown_whatever_others_append_meanwhile(
    tmp_path: Path, bob: AnnotationStore, what: str
) -> None:
    """A refresh happens on any thread at any time, between what is shown and the key."""
    with at_desk(
        tmp_path / "log", chunks_of(1), annotator="anna", suggester=numbered, chooser=three()
    ) as session:
        shown = card_of(session).suggestions
        if what == "suggestions":
            bob.keep_suggestions(0, TECHNICIAN, [f"other {n}?" for n in range(7)], ["m"])
        else:
            bob.keep_suggestions(0, BUYER, ["other?"], ["m"])
            bob.choose_persona(0, "buyer", by="llm")
        session.store.refresh()
        session.pick(1)
        assert [item.gold_question for item in session.store.gold()] == shown[:1]


def test_a_choice_made_for_everybody_meanwhile_is_kept(
    tmp_path: Path, bob: AnnotationStore
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow(chunk: Chunk, candidates: Any) -> Persona:
        asked.set()
        assert answer.wait(30)
        return candidates[0]

    with at_desk(
        tmp_path / "log",
        chunks_of(1),
        annotator="anna",
        suggester=numbered,
        chooser=three(ask=slow),
    ) as session:
        assert asked.wait(30)
        bob.choose_persona(0, "buyer", by="llm")  # and is showing it
        answer.set()
        card_of(session)
        bob.refresh()
        assert bob.persona_of(0) == ("buyer", "llm")


def stressed(path: Path, read: Callable[[AnnotationStore], object]) -> None:
    """Decide, undo and let another annotator join while a second thread reads all the time."""
    failures: list[Exception] = []
    done = threading.Event()
    interval = sys.getswitchinterval()
    chunks = chunks_of(150)
    with AnnotationStore(path, "anna") as store, AnnotationStore(path, "bob") as other:

        def reading() -> None:
            try:
                while not done.is_set():
                    read(store)
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=reading)
        sys.setswitchinterval(1e-6)
        try:
            thread.start()
            for number, chunk in enumerate(chunks):
                written(store, chunk, "q?")
                if number % 3 == 0:
                    store.undo()
                    written(other, chunk, "q?")
                if failures:
                    break
        finally:
            done.set()
            thread.join(60)
            sys.setswitchinterval(interval)
    assert failures == []


def test_the_gold_set_can_be_read_while_another_thread_decides(tmp_path: Path) -> None:
    """As the thread that exports it does."""
    stressed(tmp_path / "log", lambda store: (store.gold(), store.annotators, store.skipped()))


# ---------------------------------------------------------------------- undo


@pytest.mark.parametrize("last", ["defer", "flag", "skip"])
def test_undoing_a_second_thought_brings_the_question_back(
    anna: AnnotationStore, last: str
) -> None:
    (chunk,) = chunks_of(1)
    written(anna, chunk, "first?")
    put(anna, chunk, last)
    assert anna.gold() == []
    undone = anna.undo()
    assert undone is not None
    assert undone.decision.action == last
    assert questions(anna.gold()) == [(0, "anna", "first?")]
    assert anna.skipped() == {}


def test_undo_across_stores_and_annotators_in_any_order(tmp_path: Path) -> None:
    """Against a model: each annotator's decisions are a pile, and gold is what lies on top."""
    import random

    chance = random.Random(4)
    chunks = chunks_of(5)
    piles: dict[str, list[tuple[int, str]]] = {"anna": [], "bob": []}
    for step in range(120):
        name = chance.choice(["anna", "bob"])
        with AnnotationStore(tmp_path / "log", name) as store:
            if chance.random() < 0.45:
                undone = store.undo()
                expected = piles[name].pop() if piles[name] else None
                assert expected == (
                    undone and (undone.decision.chunk_id, undone.decision.gold_question)
                )
            else:
                chunk = chance.choice(chunks)
                written(store, chunk, f"{step}?")
                piles[name].append((int(chunk.chunk_id), f"{step}?"))
            for annotator, pile in piles.items():
                gold = {item.chunk_id: item.gold_question for item in store.gold(annotator)}
                assert gold == dict(pile)
                assert [e.decision.gold_question for e in store.history(annotator)] == [
                    question for _, question in pile
                ]
    with AnnotationStore(tmp_path / "log") as store:
        assert len([e for e in store.events() if e.kind != "undo"]) > 50


def test_undo_of_a_repeat_leaves_the_decision(anna: AnnotationStore) -> None:
    (chunk,) = chunks_of(1)
    written(anna, chunk, "first?")
    again = Decision(chunk_id=0, action="skip", reason="other")
    anna.record(chunk, again, None, repeat=True)
    assert anna.repeats()["0"].decision == again
    assert questions(anna.gold()) == [(0, "anna", "first?")]
    assert anna.skipped() == {}
    undone = anna.undo()
    assert undone is not None
    assert undone.kind == "repeat"
    assert anna.repeats() == {}
    assert anna.events()[-1].data["new"] is None
    assert questions(anna.gold()) == [(0, "anna", "first?")]
    anna.undo()
    assert anna.gold() == []


def test_a_chunk_decided_again_after_an_undo_counts_from_then(
    anna: AnnotationStore, bob: AnnotationStore
) -> None:
    (chunk,) = chunks_of(1)
    written(anna, chunk, "anna?")
    written(bob, chunk, "bob?")
    anna.undo()
    written(anna, chunk, "anna again?")
    assert questions(anna.gold()) == [(0, "bob", "bob?")]


# ---------------------------------------------------------------------- drafts


def test_drafts_are_each_annotators_and_each_chunks_own(
    anna: AnnotationStore, bob: AnnotationStore, tmp_path: Path
) -> None:
    anna.keep_draft(0, "half")
    anna.keep_draft(0, "half a question")
    anna.keep_draft(1, "other")
    assert (bob.draft(0), anna.draft(0)) == ("", "half a question")
    with AnnotationStore(tmp_path / "log", "anna") as again:
        assert [again.draft(0), again.draft(1), again.draft(2)] == ["half a question", "other", ""]
    written(bob, chunks_of(1)[0], "bob?")
    assert anna.draft(0) == "half a question"
    written(anna, chunks_of(1)[0], "whole?")
    assert (anna.draft(0), anna.draft(1)) == ("", "other")
    anna.keep_draft(1, "")
    assert anna.draft(1) == ""
    assert all(event.kind == "decision" for event in anna.events())


def test_drafts_of_different_kinds_stand_side_by_side(anna: AnnotationStore) -> None:
    texts = {"write": "a", "flag": "b", "skip": "c", "edit one?": "d", "edit two?": "e"}
    for kind, typed in texts.items():
        anna.keep_draft(0, typed, kind)
    assert {kind: anna.draft(0, kind) for kind in texts} == texts
    assert anna.draft(0) == "a"
    anna.keep_draft(0, "", "flag")
    assert (anna.draft(0, "flag"), anna.draft(0, "skip")) == ("", "c")
    put(anna, chunks_of(1)[0], "defer")
    assert not any(anna.draft(0, kind) for kind in texts)


# ---------------------------------------------------------------------- beside suggestions


def test_who_saw_suggestions_is_never_forgotten(
    anna: AnnotationStore, bob: AnnotationStore, tmp_path: Path
) -> None:
    one, two = chunks_of(2)
    skip = Decision(chunk_id=0, action="skip", reason="other")
    anna.record(one, skip, None)
    assert not anna.saw_suggestions(0)
    anna.record(one, skip, None, saw=True)
    anna.record(two, skip.model_copy(update={"chunk_id": 1}), None, saw=True, repeat=True)
    anna.undo()
    anna.undo()
    anna.record(one, skip, None)
    bob.refresh()
    with AnnotationStore(tmp_path / "log", "anna") as again:
        for store in (anna, again):
            assert (store.saw_suggestions(0), store.saw_suggestions(1)) == (True, True)
    assert not bob.saw_suggestions(0)


def test_a_decision_before_suggestions_came_saw_none(tmp_path: Path) -> None:
    gate = Gate(TECHNICIAN)
    with at_desk(tmp_path / "log", chunks_of(2), suggester=gate) as session:
        assert gate.waiting.wait(30)
        session.write("Mine?")
        gate.open.set()
        card_of(session)
        session.skip("other")
        seen = [session.store.saw_suggestions(number) for number in (0, 1)]
    assert seen == [False, True]


# ---------------------------------------------------------------------- what came back


def test_what_came_back_is_compared_with_what_stood_then(anna: AnnotationStore) -> None:
    chunks = dict(zip("abcde", chunks_of(5), strict=True))

    def decide(name: str, action: str, *, repeat: bool = False) -> None:
        row = {"chunk_id": chunks[name].chunk_id, "action": action}
        anna.record(chunks[name], Decision.model_validate(row), None, repeat=repeat)

    for name in chunks:
        decide(name, "write")
    decide("a", "skip")  # second thoughts before it came back
    decide("a", "skip", repeat=True)
    decide("b", "write", repeat=True)
    decide("b", "skip")  # and after
    decide("c", "defer", repeat=True)
    decide("c", "skip")
    decide("c", "skip", repeat=True)  # came back twice, and was settled only then
    decide("d", "skip")
    decide("d", "write", repeat=True)  # the one that does not agree
    decide("e", "flag", repeat=True)  # not settled
    (own,) = comparisons(anna)
    assert (own.who, own.kept.n) == ("anna twice", 4)
    assert own.kept.raw.value == 0.75


# ---------------------------------------------------------------------- version 1

_V1 = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, at TEXT NOT NULL, kind TEXT NOT NULL,
    subject TEXT NOT NULL, data TEXT NOT NULL
);
PRAGMA journal_mode=WAL;
PRAGMA user_version=1
"""


def old_log(path: Path) -> None:
    """A log as version 1 wrote it: two questions, one of them second thoughts, and a skip."""
    connection = sqlite3.connect(path)
    connection.executescript(_V1)
    nothing = {
        "pick": None,
        "gold_question": None,
        "persona_id": None,
        "query_type": None,
        "query_format": None,
        "reason": None,
        "at": None,
    }

    def item(number: int, question: str, origin: str) -> dict[str, Any]:
        return {
            "chunk_text": f"Chunk {number} is about brakes.",
            "persona_description": "asks about brakes",
            "gold_question": question,
            "chunk_id": number,
            "document_id": f"d{number % 4}",
            "persona_id": "tech",
            "query_type": None,
            "query_format": None,
            "suggestions": SUGGESTED,
            "suggestions_shown": True,
            "suggested_by": ["model-a"],
            "origin": origin,
            "active_seconds": 12.3,
            "split_group": f"d{number % 4}",
        }

    pick = nothing | {"chunk_id": 0, "action": "pick", "pick": 2, "persona_id": "tech"}
    skip = nothing | {"chunk_id": 1, "action": "skip", "reason": "code only"}
    write = nothing | {"chunk_id": 0, "action": "write", "gold_question": "Better?"}
    last = nothing | {"chunk_id": 2, "action": "pick", "pick": 1, "persona_id": "tech"}
    rows = [
        ("split", f"d{n}", {"side": "train" if n else "test", "unit": "document"}, "")
        for n in range(4)
    ]
    rows += [
        ("decision", "0", {"decision": pick, "item": item(0, SUGGESTED[1], "picked")}, "t1"),
        ("decision", "1", {"decision": skip, "item": None}, "t2"),
        ("decision", "0", {"decision": write, "item": item(0, "Better?", "written")}, "t3"),
        ("decision", "2", {"decision": last, "item": item(2, SUGGESTED[0], "picked")}, "t4"),
    ]
    connection.executemany(
        "INSERT INTO events (at, kind, subject, data) VALUES (?, ?, ?, ?)",
        [(at, kind, subject, json.dumps(data)) for kind, subject, data, at in rows],
    )
    connection.commit()
    connection.close()


def test_a_log_of_version_1_is_taken_over_with_every_decision(tmp_path: Path) -> None:
    old_log(tmp_path / "log")
    with AnnotationStore(tmp_path / "log") as store:
        assert questions(store.gold()) == [(0, "", "Better?"), (2, "", SUGGESTED[0])]
        assert [item.split for item in store.gold()] == ["test", "train"]
        assert [item.active_seconds for item in store.gold()] == [12.3, 12.3]
        assert store.skipped() == {"code only": 1}
        assert store.annotators == [""]
        assert [event.at for event in store.events()] == [""] * 4 + ["t1", "t2", "t3", "t4"]
        assert {event.annotator for event in store.events()} == {""}
    version = sqlite3.connect(tmp_path / "log").execute("PRAGMA user_version").fetchone()
    assert version == (2,)
    before = tree_digest(tmp_path)
    AnnotationStore(tmp_path / "log").close()
    assert tree_digest(tmp_path) == before


def test_a_session_goes_on_and_undoes_in_a_log_of_version_1(tmp_path: Path) -> None:
    old_log(tmp_path / "log")
    with at_desk(tmp_path / "log", chunks_of(5)) as session:
        assert (session.progress.done, session.progress.left) == (3, 2)
        assert card_of(session).chunk.chunk_id == 3
        session.pick(3)
        actions = [session.undo().action for _ in range(4)]
        assert actions == ["pick", "pick", "write", "skip"]
        assert questions(session.store.gold()) == [(0, "", SUGGESTED[1])]
        session.keep_draft("half")
        assert [session.store.side(f"d{n}") for n in range(4)] == ["test"] + ["train"] * 3


def test_a_log_of_version_1_opened_by_several_at_once_is_taken_over_once(tmp_path: Path) -> None:
    old_log(tmp_path / "log")
    golds: list[int] = []

    def opening(name: str) -> None:
        with AnnotationStore(tmp_path / "log", name) as store:
            golds.append(len(store.gold()))

    threads = [threading.Thread(target=opening, args=(f"a{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert golds == [2] * 6


def test_a_log_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    AnnotationStore(tmp_path / "log").close()
    connection = sqlite3.connect(tmp_path / "log")
    connection.execute("PRAGMA user_version=3")
    connection.close()
    before = files.sha256(tmp_path / "log")
    with pytest.raises(UserError) as refusal:
        AnnotationStore(tmp_path / "log")
    assert str(refusal.value) == f"{tmp_path / 'log'}: version 3 is newer than the 2 known here"
    assert files.sha256(tmp_path / "log") == before


# ---------------------------------------------------------------------- the exported gold set


def gold_file(store: AnnotationStore, folder: Path) -> GoldFile:
    return GoldFile(store, folder / "gold_dataset.json", settings={"seed": 0}, inputs={})


def exported(folder: Path, name: str = "gold_dataset.json") -> list[str]:
    return [item["gold_question"] for item in json.loads((folder / name).read_text())]


def test_closing_writes_the_last_state_whatever_was_requested(
    anna: AnnotationStore, tmp_path: Path
) -> None:
    file = gold_file(anna, tmp_path)
    for chunk in chunks_of(30):
        written(anna, chunk, f"{chunk.chunk_id}?")
        file.request()
    gold = file.close()
    assert exported(tmp_path) == [item.gold_question for item in gold]
    assert exported(tmp_path) == [f"{n}?" for n in range(30)]
    meta = json.loads((tmp_path / "gold_dataset.json.meta.json").read_text())
    assert meta["counts"]["gold"] == 30
    assert meta["counts"]["origins"] == {"written": 30}
    assert meta["output"]["sha256"] == files.sha256(tmp_path / "gold_dataset.json")
    assert not list(tmp_path.glob(".*.tmp"))


class Counting(AnnotationStore):
    """Counts how often the gold set is put together, and can make that wait."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.times = 0
        self.started, self.go_on = threading.Event(), threading.Event()

    def gold(self, annotator: str | None = None) -> list[GoldItem]:
        self.times += 1
        self.started.set()
        assert self.go_on.wait(30)
        return super().gold(annotator)


def test_requests_during_an_export_make_one_more(tmp_path: Path) -> None:
    with Counting(tmp_path / "log") as store:
        file = gold_file(store, tmp_path)
        file.request()
        assert store.started.wait(30)
        for chunk in chunks_of(20):
            written(store, chunk, "q?")
            file.request()
        store.go_on.set()
        file.close()
        assert store.times <= 3  # the first, one for all others, the last
        assert len(exported(tmp_path)) == 20


def test_without_a_request_closing_writes_all_the_same(
    anna: AnnotationStore, tmp_path: Path
) -> None:
    written(anna, chunks_of(1)[0], "q?")
    assert len(gold_file(anna, tmp_path / "new").close()) == 1
    assert exported(tmp_path / "new") == ["q?"]


def test_several_annotators_get_a_set_each_beside_the_common_one(
    anna: AnnotationStore, bob: AnnotationStore, tmp_path: Path
) -> None:
    one, two = chunks_of(2)
    written(anna, one, "anna 0?")
    gold_file(anna, tmp_path).write()
    assert not list(tmp_path.glob("gold_dataset.anna*"))
    written(bob, one, "bob 0?")
    written(bob, two, "bob 1?")
    put(anna, two, "skip")
    gold_file(anna, tmp_path).write()
    assert exported(tmp_path) == ["anna 0?", "bob 1?"]
    assert exported(tmp_path, "gold_dataset.anna.json") == ["anna 0?"]
    assert exported(tmp_path, "gold_dataset.bob.json") == ["bob 0?", "bob 1?"]
    meta = json.loads((tmp_path / "gold_dataset.json.meta.json").read_text())
    assert meta["counts"]["annotators"] == {"anna": 1, "bob": 1}
    own = json.loads((tmp_path / "gold_dataset.anna.json.meta.json").read_text())
    assert own["counts"]["skipped"] == {"no reason": 1}


@pytest.mark.parametrize(
    ("first", "second"),
    [("json.meta", "bob"), ("a.b", "a-b"), ("anna", "anna.json"), ("", "json")],
)
def test_no_annotators_set_overwrites_another_file(tmp_path: Path, first: str, second: str) -> None:
    chunk, other = chunks_of(2)
    with (
        AnnotationStore(tmp_path / "log", first) as one,
        AnnotationStore(tmp_path / "log", second) as two,
    ):
        written(one, chunk, "one?")
        written(two, other, "two?")
        gold_file(one, tmp_path).write()
    meta = json.loads((tmp_path / "gold_dataset.json.meta.json").read_text())
    assert meta["counts"]["gold"] == 2
    assert exported(tmp_path) == ["one?", "two?"]
    for name, question in ((first, "one?"), (second, "two?")):
        file = f"gold_dataset.{(name or 'unnamed').replace('.', '%2E')}.json"
        assert exported(tmp_path, file) == [question]
        own = json.loads((tmp_path / f"{file}.meta.json").read_text())
        assert own["counts"]["annotators"] == {name: 1}


def test_an_export_that_fails_is_told_and_the_next_one_is_tried(
    anna: AnnotationStore, tmp_path: Path
) -> None:
    path = tmp_path / "gold_dataset.json"
    path.mkdir()
    (path / "in the way").touch()
    file = gold_file(anna, tmp_path)
    written(anna, chunks_of(1)[0], "q?")
    file.request()
    wait_for(lambda: file.problem)
    assert file.problem.startswith(f"{path}: cannot be written (")
    assert file.problem.endswith("; the log has every decision")
    with pytest.raises(UserError, match="cannot be written"):
        file.close()
    (path / "in the way").unlink()
    path.rmdir()
    file = gold_file(anna, tmp_path)
    file.request()
    wait_for(path.is_file)
    assert (len(file.close()), file.problem) == (1, "")


def wait_for(there: Callable[[], object]) -> None:
    """Wait until `there` is true, at most ten seconds."""
    turn = threading.Event()
    for _ in range(1000):
        if there():
            return
        turn.wait(0.01)
    raise AssertionError("it never came")


@pytest.mark.parametrize("trouble", ["lock", "folder"])
def test_an_export_into_a_folder_that_cannot_be_written_is_one_line(
    anna: AnnotationStore, tmp_path: Path, trouble: str
) -> None:
    folder = tmp_path / "out"
    if trouble == "lock":  # opening it fails, as in a folder of somebody else's
        folder.mkdir()
        (folder / "gold_dataset.json.lock").mkdir()
    else:
        folder.write_text("a file")
    with pytest.raises(UserError):
        gold_file(anna, folder).write()


def test_whoever_exports_last_leaves_the_newest_state(tmp_path: Path) -> None:
    """Two who decide and export in turns, without looking at each other's decisions."""
    chunks = chunks_of(30)

    def work(name: str) -> None:
        with AnnotationStore(tmp_path / "log", name) as store:
            file = gold_file(store, tmp_path)
            for chunk in chunks[:15] if name == "anna" else chunks[15:]:
                written(store, chunk, f"{chunk.chunk_id}?")
                file.request()
            file.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("anna", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(exported(tmp_path)) == sorted(f"{n}?" for n in range(30))
    assert len(exported(tmp_path, "gold_dataset.anna.json")) == 15
    assert len(exported(tmp_path, "gold_dataset.bob.json")) == 15


_EXPORTS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import test_annotation_store as t
folder, name = Path(sys.argv[1]), sys.argv[2]
with t.AnnotationStore(folder / "log", name) as store:
    file = t.gold_file(store, folder)
    sys.stdin.readline()
    for chunk in t.chunks_of(25):
        t.written(store, chunk, f"{name} {chunk.chunk_id}?")
        file.request()
    file.close()
"""


def test_two_processes_that_export_leave_the_newest_state(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _EXPORTS, str(tmp_path), name, str(ROOT / "tests")],
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("anna", "bob")
    ]
    try:
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in running:
            _, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, "")
    finally:
        for process in running:
            process.kill()
    with AnnotationStore(tmp_path / "log") as store:
        assert json.loads((tmp_path / "gold_dataset.json").read_text()) == [
            item.model_dump(mode="json") for item in store.gold()
        ]
        assert len(store.gold()) == len(store.gold("anna")) == len(store.gold("bob")) == 25
        for name in ("anna", "bob"):
            questions_ = exported(tmp_path, f"gold_dataset.{name}.json")
            assert questions_ == [f"{name} {n}?" for n in range(25)]


# ---------------------------------------------------------------------- a session over the store


def test_the_gold_file_follows_a_session(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "log") as log:
        file = gold_file(log, tmp_path)
        with at_desk(tmp_path / "log", chunks_of(4), saved=file.request) as session:
            in_lines(session, Keyboard("1", "s 1", "2", "u", "q"))
        file.close()
    assert exported(tmp_path) == [SUGGESTED[0]]


def test_a_decision_that_names_no_suggestion_makes_no_item(tmp_path: Path) -> None:
    with at_desk(tmp_path / "log", chunks_of(1)) as session:
        card = card_of(session)
        for row, message in (
            ({"action": "pick", "pick": 4}, "picks suggestion 4 of 3"),
            ({"action": "write", "gold_question": " \x1b[0m "}, "write without gold_question"),
        ):
            decision = Decision.model_validate({"chunk_id": 0, **row})
            with pytest.raises(Refused, match=message):
                gold_item(card, decision, group="d0")
        assert isinstance(session, AnnotationSession)
        assert session.store.history() == []
