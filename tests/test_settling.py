"""Finished questions held against the corpus: by batches, by policy, and the same after a kill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from generator_runs import text_of
from question_optimizer.errors import StopRun
from question_optimizer.generation.checks import question_findings, text_digest
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration, Refusal, Result
from question_optimizer.generation.repeats import QuestionIndex
from question_optimizer.generation.settling import Settled, fill, settle
from question_optimizer.records import PointId

ALIKE = "How often are the brake pads of the leading bogie looked at by hand in winter?"
OTHER = "What does the pantograph of a tram wear by when nobody greases it?"
BAD = "What does this section say about it?"


class Checked:
    """A ledger, an index of questions, and the texts of chunks."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ledger = Ledger(folder / "generation.sqlite", Configuration("units", "p", "q", ("m",)))
        self.index = QuestionIndex(folder / "questions.sqlite")
        self.read: list[PointId] = []

    def close(self) -> None:
        self.ledger.close()
        self.index.close()

    def texts_of(self, chunk_ids: Sequence[PointId]) -> dict[PointId, str]:
        self.read += chunk_ids
        return {chunk_id: text_of(int(chunk_id)) for chunk_id in chunk_ids}

    def settle(self, policy: str) -> Settled:
        return settle(self.ledger, policy, self.index, texts_of=self.texts_of)

    def states(self) -> dict[PointId, str]:
        return {result.chunk_id: result.state for result in self.ledger.results()}


@pytest.fixture
def its(tmp_path: Path) -> Iterator[Checked]:
    its = Checked(tmp_path)
    yield its
    its.close()


def done(number: int, query: str, **rest: Any) -> Result:
    given = {"state": "done", "attempts": 1, "query_format": "formal question", **rest}
    return Result(number, query=query, text_sha256=text_digest(text_of(number)), **given)


def test_a_question_that_passes_is_marked_with_the_policy(its: Checked) -> None:
    its.ledger.record([done(1, ALIKE), done(2, OTHER)])
    settled = its.settle("training")
    assert (settled.checked, settled.refused) == (2, {})
    assert {result.checked for result in its.ledger.results("done")} == {"training"}
    assert its.settle("training").checked == 0
    assert its.read == []


def test_the_later_of_two_that_are_alike_is_refused_and_kept(its: Checked) -> None:
    its.ledger.record([done(1, ALIKE), done(2, ALIKE.replace("winter", "Winter"))])
    settled = its.settle("training")
    assert settled.refused == {"near_duplicate": 1}
    assert its.states() == {1: "done", 2: "rejected"}
    (result,) = its.ledger.results("rejected")
    assert (result.query, result.gate, result.attempts) == (None, "near_duplicate", 1)
    (refused,) = its.ledger.refusals_of(2, 0)
    assert refused.query == ALIKE.replace("winter", "Winter")
    assert "alike to another question" in refused.reason


def test_where_nothing_is_refused_the_finding_stands_beside_the_question(its: Checked) -> None:
    its.ledger.record([done(1, ALIKE), done(2, ALIKE)])
    assert its.settle("record").refused == {}
    first, second = its.ledger.results("done")
    assert first.findings == ()
    assert [gate for gate, _ in second.findings] == ["near_duplicate"]
    its.settle("record")
    assert [r.findings for r in its.ledger.results("done")] == [(), second.findings]


def test_gates_that_are_off_mark_and_do_not_look(its: Checked) -> None:
    its.ledger.record([done(1, BAD), done(2, BAD)])
    its.settle("off")
    assert [(r.checked, r.findings) for r in its.ledger.results("done")] == [("off", ())] * 2


def test_what_was_never_looked_at_is_looked_at_with_its_text(its: Checked) -> None:
    its.ledger.record([done(1, BAD), done(2, OTHER)])
    its.settle("off")
    settled = its.settle("training")
    assert settled.refused == {"refers_outside": 1}
    assert its.read == [1, 2]
    assert its.states() == {1: "rejected", 2: "done"}


def test_what_was_recorded_is_refused_by_a_stricter_policy_without_its_text(
    its: Checked,
) -> None:
    findings = tuple(question_findings(done(1, BAD), text_of(1)))
    its.ledger.record([done(1, BAD, findings=findings), done(2, OTHER)])
    its.settle("record")
    assert its.settle("training").refused == {"refers_outside": 1}
    assert its.read == []
    assert its.states() == {1: "rejected", 2: "done"}


def test_a_kill_between_index_and_ledger_changes_nothing(its: Checked) -> None:
    """The index has the questions, the ledger does not know: none repeats itself."""
    its.ledger.record([done(1, ALIKE), done(2, ALIKE), done(3, OTHER)])
    rows = [
        (f"{its.ledger.fingerprint}:{n}/0", query, "")
        for n, query in ((1, ALIKE), (2, ALIKE), (3, OTHER))
    ]
    its.index.check_and_add(rows)
    assert its.settle("training").refused == {"near_duplicate": 1}
    assert its.states() == {1: "done", 2: "rejected", 3: "done"}


def test_a_ledger_that_fails_leaves_every_question_to_the_next_start(
    its: Checked, tmp_path: Path
) -> None:
    its.ledger.record([done(1, ALIKE), done(2, ALIKE)])
    its.ledger.close()
    with pytest.raises(StopRun):
        its.settle("training")
    its.ledger = Ledger(tmp_path / "generation.sqlite", its.ledger.configuration)
    assert its.settle("training").refused == {"near_duplicate": 1}
    assert its.states() == {1: "done", 2: "rejected"}


def test_a_question_that_came_in_the_place_of_a_refused_one_is_compared_anew(
    its: Checked,
) -> None:
    its.ledger.record([done(1, ALIKE), done(2, ALIKE)])
    its.settle("training")
    its.ledger.record([done(2, OTHER, attempts=2)])
    assert its.settle("training").refused == {}
    its.ledger.record([done(3, OTHER)])
    assert its.settle("training").refused == {"near_duplicate": 1}
    assert its.states() == {1: "done", 2: "done", 3: "rejected"}


def test_a_question_refused_for_its_own_fault_takes_no_other_with_it(its: Checked) -> None:
    """Two chunks got one bad question: each is refused for what it is."""
    found = (("refers_outside", "says 'this section'"),)
    its.ledger.record([done(1, BAD, findings=found), done(2, BAD, findings=found)])
    assert its.settle("training").refused == {"refers_outside": 2}
    its.ledger.record([done(3, BAD)])
    assert "near_duplicate" not in its.settle("training").refused


def test_a_question_that_is_refused_twice_is_kept_once(its: Checked) -> None:
    """Refused for training, taken back by a run that records, refused by the next for training."""
    found = (("refers_outside", "says 'this section'"),)
    its.ledger.record(
        [done(1, BAD, findings=found, attempts=3)],
        [
            (
                *(1, 0),
                Refusal(
                    BAD, "refers_outside", "says 'this section'", query_format="formal question"
                ),
            )
        ],
    )
    its.settle("record")
    its.settle("training")
    assert len(its.ledger.refusals_of(1, 0)) == 1


# ---------------------------------------------------------------------- other configurations


class Both:
    """Two configurations of a collection, as after an account was added, and one index."""

    def __init__(self, folder: Path):
        path = folder / "generation.sqlite"
        self.former = Ledger(path, Configuration("units", "p", "q", ("m",)))
        self.ledger = Ledger(path, Configuration("units", "p", "q", ("m", "n")))
        self.index = QuestionIndex(folder / "questions.sqlite")
        self.gone: set[PointId] = set()
        self.looks: list[int] = []

    def close(self) -> None:
        for one in (self.former, self.ledger, self.index):
            one.close()

    def texts_of(self, chunk_ids: Sequence[PointId]) -> dict[PointId, str]:
        self.looks.append(len(chunk_ids))
        return {i: text_of(int(i)) for i in chunk_ids if i not in self.gone}

    def settle(self, ledger: Ledger, policy: str = "training", **rest: Any) -> dict[str, int]:
        return settle(ledger, policy, self.index, texts_of=self.texts_of, **rest).refused

    def made_before(self, *results: Result) -> None:
        self.former.record(results)
        self.settle(self.former)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    both = Both(tmp_path)
    yield both
    both.close()


def test_another_configurations_question_is_not_accepted_once_more(both: Both) -> None:
    both.made_before(done(1, ALIKE), done(3, OTHER))
    both.ledger.record([done(2, ALIKE)])
    assert both.settle(both.ledger) == {"near_duplicate": 1}
    assert [r.state for r in both.ledger.results()] == ["rejected"]
    assert [r.state for r in both.former.results()] == ["done", "done"]


def test_the_question_that_a_chunk_had_before_does_not_stand_in_its_own_way(both: Both) -> None:
    both.made_before(done(1, ALIKE))
    both.ledger.record([done(1, ALIKE), done(1, ALIKE, slot=1), done(2, OTHER)])
    assert both.settle(both.ledger) == {"near_duplicate": 1}  # of its own two
    assert [r.state for r in both.ledger.results()] == ["done", "rejected", "done"]


def test_where_all_is_made_again_what_was_made_before_does_not_count(both: Both) -> None:
    both.made_before(done(1, ALIKE), done(2, OTHER))
    both.ledger.record([done(3, ALIKE), done(4, ALIKE), done(5, OTHER)])
    assert both.settle(both.ledger, redo=True) == {"near_duplicate": 1}  # 4, of 3
    assert [r.state for r in both.ledger.results()] == ["done", "rejected", "done"]


def test_only_what_another_configuration_holds_still_counts(both: Both) -> None:
    """One was refused since, one made anew, one taken out by a person; and one chunk is gone."""
    names = ("mirror", "ladder", "gearbox", "pantograph", "compressor")
    asked = {n: ALIKE.replace("brake pads", name) for n, name in enumerate(names, 1)}
    both.made_before(*(done(n, question) for n, question in asked.items()))
    rejected, anew, *_ = both.former.results()
    both.former.record(
        [replace(rejected, state="rejected", query=None), replace(anew, query=OTHER)]
    )
    both.former.note_write("run", [(3, "{}")])
    both.former.mark_undone("run", [3])
    both.gone = {4}
    both.ledger.record([done(n + 10, question) for n, question in asked.items()])
    assert both.settle(both.ledger) == {"near_duplicate": 1}
    assert [r.chunk_id for r in both.ledger.results("rejected")] == [15]
    assert len(both.index) == 5  # what does not count any more is forgotten


def test_a_corpus_put_in_anew_is_looked_at_once_a_batch(both: Both) -> None:
    """Every question has an earlier one like it, whose chunk is gone."""
    asked = [f"Why is part {n:07} of {n * 7919:07} inspected by hand?" for n in range(60)]
    both.made_before(*(done(n, question) for n, question in enumerate(asked)))
    both.gone, both.looks = set(range(60)), []
    both.ledger.record([done(n + 100, question) for n, question in enumerate(asked)])
    assert both.settle(both.ledger) == {}
    assert both.looks == [60]


def test_an_index_that_was_lost_is_filled_with_the_questions_of_all(
    both: Both, tmp_path: Path
) -> None:
    both.made_before(done(1, ALIKE))
    both.ledger.record([done(2, OTHER, checked="training"), done(3, BAD)])
    with closing(QuestionIndex(tmp_path / "new.sqlite")) as index:
        fill(index, both.ledger)
        assert len(index) == 2  # not the one that nobody checked
        both.former.record([done(5, "What is it like up there?", checked="off")])
        fill(index, both.ledger)
        assert len(index) == 3  # with the gates off it never came to the index
        fill(index, both.ledger)
        assert len(index) == 3


def test_of_another_configuration_only_what_nobody_checked_can_be_checked(both: Both) -> None:
    """Its run was ended before; what it accepted under another policy is left alone."""
    both.former.record([done(1, BAD, checked="record", findings=(("refers_outside", "says it"),))])
    assert both.ledger.never_checked() == []
    both.former.record([done(2, ALIKE), done(3, ALIKE)])
    assert both.ledger.never_checked() == [both.former.configuration]
    assert both.settle(both.former, never=True) == {"near_duplicate": 1}
    assert both.ledger.never_checked() == []
    states = [(r.state, r.checked) for r in both.former.results()]
    assert states == [("done", "record"), ("done", "training"), ("rejected", "")]


def test_filling_an_index_ends_when_nobody_waits_for_it_and_begins_anew(
    both: Both, tmp_path: Path
) -> None:
    both.made_before(done(1, ALIKE), done(2, OTHER))
    with closing(QuestionIndex(tmp_path / "new.sqlite")) as index:
        answers = iter([False, True])
        with pytest.raises(StopRun):
            fill(index, both.ledger, stopped=lambda: next(answers))
        assert len(index) == 0
        fill(index, both.ledger)
        assert len(index) == 2
