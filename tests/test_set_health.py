"""A set's figures, worked out by hand; a collapse raises its alarm and a varied set raises none."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import SAMPLE
from fetch_chunks import main as fetch_chunks
from question_optimizer.set_health import Item, distinct, self_repetition, set_health

CHUNK = "The write-ahead log grows until a checkpoint moves its pages back into the database file."
F, K = "formal question", "keywords"
TYPES = ("fact retrieval", "analytical", "reasoning", "hypothetical", "evaluative")


def codes(health: dict[str, Any], level: str = "warning") -> list[str]:
    return [alarm["code"] for alarm in health["alarms"] if alarm["level"] == level]


def text_of(health: dict[str, Any], code: str) -> str:
    return next(alarm["text"] for alarm in health["alarms"] if alarm["code"] == code)


# ---------------------------------------------------------------------- by hand


def test_the_figures_of_a_small_set_are_those_worked_out_by_hand() -> None:
    items = [
        Item("What is a checkpoint of the log?", CHUNK, "fact retrieval", F, "wal"),  # 7 words
        Item("What is a checkpoint of the log", CHUNK, "fact retrieval", F, "wal"),  # the same
        Item("sqlite log growth", CHUNK, "analytical", K, "wal"),
        Item("Why do brakes squeal at all?", CHUNK, None, F, "rail"),
        Item("  ", CHUNK, "analytical", K, "none"),
        Item(None),
    ]
    health = set_health(items, gold=None)
    assert health["n"] == 4
    assert health["left_out"] == 2
    assert health["documents"] == 2
    # 3, 6, 7, 7: quartiles at ranks .75, 1.5 and 2.25 from 0
    assert health["words"] == {"lower_quartile": 5.25, "median": 6.5, "upper_quartile": 7.0}
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert health["types"] == {
        "shares": {"analytical": 0.3333, "fact retrieval": 0.6667},
        "effective_number": round(math.exp(entropy), 3),
        "unknown": 1,
        "distance_to_gold": None,
    }
    assert health["formats"]["shares"] == {F: 0.75, K: 0.25}
    assert health["near_duplicates"] == {"pairs": 1, "share": 0.5}
    # no question holds four words in a row of the chunk; brakes that squeal are not in it
    assert health["copying"] == {"rate": 0.0, "over": 0.0, "nothing": 0.25}
    assert health["opening"] == {"words": "what is", "share": 0.5}
    assert health["self_repetition"] == 0.5
    # 6 + 6 + 2 + 5 pairs of words, of which the second 6 are the first 6 again
    assert health["distinct_2"] == round(13 / 19, 4)
    assert health["gold"] is None
    assert [(a["code"], a["level"]) for a in health["alarms"]] == [
        ("left-out", "warning"),
        ("too-few", "note"),
    ]
    assert json.loads(json.dumps(health)) == health


def test_a_set_is_compared_with_the_gold_question_of_its_own_chunk() -> None:
    gold = [
        Item("abcdefghi", "one", "fact retrieval", F),
        Item("what is wal", "two", "analytical", K),
        Item("another for two", "two", "analytical", K),
        Item("never asked", "four", None, F),
    ]
    items = [
        Item("abcdefghj", "one", "fact retrieval", K),  # 4 of 6 runs of five shared
        Item("What is WAL?", "two", "fact retrieval", K),  # the same but for case and "?"
        Item("never asked", "five", "reasoning", K),  # gold's, but of another chunk
    ]
    health = set_health(items, gold=gold)
    assert health["gold"] == {
        "compared": 2,
        "identical": 0.5,
        "near_duplicate": 0.5,
        "jaccard": round((4 / 6 + 1) / 2, 4),
    }
    # 2/3 fact, 1/3 reasoning against 1/3 fact, 2/3 analytical (of the three that are known)
    assert health["types"]["distance_to_gold"] == pytest.approx(2 / 3, abs=1e-4)
    assert health["formats"]["distance_to_gold"] == 0.5


def test_a_gold_set_that_knows_no_types_is_not_compared_by_type() -> None:
    health = set_health([Item("What is WAL?", "", "reasoning", F)], gold=[Item("Why use WAL?")])
    assert health["types"]["distance_to_gold"] is None
    assert health["gold"] == {
        "compared": 1,  # both chunks are unknown and thus the same
        "identical": 0.0,
        "near_duplicate": 0.0,
        "jaccard": pytest.approx(0.0769, abs=0.08),
    }


def test_an_empty_set_has_no_figures_and_one_note() -> None:
    for items in ([], [Item(None), Item("")]):
        health = set_health(items, gold=[])
        assert health["n"] == 0
        assert health["words"]["median"] is None
        assert health["opening"] == {"words": None, "share": None}
        assert health["self_repetition"] is None
        assert health["copying"] == {"rate": None, "over": None, "nothing": None}
        assert health["gold"]["compared"] == 0
        assert codes(health, "note") == ["too-few"]


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["a b c d e", "x b c d e", "p q r s"], 2 / 3),
        (["a b c d a b c d"], 0.0),  # within one question is no repetition of another
        (["a b c", "a b c"], 0.0),  # no run of four
        (["A, b; c d", "a b c D!"], 1.0),  # neither case nor punctuation hides it
        ([], None),
    ],
)
def test_self_repetition_is_the_share_with_a_run_of_four_of_another(
    texts: list[str], share: float | None
) -> None:
    assert self_repetition(texts) == (None if share is None else round(share, 4))


def test_distinct_counts_all_runs_of_all_texts() -> None:
    assert distinct(["a b a b", "a b"], 2) == 0.5  # ab, ba, ab and ab
    assert distinct(["a"], 2) is None


# ---------------------------------------------------------------------- alarms

WORDS = [
    head + tail
    for head in "pag vac trig schem curs opc jour coll row affin plan byt mut casc".split()
    for tail in "er uum or ode nal ation id ity ner ex ade".split()
]
OPENINGS = (
    "How does {} treat {} when {} is full?",
    "Why would {} ever wait for {} or {}?",
    "Which {} setting keeps {} out of {}?",
    "Can {} and {} share one {} safely?",
    "{} {} {} limit",
    "Suppose {} breaks: will {} still find {}?",
)


def varied(n: int, seed: int = 0, **changes: Any) -> list[Item]:
    """Questions of mixed openings, types and formats, each with a chunk of its own."""
    draw = random.Random(seed)
    items = []
    for number in range(n):
        words = draw.sample(WORDS, 3)
        template = OPENINGS[number % len(OPENINGS)]
        text = template.format(*words)
        chunk = f"{seed}.{number}: a {words[2]} is told of beside the {words[0]}, in other words"
        kind = TYPES[number % len(TYPES)]
        items.append(Item(text, chunk, kind, F if "?" in text else K, f"d{number % 7}"))
    return [item._replace(**changes) for item in items]


GOLD = varied(60, seed=1)


@pytest.mark.parametrize("gold", [None, GOLD])
def test_a_varied_set_raises_no_alarm(gold: list[Item] | None) -> None:
    assert set_health(varied(60), gold=gold)["alarms"] == []


def test_one_opening_for_all_is_told_with_its_words() -> None:
    items = [
        item._replace(question=f"What is {item.question}") if number % 2 else item
        for number, item in enumerate(varied(60))
    ]
    health = set_health(items, gold=GOLD)
    assert codes(health) == ["same-opening"]
    assert text_of(health, "same-opening") == (
        "50.0 % begin with 'what is' (limit 30 %, gold set 16.7 %)"
    )


def test_a_share_just_over_its_limit_is_not_told_as_the_limit() -> None:
    items = [
        item._replace(question=f"What is {item.question}") if number < 61 else item
        for number, item in enumerate(varied(200))
    ]
    assert text_of(set_health(items, gold=None), "same-opening") == (
        "30.5 % begin with 'what is' (limit 30 %)"
    )


def test_an_opening_that_gold_favours_as_much_is_no_alarm() -> None:
    def what(items: list[Item]) -> list[Item]:
        return [item._replace(question=f"What is {item.question}") for item in items]

    assert "same-opening" not in codes(set_health(what(varied(60)), gold=what(GOLD)))


def test_near_duplicates_are_told_of_and_a_few_are_not() -> None:
    items = varied(60)
    few = [*items[:58], items[0]._replace(chunk_text="x"), items[1]._replace(chunk_text="y")]
    assert set_health(few, gold=GOLD)["near_duplicates"] == {"pairs": 2, "share": round(4 / 60, 4)}
    assert codes(set_health(few, gold=GOLD)) == []
    many = [*items[:30], *items[:30]]
    assert "near-duplicates" in codes(set_health(many, gold=GOLD))
    assert text_of(set_health(many, gold=None), "near-duplicates") == (
        "100.0 % are near-duplicates of another question (limit 10 %)"
    )


def test_copying_is_told_of() -> None:
    items = [
        item._replace(chunk_text=f"{item.chunk_text}. {item.question}") if number % 5 == 0 else item
        for number, item in enumerate(varied(60))
    ]
    health = set_health(items, gold=GOLD)
    assert health["copying"]["over"] == pytest.approx(0.2, abs=0.04)
    assert codes(health) == ["copying"]


def test_questions_that_share_nothing_with_their_chunks_are_noted() -> None:
    health = set_health(varied(60, chunk_text="Bogies, couplers and flanges of a wagon"), gold=GOLD)
    assert codes(health, "note") == ["nothing-shared"]
    assert health["copying"]["nothing"] == 1.0


@pytest.mark.parametrize(
    ("tail", "which"), [(" in a long tail of words that no gold question has", "longer")]
)
def test_a_length_far_from_golds_is_told_of(tail: str, which: str) -> None:
    items = varied(60)
    long = [
        item._replace(question=f"{item.question} {n} {' '.join(random.Random(n).sample(WORDS, 9))}")
        for n, item in enumerate(items)
    ]
    health = set_health(long, gold=GOLD)
    assert codes(health) == ["length"]
    assert text_of(health, "length") == (
        f"much {which} than the gold set's: 18 words against 8 (medians)"
    )
    assert codes(set_health(items, gold=long[:60])) == ["length"]
    assert codes(set_health(long, gold=None)) == []


def test_a_mix_that_is_not_golds_is_told_of() -> None:
    health = set_health(varied(60, query_type="fact retrieval"), gold=GOLD)
    assert codes(health) == ["types-mix"]
    assert text_of(health, "types-mix") == (
        "the query types are not those of the gold set (80.0 % differ, limit 35 %): 100.0 % are "
        "fact retrieval"
    )
    assert codes(set_health(varied(60, query_format=K), gold=GOLD)) == ["formats-mix"]
    alone = set_health(varied(60, query_type="fact retrieval"), gold=None)
    assert text_of(alone, "types-mix") == (
        "1.0 query types in effect (at least 2 wanted): 100.0 % are fact retrieval"
    )
    assert codes(set_health(varied(60, query_type=None), gold=GOLD)) == []


def test_self_repetition_is_compared_at_the_same_number_of_questions() -> None:
    def tailed(items: list[Item]) -> list[Item]:
        return [item._replace(question=f"{item.question} in the SQLite core") for item in items]

    health = set_health(tailed(varied(60)), gold=tailed(GOLD))
    assert health["self_repetition"] == 1.0
    assert "self-repetition" not in codes(health)
    told = set_health(tailed(varied(60)), gold=GOLD)
    assert "self-repetition" in codes(told)
    assert text_of(told, "self-repetition") == (
        "100.0 % hold a run of four words that another question holds (limit 31.7 %, gold set "
        "6.7 %): read some that do, and ask for more kinds of questions"
    )
    # a larger set repeats itself more by its size alone
    large = [item for seed in range(2, 8) for item in varied(60, seed=seed)]
    assert "self-repetition" not in codes(set_health(large, gold=GOLD))


def test_answers_that_repeat_gold_are_told_of() -> None:
    health = set_health([*GOLD[:15], *varied(60)[:45]], gold=GOLD)
    assert codes(health) == []  # 15 have a gold question of their own: too few to tell
    health = set_health(GOLD, gold=GOLD)
    assert codes(health) == ["near-gold"]
    assert text_of(health, "near-gold") == (
        "100.0 % repeat the gold question of their own chunk, 100.0 % word by word (limit 10 %): "
        "has the generator seen it?"
    )


def test_what_is_left_out_is_a_note_and_much_of_it_a_warning() -> None:
    few = [*varied(60), Item(None)]
    assert codes(set_health(few, gold=GOLD), "note") == ["left-out"]
    many = [*varied(60), *[Item("")] * 10]
    assert codes(set_health(many, gold=GOLD)) == ["left-out"]
    assert set_health(many, gold=GOLD)["left_out"] == 10


# ---------------------------------------------------------------------- real and hostile sets


def test_the_gold_set_of_the_sample_raises_no_alarm(tmp_path) -> None:
    folder = str(SAMPLE / "small_sqlite")
    assert fetch_chunks(["--qdrant-path", folder, "--data-dir", str(tmp_path)]) == 0
    rows = map(json.loads, (tmp_path / "raw_chunks.jsonl").read_text().splitlines())
    chunks = {str(row["chunk_id"]): row["chunk_text"] for row in rows}
    gold = [
        Item(
            row["gold_question"],
            chunks[str(row["chunk_id"])],
            row["query_type"],
            row["query_format"],
        )
        for row in map(json.loads, (SAMPLE / "decisions.jsonl").read_text().splitlines())
        if row.get("gold_question")
    ]
    assert len(gold) == 73
    health = set_health(gold, gold=None)
    assert health["alarms"] == []
    assert health["self_repetition"] == 0.0274
    # nor do two halves of it, each with the other as gold
    assert set_health(gold[::2], gold=gold[1::2])["alarms"] == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Item,
            st.one_of(st.none(), st.text(alphabet=st.characters(), max_size=40)),
            st.sampled_from(["", CHUNK, "\ud800\x00"]),
            st.sampled_from([None, "", "reasoning", "odd"]),
            st.sampled_from([None, F, K]),
        ),
        max_size=30,
    )
)
def test_any_set_has_figures_that_json_can_carry(items: list[Item]) -> None:
    for gold in (None, items[:5], []):
        health = set_health(items, gold=gold)
        assert health == set_health(items, gold=gold)
        assert health["n"] + health["left_out"] == len(items)
        json.dumps(health, allow_nan=False)


def test_a_collapsed_set_of_ten_thousand_is_looked_at_whole() -> None:
    draw = random.Random(0)
    items = [
        Item(f"What is the purpose of component {draw.randrange(9999)} in SQLite?", CHUNK)
        for _ in range(10_000)
    ]
    health = set_health(items, gold=GOLD)
    assert health["near_duplicates"]["share"] > 0.6
    assert {"same-opening", "near-duplicates", "self-repetition"} <= {*codes(health)}
