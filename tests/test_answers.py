"""The store of answers: what was paid for once is there, whatever happens to the process."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest

from conftest import ROOT, LLMServer, clean_environment
from custom_lm import LanguageModels
from question_optimizer.answers import AnswerStore, Remembered
from question_optimizer.errors import StopRun, UserError
from question_optimizer.providers import LLMClientConfig
from question_optimizer.usage import CallUsage
from question_optimizer.wire import ChatAnswer

ANSWER = ChatAnswer("text", "said-model", "id-1", True, 12, 3)
CALL = CallUsage("account", "model", 12, 3, 0.25, 1.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "answers.sqlite"


def numbers(path: Path, keys: range) -> None:
    """Record an answer for each of the keys."""
    store = AnswerStore(path)
    for key in keys:
        store.record(f"{key:064}", ChatAnswer(f"answer {key} " + "x" * 300, "m"), CALL)
    store.close()


# ---------------------------------------------------------------------- remembering


@pytest.mark.parametrize("on_disk", [True, False])
def test_an_answer_comes_back_with_the_figures_of_its_call(path: Path, on_disk: bool) -> None:
    store = AnswerStore(path if on_disk else None)
    assert store.recall("key") is None
    store.record("key", ANSWER, CALL)
    assert store.recall("key") == Remembered(ANSWER, CALL)
    store.record("key", ChatAnswer("other", "m"), CALL)
    assert store.recall("key").answer.text == "other"  # type: ignore[union-attr]
    assert not store.seen.calls, "to remember is not to use"
    store.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "two\nlines\r\n\tand a tab",
        "a nul \0 within",
        "'; DROP TABLE answers; --",
        "🜁 ünïcödé",
        "x" * 1_000_000,
    ],
)
def test_any_text_that_a_model_may_send_is_kept(path: Path, text: str) -> None:
    store = AnswerStore(path)
    store.record("key", ChatAnswer(text, "m"), CALL)
    store.close()
    again = AnswerStore(path)
    kept = again.recall("key")
    again.close()
    assert kept is not None
    assert kept.answer.text == text


def test_an_answer_with_half_a_character_is_an_answer(
    llm_server: Callable[..., LLMServer], tmp_path: Path
) -> None:
    server = llm_server(lambda messages: "caf\ud83d")
    account = LLMClientConfig("a", "m", f"{server.url}/v1", "sk-key", concurrency=2)
    with LanguageModels([account], data_dir=tmp_path) as models:
        assert models.lm("student")("hello") == ["caf\ufffd"]
        assert models.lm("student")("hello") == ["caf\ufffd"]
    assert len(server.requests) == 1


def test_looking_changes_no_byte_of_the_file(path: Path) -> None:
    numbers(path, range(5))
    before = path.read_bytes()
    store = AnswerStore(path)
    assert store.recall(f"{3:064}") is not None
    store.close()
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


# ---------------------------------------------------------------------- several at once


def test_many_threads_share_one_store(path: Path) -> None:
    store = AnswerStore(path)

    def both(key: int) -> str:
        store.record(str(key % 50), ChatAnswer(f"answer {key % 50}", "m"), CALL)
        found = store.recall(str(key % 50))
        assert found is not None
        return found.answer.text

    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(both, range(500)))
    assert said == [f"answer {key % 50}" for key in range(500)]
    store.close()


_WRITER = """
import sys
from pathlib import Path
import question_optimizer.answers as answers
from question_optimizer.usage import CallUsage
from question_optimizer.wire import ChatAnswer
store = answers.AnswerStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
call = CallUsage("account", "model", 12, 3, 0.25, 1.5)
for key in range(int(sys.argv[2]), int(sys.argv[3])):
    store.record(str(key), ChatAnswer(f"answer {key}", "m"), call)
    assert store.recall(str(key)).answer.text == f"answer {key}"
    print(key, flush=True)
sys.stdin.readline()
"""


def writer(path: Path, begin: int, end: int) -> subprocess.Popen[str]:
    """A process that says each key once its answer is recorded."""
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path), str(begin), str(end)],
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def say(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_share_a_file_lose_nothing(path: Path) -> None:
    """All open a file that is not there yet, at the same time, and write overlapping keys."""
    processes = [writer(path, 100 * n, 100 * n + 150) for n in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        say(process)
    for process in processes:
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    store = AnswerStore(path)
    for key in range(450):
        found = store.recall(str(key))
        assert found is not None and found.answer.text == f"answer {key}"
    store.close()


def test_what_was_recorded_survives_a_kill_right_afterwards(path: Path) -> None:
    process = writer(path, 0, 10_000)
    assert process.stdout is not None
    say(process)
    said = [process.stdout.readline().strip() for _ in range(40)][1:]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = AnswerStore(path)
    for key in said:
        assert store.recall(key) is not None, f"{key} was recorded and is gone"
    store.close()


_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, ".")
from custom_lm import LanguageModels
from question_optimizer.providers import LLMClientConfig
account = LLMClientConfig("a", "m", sys.argv[1], "sk-key", concurrency=2)
with LanguageModels([account], data_dir=Path(sys.argv[2])) as models:
    for number in range(100):
        print(models.lm("student")(f"question {number}")[0], flush=True)
"""


def test_a_run_that_is_killed_right_after_an_answer_does_not_pay_it_again(
    llm_server: Callable[..., LLMServer], tmp_path: Path
) -> None:
    server = llm_server(lambda messages: f"on {messages[-1]['content']}")
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN, f"{server.url}/v1", str(tmp_path)],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for number in range(5):
        assert process.stdout.readline() == f"on question {number}\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = len(server.requests)
    account = LLMClientConfig("a", "m", f"{server.url}/v1", "sk-key", concurrency=2)
    with LanguageModels([account], data_dir=tmp_path) as models:
        said = [models.lm("student")(f"question {number}") for number in range(5)]
        assert models.usage.calls == 5 and models.answers.seen.fresh == 0
    assert said == [[f"on question {number}"] for number in range(5)]
    assert len(server.requests) == before


def test_one_flight_for_one_question_whatever_role_object_or_thread_asks(
    llm_server: Callable[..., LLMServer], tmp_path: Path
) -> None:
    server = llm_server(lambda messages: "yes")
    account = LLMClientConfig("a", "m", f"{server.url}/v1", "sk-key", concurrency=8)
    with LanguageModels([account], data_dir=tmp_path) as models:

        def ask(number: int) -> Any:
            with dspy.context():
                return models.lm("student")(f"question {number % 4}")

        with ThreadPoolExecutor(32) as pool:
            assert list(pool.map(ask, range(200))) == [["yes"]] * 200
        assert models.usage.calls == 4 and models.answers.seen.fresh == 4
        assert not models.answers.in_flight
    assert len(server.requests) == 4


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", ["no database", "cut", "a folder", "another's", "newer"])
def test_a_file_that_is_none_of_ours_is_refused_and_left_alone(path: Path, damage: str) -> None:
    numbers(path, range(200))
    if damage == "no database":
        path.write_bytes(b"certainly no SQLite file\n" * 100)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    elif damage == "another's":
        path.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE theirs (x)")
            other.execute("PRAGMA user_version=1")
        other.close()
    else:
        with sqlite3.connect(path) as ours:
            ours.execute("PRAGMA user_version=99")
        ours.close()
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(UserError) as refused:
        AnswerStore(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_an_empty_file_is_a_new_store(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    numbers(path, range(3))
    store = AnswerStore(path)
    assert store.recall(f"{2:064}") is not None
    store.close()


def test_damage_that_shows_in_use_ends_the_run_and_names_the_file(path: Path) -> None:
    """The first half is whole, so that opening notices nothing."""
    numbers(path, range(400))
    whole = bytearray(path.read_bytes())
    for page in range(len(whole) // 8192, len(whole) // 4096):
        whole[page * 4096 : page * 4096 + 300] = b"\xff" * 300
    path.write_bytes(whole)
    store = AnswerStore(path)
    try:
        with pytest.raises((StopRun, UserError), match=r"answers\.sqlite"):
            for key in range(400):
                store.recall(f"{key:064}")
    finally:
        store.close()


def test_a_lost_store_costs_money_and_nothing_else(
    llm_server: Callable[..., LLMServer], tmp_path: Path
) -> None:
    server = llm_server(lambda messages: "yes")
    account = LLMClientConfig("a", "m", f"{server.url}/v1", "sk-key", concurrency=8)
    for _ in range(2):
        with LanguageModels([account], data_dir=tmp_path) as models:
            assert models.lm("student")("question") == ["yes"]
        shutil.rmtree(tmp_path / "cache")
    assert len(server.requests) == 2
