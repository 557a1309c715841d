"""What the log tells about people: agreement by a hand-computed example, pace, and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from question_optimizer.annotation.figures import as_dict, comparisons, figures, render
from question_optimizer.annotation.store import AnnotationStore
from question_optimizer.records import Decision, GoldItem
from test_annotation import SUGGESTED, TECHNICIAN, chunks_of

# Two annotators on ten chunks; 1, 2, 3 is the suggestion picked, w an own question, s a skip.
#
#   anna  1 1 1 2 2 w w s s s
#   ben   1 1 2 2 2 w 1 s s w
#
# Question or skip: both keep 7, both skip 2, anna alone skips 1 (the last).
#   raw = 9/10 = .9;  anna skips 3/10, ben 2/10
#   kappa: by chance .7 * .8 + .3 * .2 = .62;  (.9 - .62) / (1 - .62) = .28/.38 = .736842
#   AC1: mean share of skips q = .25, by chance 2 * q * (1 - q) = .375;
#        (.9 - .375) / (1 - .375) = .525/.625 = .84
# Which: they agree on chunks 1, 2, 4, 5, 6, 8, 9: raw = .7
#   anna: 1 .3, 2 .2, w .2, s .3;   ben: 1 .3, 2 .3, w .2, s .2
#   kappa: by chance .09 + .06 + .04 + .06 = .25;  (.7 - .25) / .75 = .6
#   AC1: means 1 .3, 2 .25, w .2, s .25; by chance (1/3) * sum q(1 - q)
#        = (.21 + .1875 + .16 + .1875) / 3 = .745/3 = .248333;  (.7 - .248333)/.751667 = .600887
ANNA = "1112 2wwsss".replace(" ", "")
BEN = "11222w1ssw"


def decide(
    store: AnnotationStore, said: str, *, seconds: float = 30.0, shown: list[str] | None = None
) -> None:
    """Record on chunk 0, 1, 2 … what `said` says, one letter each."""
    shown = shown or SUGGESTED
    for chunk, letter in zip(chunks_of(len(said)), said, strict=True):
        record(store, chunk.chunk_id, letter, seconds=seconds, shown=shown)


def record(
    store: AnnotationStore,
    number: object,
    letter: str,
    *,
    seconds: float = 30.0,
    shown: list[str] = SUGGESTED,
    repeat: bool = False,
) -> None:
    (chunk,) = [c for c in chunks_of(100) if c.chunk_id == number]
    item = None
    if letter == "s":
        decision = Decision(chunk_id=chunk.chunk_id, action="skip", reason="too short")
    else:
        pick = int(letter) if letter.isdecimal() else None
        # the same suggestion, whatever its place on this person's screen
        place = shown.index(sorted(SUGGESTED)[pick - 1]) + 1 if pick else None
        question = shown[place - 1] if place else "Who checks the pads?"
        decision = Decision(
            chunk_id=chunk.chunk_id,
            action="pick" if place else "write",
            pick=place,
            gold_question=None if place else question,
        )
        item = GoldItem(
            chunk_text=chunk.chunk_text,
            persona_description=TECHNICIAN.description,
            gold_question=question,
            chunk_id=chunk.chunk_id,
            document_id=chunk.document_id,
            persona_id=TECHNICIAN.id,
            suggestions=shown,
            order_seed=7,
            origin="picked" if place else "written",
            annotator=store.annotator,
        )
    store.record(chunk, decision, item, active_seconds=seconds, repeat=repeat)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[AnnotationStore, AnnotationStore]]:
    path = tmp_path / "annotations.sqlite"
    with AnnotationStore(path, "anna") as anna, AnnotationStore(path, "ben") as ben:
        yield anna, ben


def test_agreement_of_two_people_is_that_of_the_hand_computed_example(
    two: tuple[AnnotationStore, AnnotationStore],
) -> None:
    anna, ben = two
    decide(anna, ANNA)
    decide(ben, BEN, shown=SUGGESTED[::-1])  # in another order: places say nothing
    anna.refresh()
    (found,) = comparisons(anna)
    assert (found.who, found.kept.n, found.choice.n) == ("anna and ben", 10, 10)
    assert found.kept.raw.value == pytest.approx(0.9)
    assert found.kept.kappa.value == pytest.approx(0.736842, abs=1e-6)
    assert found.kept.ac1.value == pytest.approx(0.84)
    assert found.choice.raw.value == pytest.approx(0.7)
    assert found.choice.kappa.value == pytest.approx(0.6)
    assert found.choice.ac1.value == pytest.approx(0.600887, abs=1e-6)
    for estimate in (found.kept.kappa, found.choice.ac1):
        assert estimate.low < estimate.value < estimate.high


def test_self_agreement_compares_what_came_back(
    two: tuple[AnnotationStore, AnnotationStore],
) -> None:
    anna, _ = two
    decide(anna, "12ws")
    record(anna, 0, "1", repeat=True)
    record(anna, 3, "w", repeat=True)
    (found,) = comparisons(anna)
    assert (found.who, found.kept.n) == ("anna twice", 2)
    assert found.kept.raw.value == 0.5
    assert len(anna.gold()) == 3  # what came back changes nothing


def test_only_what_both_settled_is_compared(two: tuple[AnnotationStore, AnnotationStore]) -> None:
    anna, ben = two
    decide(anna, "11")
    decide(ben, "1")
    ben.record(chunks_of(2)[1], Decision(chunk_id=1, action="defer"), None)
    anna.refresh()
    assert [c.kept.n for c in comparisons(anna)] == [1]


def test_figures_tell_pace_sources_and_who_was_never_used(
    two: tuple[AnnotationStore, AnnotationStore],
) -> None:
    anna, ben = two
    decide(anna, "11wss", seconds=36.0)
    anna.undo()
    ben.refresh()
    idle = TECHNICIAN.model_copy(update={"id": "idle"})
    found = figures(ben, chunks_of(10), [TECHNICIAN, idle])
    (person,) = found.people
    assert (person.gold, person.skipped, person.undone) == (3, {"too short": 1}, 1)
    assert person.origins == {"picked": 2, "written": 1}
    assert person.seconds == 180.0  # what was undone was work, too
    assert found.never_used == ["idle"]
    text = render(found)
    assert "anna: 4 of the sample's 10 chunks decided, 3 questions; 0 came back, 1 undone" in text
    assert "pace: 80 an hour of active time, median 36 s, 3 min in all" in text
    assert "sources: 2 picked (67%), 1 written (33%)" in text
    assert "never used: idle" in text
    assert as_dict(found)["people"][0]["gold"] == 3


@pytest.mark.parametrize(
    ("said", "seconds", "warning"),
    [
        ("1" * 30, 30.0, "anna took the first suggestion in 100% of picks, where chance gives 33%"),
        ("123" * 10, 30.0, "anna took 100% of questions unedited"),
        ("w" * 30, 1.0, "anna decided 100% in under 2 s"),
    ],
)
def test_what_should_make_one_wonder_is_a_warning(
    two: tuple[AnnotationStore, AnnotationStore], said: str, seconds: float, warning: str
) -> None:
    anna, _ = two
    decide(anna, said, seconds=seconds, shown=sorted(SUGGESTED))
    assert any(w.startswith(warning) for w in figures(anna, chunks_of(30), [TECHNICIAN]).warnings)


def test_ordinary_work_raises_no_warning(two: tuple[AnnotationStore, AnnotationStore]) -> None:
    anna, _ = two
    decide(anna, "123w" * 10, shown=sorted(SUGGESTED))
    assert figures(anna, chunks_of(40), [TECHNICIAN]).warnings == []


def test_an_empty_log_has_empty_figures(two: tuple[AnnotationStore, AnnotationStore]) -> None:
    found = figures(two[0], chunks_of(3), [TECHNICIAN])
    assert (found.people, found.comparisons, found.warnings) == ([], [], [])
    assert "documents: 0 of the sample's 3" in render(found)
