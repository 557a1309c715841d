"""Which model serves an item: shares in proportion, stable, the same everywhere."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter

import pytest

from conftest import ROOT, clean_environment
from question_optimizer.pinning import item_in_work, models_for, on_item

ITEMS = [f"item {number}" for number in range(10_000)]


def first_of(weights: dict[str, float]) -> dict[str, str]:
    return {item: models_for(item, weights)[0] for item in ITEMS}


# ---------------------------------------------------------------------- shares


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1.0},
        {"a": 1.0, "b": 1.0},
        {"a": 1.0, "b": 2.0, "c": 7.0},
        {"a": 500.0, "b": 14_400.0},
        {"a": 1e-6, "b": 1e-6},
        {f"model-{n}": 1.0 + n for n in range(12)},
    ],
)
def test_each_model_is_first_for_its_share_of_the_items(weights: dict[str, float]) -> None:
    counts = Counter(first_of(weights).values())
    total = sum(weights.values())
    for model, weight in weights.items():
        share = weight / total
        deviation = (len(ITEMS) * share * (1 - share)) ** 0.5
        assert abs(counts[model] - len(ITEMS) * share) <= 4 * deviation + 1e-9


def test_every_place_in_the_order_is_shared_out_as_the_first_is() -> None:
    """Whoever stands in for a model that is gone: the others, in proportion to their weights."""
    weights = {"a": 1.0, "b": 3.0, "c": 6.0}
    orders = [models_for(item, weights) for item in ITEMS]
    assert all(sorted(order) == sorted(weights) for order in orders)
    seconds = Counter(order[1] for order in orders if order[0] == "c")
    assert seconds["b"] / seconds.total() == pytest.approx(0.75, abs=0.03)


def test_without_a_model_there_is_no_order() -> None:
    assert models_for("item", {}) == []


# ---------------------------------------------------------------------- stability


def test_a_model_that_goes_moves_only_its_own_items() -> None:
    weights = {"a": 2.0, "b": 1.0, "c": 1.0}
    before, after = first_of(weights), first_of({"a": 2.0, "b": 1.0})
    for item in ITEMS:
        if before[item] == "c":
            order = models_for(item, weights)
            assert after[item] == order[1], "the next in the order takes over"
        else:
            assert after[item] == before[item]


def test_a_model_that_comes_takes_its_share_and_moves_nothing_else() -> None:
    before, after = first_of({"a": 1.0, "b": 1.0}), first_of({"a": 1.0, "b": 1.0, "c": 1.0})
    moved = [item for item in ITEMS if before[item] != after[item]]
    assert {after[item] for item in moved} == {"c"}
    assert len(moved) / len(ITEMS) == pytest.approx(1 / 3, abs=0.02)


def test_a_model_that_grows_only_gains() -> None:
    before, after = first_of({"a": 1.0, "b": 1.0}), first_of({"a": 1.0, "b": 4.0})
    assert all(after[item] == "b" for item in ITEMS if before[item] == "b")


def test_the_unit_of_the_weights_and_their_order_do_not_matter() -> None:
    one = first_of({"a": 1.0, "b": 2.0, "c": 3.0})
    assert one == first_of({"c": 3.0, "a": 1.0, "b": 2.0})
    assert one == first_of({"a": 1000.0, "b": 2000.0, "c": 3000.0})


def test_another_process_says_the_same() -> None:
    weights = {"gpt": 1.0, "claude": 2.5, "llama": 0.5}
    strange = ["", "ünïcödé", "\0", "a\0b", "\ud800", "x" * 100_000]
    code = (
        "import sys, json; from question_optimizer.pinning import models_for; "
        "print(json.dumps([models_for(i, json.loads(sys.argv[1])) "
        "for i in json.load(sys.stdin)]))"
    )
    for hash_seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(weights)],
            input=json.dumps([*ITEMS[:200], *strange]),
            env=clean_environment(PYTHONHASHSEED=hash_seed),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(done.stdout) == [models_for(i, weights) for i in ITEMS[:200] + strange]


# ---------------------------------------------------------------------- the item in work


def test_items_nest_and_an_error_ends_them() -> None:
    assert item_in_work() is None
    with on_item("outer"):
        with pytest.raises(KeyError), on_item("inner"):
            assert item_in_work() == "inner"
            raise KeyError
        assert item_in_work() == "outer"
    assert item_in_work() is None


def test_threads_and_tasks_have_an_item_each() -> None:
    seen: dict[str, str | None] = {}
    both = threading.Barrier(2)

    def thread(name: str) -> None:
        with on_item(name):
            both.wait(10)
            seen[name] = item_in_work()

    threads = [threading.Thread(target=thread, args=(name,)) for name in ("one", "two")]
    for one in threads:
        one.start()
    for one in threads:
        one.join()

    async def task(name: str) -> None:
        with on_item(name):
            await asyncio.sleep(0)
            seen[name] = item_in_work()

    async def tasks() -> None:
        await asyncio.gather(task("three"), task("four"))

    asyncio.run(tasks())
    assert seen == {name: name for name in ("one", "two", "three", "four")}
    assert item_in_work() is None
