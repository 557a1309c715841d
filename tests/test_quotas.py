"""Quotas: shares from files and gold sets, whole numbers that keep to them, deals without twins."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from question_optimizer import gates
from question_optimizer.errors import UserError
from question_optimizer.generation.quotas import (
    LENGTH_NAMES,
    LENGTHS,
    Cell,
    Pair,
    QuotaPlan,
    by_pair,
    exact_per_chunk,
    length_of,
    most_per_chunk,
    plan_table,
    planned,
    targets,
    total_variation,
)
from question_optimizer.records import GoldItem, QueryFormat, QueryType

EVEN = targets("even")
QUESTION, KEYWORDS = QueryFormat.members
CELLS = [
    Cell(t, f, length)
    for t in QueryType.members
    for f in QueryFormat.members
    for length in LENGTHS[f]
]


def weights_in(folder: Path, value: Any) -> Path:
    path = folder / "quotas.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def gold(question: str, query_type: str | None, query_format: str | None) -> GoldItem:
    return GoldItem.model_validate(
        {
            "chunk_text": "text",
            "persona_description": "",
            "gold_question": question,
            "chunk_id": 1,
            "query_type": query_type,
            "query_format": query_format,
        }
    )


# ---------------------------------------------------------------------- lengths


def test_lengths_cover_every_format_within_what_its_gate_lets_pass() -> None:
    bounds = {
        QUESTION: (gates.QUESTION_MIN, gates.QUESTION_MAX),
        KEYWORDS: (gates.KEYWORDS_MIN, gates.KEYWORDS_MAX),
    }
    assert {*LENGTHS} == {*QueryFormat.members}
    for query_format, ranges in LENGTHS.items():
        assert tuple(ranges) == LENGTH_NAMES
        words = [n for low, high in ranges.values() for n in range(low, high + 1)]
        assert words == [*range(words[0], words[-1] + 1)]  # neither gap nor overlap
        fewest, most = bounds[query_format]
        assert fewest <= words[0] and words[-1] <= most


@pytest.mark.parametrize(
    ("words", "query_format", "length"),
    [
        (1, QUESTION, "short"),
        (9, QUESTION, "short"),
        (10, QUESTION, "medium"),
        (15, QUESTION, "medium"),
        (16, QUESTION, "long"),
        (40, QUESTION, "long"),
        (3, KEYWORDS, "short"),
        (4, KEYWORDS, "medium"),
        (5, KEYWORDS, "long"),
        (9, KEYWORDS, "long"),
    ],
)
def test_a_length_is_told_by_words(words: int, query_format: str, length: str) -> None:
    assert length_of(" ".join(["word"] * words), query_format) == length


# ---------------------------------------------------------------------- targets


def test_even_targets_give_every_type_and_length_its_part_and_keywords_a_third() -> None:
    assert {*EVEN} == {*CELLS}
    assert sum(EVEN.values()) == pytest.approx(1)
    assert EVEN[Cell("analytical", QUESTION, "short")] == pytest.approx(1 / 6 * 2 / 3 * 1 / 3)
    assert EVEN[Cell("reasoning", KEYWORDS, "long")] == pytest.approx(1 / 6 * 1 / 3 * 1 / 3)


def test_a_file_of_weights_is_followed_and_what_it_leaves_out_is_even(tmp_path: Path) -> None:
    path = weights_in(tmp_path, {"types": {"analytical": 3, "reasoning": 1, "evaluative": 0}})
    found = targets(path)
    assert {cell.query_type for cell in found} == {"analytical", "reasoning"}
    assert sum(found.values()) == pytest.approx(1)
    analytical = sum(share for cell, share in found.items() if cell.query_type == "analytical")
    assert analytical == pytest.approx(0.75)
    assert by_pair(found)["analytical", QUESTION] == pytest.approx(0.5)
    assert targets(str(weights_in(tmp_path, {}))) == EVEN


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "must be an object with types, formats, lengths; correct the file"),
        ({"typs": {}}, "'typs' is none of: types, formats, lengths"),
        ({"types": ["analytical"]}, "types must be an object of weights; correct the file"),
        (
            {"formats": {"keyword": 1}},
            "formats: 'keyword' is none of: formal question, keywords",
        ),
        ({"lengths": {"huge": 1}}, "lengths: 'huge' is none of: short, medium, long"),
        (
            {"types": {"analytical": -1}},
            "types: weight of 'analytical' must be a number, not negative; correct the file",
        ),
        (
            {"types": {"analytical": True}},
            "types: weight of 'analytical' must be a number, not negative; correct the file",
        ),
        (
            '{"types": {"analytical": NaN}}',
            "types: weight of 'analytical' must be a number, not negative; correct the file",
        ),
        (
            '{"types": {"analytical": 1' + "0" * 400 + "}}",
            "types: weight of 'analytical' must be a number, not negative; correct the file",
        ),
        ({"types": {"analytical": 0}}, "types has no weight above 0; correct the file"),
        ({"lengths": {}}, "lengths has no weight above 0; correct the file"),
    ],
)
def test_a_wrong_file_is_named_with_its_key_and_what_is_allowed(
    value: Any, says: str, tmp_path: Path
) -> None:
    path = weights_in(tmp_path, value)
    with pytest.raises(UserError) as raised:
        targets(path)
    assert str(raised.value) == f"{path}: {says}"


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: does not exist; name one that does"):
        targets(tmp_path / "none.json")


def test_the_gold_sets_own_mix_is_joint_of_type_and_format_with_lengths_of_the_format() -> None:
    items = [
        gold("What is a page cache?", "fact retrieval", QUESTION),
        gold("How does the page cache decide which of its pages to drop?", "analytical", QUESTION),
        gold("page cache size", "fact retrieval", KEYWORDS),
        gold("Why?", "analytical", None),  # counts for nothing
    ]
    found = targets("gold", items)
    pairs = by_pair(found)
    assert sum(found.values()) == pytest.approx(1)
    assert pairs == pytest.approx(
        {
            ("fact retrieval", QUESTION): 1 / 3,
            ("analytical", QUESTION): 1 / 3,
            ("fact retrieval", KEYWORDS): 1 / 3,
        }
    )
    assert found[Cell("fact retrieval", QUESTION, "medium")] == pytest.approx(1 / 6)
    assert found[Cell("fact retrieval", KEYWORDS, "short")] == pytest.approx(1 / 3)


def test_a_gold_set_without_types_is_no_model() -> None:
    with pytest.raises(UserError, match="none of 1 gold items tells its query_type and query_f"):
        targets("gold", [gold("Why is that so?", None, QUESTION)])


def test_how_many_a_chunk_may_get_and_how_many_keep_the_shares(tmp_path: Path) -> None:
    assert (most_per_chunk(EVEN), exact_per_chunk(EVEN)) == (12, 9)
    one = targets(weights_in(tmp_path, {"types": {"analytical": 1}, "formats": {"keywords": 1}}))
    assert (most_per_chunk(one), exact_per_chunk(one)) == (1, 1)


# ---------------------------------------------------------------------- whole numbers


def test_planned_numbers_add_up_and_are_the_shares_rounded() -> None:
    for total in (0, 1, 7, 27, 36, 648, 100_003):
        counts = planned(EVEN, total)
        assert sum(counts.values()) == total
        assert all(abs(counts[cell] - EVEN[cell] * total) < 2 for cell in CELLS)
    assert planned(EVEN, 54) == {c: 2 if c.query_format == QUESTION else 1 for c in CELLS}


def test_few_slots_are_spread_over_types_formats_and_lengths() -> None:
    counts = +Counter(planned(EVEN, 18))
    assert by_pair(counts) == {
        (t, f): 2 if f == QUESTION else 1 for t in QueryType.members for f in QueryFormat.members
    }
    assert {cell.query_length for cell in counts} == {*LENGTH_NAMES}


# ---------------------------------------------------------------------- dealing

mixes = st.dictionaries(st.sampled_from(CELLS), st.floats(0.01, 10), min_size=1).map(
    lambda weights: {cell: w / sum(weights.values()) for cell, w in weights.items()}
)


def far_from_plan(plan: QuotaPlan) -> tuple[float, float]:
    """How far the counts are from their plan, at most: of pairs, of cells."""
    goal = planned(plan.targets, sum(plan.taken.values()))
    pairs, goals = by_pair(plan.taken), by_pair(goal)
    return (
        max(abs(pairs.get(pair, 0) - goals[pair]) for pair in goals),
        max(abs(plan.taken[cell] - goal[cell]) for cell in goal),
    )


@settings(max_examples=60, deadline=None)
@given(
    mix=mixes,
    chunks=st.lists(st.integers(0, 40), max_size=6),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_every_batch_keeps_the_whole_to_the_plan(
    mix: dict[Cell, float], chunks: list[int], seed: int, data: st.DataObject
) -> None:
    per_chunk = data.draw(st.integers(1, exact_per_chunk(mix)))
    plan, dealt = QuotaPlan(mix, seed=seed), Counter[Cell]()
    for batch in chunks:
        for cells in plan.assign([per_chunk] * batch):
            assert len({cell.pair for cell in cells}) == len(cells) == per_chunk
            dealt.update(cells)
        pairs, cells_off = far_from_plan(plan)
        assert pairs <= 1 and cells_off <= 2
    assert dealt == +plan.taken


@settings(max_examples=50, deadline=None)
@given(mix=mixes, seed=st.integers(0, 9), data=st.data())
def test_no_chunk_gets_a_pair_twice_or_one_that_it_is_to_avoid(
    mix: dict[Cell, float], seed: int, data: st.DataObject
) -> None:
    plan, pairs = QuotaPlan(mix, seed=seed), sorted(by_pair(mix))
    for _ in range(3):
        avoid = data.draw(st.lists(st.sets(st.sampled_from(pairs)), max_size=6))
        wanted = [data.draw(st.integers(0, len(pairs) - len(some))) for some in avoid]
        dealt = plan.assign(wanted, avoid)
        assert [len(cells) for cells in dealt] == wanted
        for cells, some in zip(dealt, avoid, strict=True):
            assert len({cell.pair for cell in cells}) == len(cells)
            assert not {cell.pair for cell in cells} & some


def test_a_chunk_cannot_get_more_than_there_are_pairs_left() -> None:
    with pytest.raises(ValueError, match="12 questions wanted, 11 pairs left"):
        QuotaPlan(EVEN, seed=0).assign([12], [{("analytical", QUESTION)}])


def test_where_every_pair_goes_to_every_chunk_all_are_dealt_alike() -> None:
    plan = QuotaPlan(EVEN, seed=0)
    plan.assign([12] * 30)
    assert {*by_pair(plan.taken).values()} == {30}


@settings(max_examples=30, deadline=None)
@given(
    mix=mixes,
    chunks=st.integers(1, 300),
    cut=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_a_run_in_two_parts_ends_at_the_totals_of_one(
    mix: dict[Cell, float], chunks: int, cut: float, seed: int
) -> None:
    first = QuotaPlan(mix, seed=seed)
    first.assign([1] * int(chunks * cut))
    ledger = {(*cell,): count for cell, count in first.taken.items()}  # as it is read back
    second = QuotaPlan(mix, seed=seed, taken=ledger)
    second.assign([1] * (chunks - int(chunks * cut)))
    assert sum(second.taken.values()) == chunks
    pairs, cells = far_from_plan(second)
    assert pairs <= 1 and cells <= 2


def test_the_same_seed_and_counts_deal_the_same_and_another_seed_does_not() -> None:
    one, same, other = (QuotaPlan(EVEN, seed=seed) for seed in (1, 1, 2))
    dealt = [one.assign([2] * 50), one.assign([2] * 50)]
    assert [same.assign([2] * 50), same.assign([2] * 50)] == dealt
    assert (
        QuotaPlan(EVEN, seed=1, taken=Counter(c for cs in dealt[0] for c in cs)).assign([2] * 50)
        == dealt[1]
    )
    assert other.assign([2] * 50) != dealt[0]


def test_no_cell_is_tied_to_a_place_in_the_corpus() -> None:
    """Each place of a batch, and each slot of a chunk, gets every format as often as its share."""
    plan = QuotaPlan(EVEN, seed=0)
    batches = [plan.assign([3] * 20) for _ in range(300)]
    for place in (0, 7, 19):
        for slot in range(3):
            formats = Counter(batch[place][slot].query_format for batch in batches)
            assert 0.25 < formats[KEYWORDS] / 300 < 0.42
    together = {frozenset(cell.pair for cell in cells) for batch in batches for cells in batch}
    assert len(together) == 12 * 11 * 10 / 6  # every set of three pairs came up


def test_no_length_is_tied_to_the_beginning_of_a_batch() -> None:
    """54 slots are a round number of everything: each batch begins with nothing owed to anyone."""
    plan = QuotaPlan(EVEN, seed=0)
    firsts = [plan.assign([1] * 54)[0][0] for _ in range(200)]
    for pair in by_pair(EVEN):
        assert len({cell.query_length for cell in firsts if cell.pair == pair}) > 1


def test_the_first_slot_is_of_any_kind_also_where_a_chunk_gets_nearly_all() -> None:
    """Six questions and three sets of keywords to each chunk: a third of the first are keywords."""
    plan = QuotaPlan(EVEN, seed=0)
    formats = Counter(cells[0].query_format for cells in plan.assign([9] * 300))
    assert 0.25 < formats[KEYWORDS] / 300 < 0.42


def test_chunks_with_less_choice_choose_first(tmp_path: Path) -> None:
    mix = targets(
        weights_in(tmp_path, {"types": {"analytical": 1}, "formats": dict.fromkeys(LENGTHS, 1)})
    )
    for seed in range(8):
        dealt = QuotaPlan(mix, seed=seed).assign([1, 1], [set(), {("analytical", QUESTION)}])
        assert [cells[0].query_format for cells in dealt] == [QUESTION, KEYWORDS]


def test_of_what_is_missing_all_get_their_part_where_slots_are_few() -> None:
    for seed in range(8):
        plan = QuotaPlan(EVEN, seed=seed)
        plan.assign([1] * 540)
        for query_type, count in (("reasoning", 6), ("evaluative", 3)):
            for length in LENGTH_NAMES:
                for _ in range(count):
                    plan.give_back(Cell(query_type, KEYWORDS, length))
        again = Counter(cells[0].pair for cells in plan.assign([1] * 9))
        assert again == {("reasoning", KEYWORDS): 6, ("evaluative", KEYWORDS): 3}


def rejected(cells: list[list[Cell]], rate: float, chance: random.Random) -> list[tuple[int, Cell]]:
    return [(i, c) for i, some in enumerate(cells) for c in some if chance.random() < rate]


def test_with_a_tenth_rejected_at_random_the_mix_stays_within_five_percent() -> None:
    plan, chance = QuotaPlan(EVEN, seed=0), random.Random(1)
    dealt = plan.assign([3] * 216)
    left = plan.taken - Counter(cell for _, cell in rejected(dealt, 0.1, chance))
    assert total_variation(by_pair(left), by_pair(EVEN)) <= 0.05
    assert total_variation(left, EVEN) <= 0.05


def test_what_is_given_back_is_dealt_again_until_the_mix_is_right() -> None:
    """Keywords are rejected four times in ten; refills of the same chunks make up for it."""
    plan, chance = QuotaPlan(EVEN, seed=0), random.Random(2)
    dealt = plan.assign([3] * 216)
    lost = [
        (i, cell)
        for i, cells in enumerate(dealt)
        for cell in cells
        if cell.query_format == KEYWORDS and chance.random() < 0.4
    ]
    for i, cell in lost:
        plan.give_back(cell)
        dealt[i].remove(cell)
    assert total_variation(by_pair(plan.taken), by_pair(EVEN)) > 0.1
    wanted = [3 - len(cells) for cells in dealt]
    again = plan.assign(wanted, [{cell.pair for cell in cells} for cells in dealt])
    for kept, refill in zip(dealt, again, strict=True):
        assert len({cell.pair for cell in kept + refill}) == 3
    assert sum(plan.taken.values()) == 648
    assert total_variation(by_pair(plan.taken), by_pair(EVEN)) <= 0.01
    assert total_variation(plan.taken, EVEN) <= 0.01


def test_single_refills_take_what_is_missing() -> None:
    plan = QuotaPlan(EVEN, seed=0)
    cells = [cells[0] for cells in plan.assign([1] * 540)]
    lost = Cell("reasoning", KEYWORDS, "long")
    for _ in range(cells.count(lost)):
        plan.give_back(lost)
        assert plan.assign([1]) == [[lost]]
    plan.give_back(lost)
    elsewhere = plan.assign([1], [{lost.pair}])[0][0]  # this chunk has one already
    assert elsewhere.pair != lost.pair
    assert plan.assign([1])[0][0] == lost  # so the next one gets it


def test_later_chunks_make_up_for_what_earlier_ones_lost_for_good() -> None:
    plan = QuotaPlan(EVEN, seed=0)
    plan.assign([1] * 300)
    for cell, count in list(plan.taken.items()):
        for _ in range(count if cell.query_type == "evaluative" else 0):
            plan.give_back(cell)
    plan.assign([1] * 300)
    assert far_from_plan(plan)[0] <= 1


def test_counts_of_other_shares_are_made_up_for(tmp_path: Path) -> None:
    former = targets(weights_in(tmp_path, {"types": {"analytical": 1}}))
    before = QuotaPlan(former, seed=0)
    before.assign([1] * 60)
    plan = QuotaPlan(EVEN, seed=0, taken=before.taken)
    plan.assign([1] * 588)
    assert total_variation(plan.taken, EVEN) <= 0.001


def test_what_was_never_dealt_cannot_be_given_back() -> None:
    with pytest.raises(ValueError, match="was not dealt"):
        QuotaPlan(EVEN, seed=0).give_back(CELLS[0])


def test_a_plan_of_many_chunks_keeps_nothing_but_counts() -> None:
    plan = QuotaPlan(EVEN, seed=0)
    for _ in range(100):
        plan.assign([2] * 500)
    assert sum(plan.taken.values()) == 100_000
    assert len(plan.taken) == len(CELLS)
    assert far_from_plan(plan) == (0, 0)


# ---------------------------------------------------------------------- distances


@pytest.mark.parametrize(
    ("achieved", "target", "distance"),
    [
        ({"a": 1, "b": 1}, {"a": 0.5, "b": 0.5}, 0.0),
        ({"a": 3, "b": 1}, {"a": 0.5, "b": 0.5}, 0.25),
        ({"a": 5}, {"b": 0.1}, 1.0),
        ({}, {"b": 1.0}, 1.0),
        ({"a": 0}, {"a": 1.0}, 1.0),
    ],
)
def test_total_variation_is_half_the_sum_of_differences(
    achieved: dict[str, float], target: dict[str, float], distance: float
) -> None:
    assert total_variation(achieved, target) == pytest.approx(distance)


def test_the_table_tells_achieved_against_target_also_of_what_nobody_planned() -> None:
    mix = {Cell("analytical", QUESTION, "short"): 0.75, Cell("reasoning", KEYWORDS, "long"): 0.25}
    stray = Cell("evaluative", KEYWORDS, "short")
    achieved = Counter({Cell("analytical", QUESTION, "short"): 5, stray: 3})
    assert [tuple(row) for row in plan_table(mix, achieved)] == [
        (("analytical", QUESTION, "short"), 0.75, 6, 5),
        (stray, 0.0, 0, 3),
        (("reasoning", KEYWORDS, "long"), 0.25, 2, 0),
    ]
    assert [row.planned for row in plan_table(mix, achieved, total=100)] == [75, 0, 25]


def test_pairs_add_up_over_lengths() -> None:
    pair: Pair = ("analytical", QUESTION)
    assert by_pair({Cell(*pair, length): 2 for length in LENGTH_NAMES}) == {pair: 6}
