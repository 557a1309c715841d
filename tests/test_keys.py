"""Keys appear in no log, error, repr, snapshot or file, however a provider quotes them back."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import pickle
import pprint
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import dspy
import pytest

from conftest import ROOT, LLMServer, Script
from custom_lm import DispatcherLM
from question_optimizer import dispatcher as dispatcher_module
from question_optimizer.dispatcher import LLMClientConfig, LLMDispatcher
from question_optimizer.errors import USAGE, StopRun
from question_optimizer.wire import ChatRequest, send

PLAIN = "a1b2c3d4e5f6plainkey"  # no prefix that gives it away as a key
KEYS = [PLAIN, "sk-ant-api03-AbCd1234EfGh5678", "weird.key/with+signs=="]
TRANSPORTS = ["direct", "sdk"]
WAYS = [(kind, transport) for kind in ("openai", "anthropic") for transport in TRANSPORTS]
FAULTS = ["401", "429", "500", "malformed", "error_in_200"]


class Gossip(LLMServer):
    """Quotes the caller's key in whatever it says.

    The address says how: below `/401/v1` every answer is a 401, below `/500/v1` the first two are
    500, and those after them a 400.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.fail = self._quote

    def _quote(self, number: int) -> tuple[int, dict[str, str], str] | None:
        path, sent, _ = self.requests[number - 1]
        names = {name.lower(): value for name, value in sent.items()}
        key = names.get("x-api-key") or names["authorization"].removeprefix("Bearer ")
        fault = path.split("/")[1]
        if fault == "well":
            return None
        self.asked[fault] += 1
        said = f"Incorrect API key provided: {key}. You may not use ({key})."
        error = {"message": said, "type": "invalid_request_error", "code": key, "param": key}
        body = json.dumps({"type": "error", "error": error})
        # the SDKs log an answer's headers at DEBUG, as they came; no provider quotes a key there
        headers = {"www-authenticate": 'Bearer realm="keys"'}
        if fault == "401":
            return 401, headers, body
        if self.asked[fault] > 2:
            return 400, headers, body
        return {
            "429": (429, {**headers, "retry-after-ms": "20"}, body),
            "500": (500, headers, body),
            "malformed": (200, headers, body[:-9]),
            "error_in_200": (200, headers, body),
            "400": (400, headers, body),
        }[fault]


@pytest.fixture
def gossip() -> Iterator[Gossip]:
    server = Gossip()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def nowhere() -> str:
    """The address of a server that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return f"http://127.0.0.1:{gone.getsockname()[1]}"


def account(url: str, key: str = PLAIN, **fields: Any) -> LLMClientConfig:
    base_url = url if fields.get("kind") == "anthropic" else f"{url}/v1"
    given = {"name": f"it-{KEYS.index(key)}", "model": "model-x", "concurrency": 4, **fields}
    return LLMClientConfig(base_url=base_url, api_key=key, **given)


def assert_no_key_in(text: object) -> None:
    said = str(text)
    for key in KEYS:
        found = said.find(key)
        assert found < 0, f"…{said[max(0, found - 300) : found + len(key) + 100]}…"


def assert_no_key_below(folder: Path) -> list[str]:
    """The names of the files that were looked through."""
    names = []
    for path in sorted(folder.rglob("*")):
        assert_no_key_in(path.relative_to(folder))
        if path.is_file():
            names.append(str(path.relative_to(folder)))
            content = path.read_bytes()
            for key in KEYS:
                assert key.encode() not in content, path
                assert key.encode("utf-16-le") not in content, path
    return names


def test_a_key_in_a_text_a_file_or_a_database_would_be_found(tmp_path: Path) -> None:
    assert_no_key_below(tmp_path)
    for key in KEYS:
        with pytest.raises(AssertionError):
            assert_no_key_in({"said": [key]})
        below = tmp_path / "cache" / ".hidden"
        below.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(below / "some.sqlite")) as db, db:
            db.execute("CREATE TABLE t (a)")
            db.execute("INSERT INTO t VALUES (?)", [json.dumps({"k": key})])
        with pytest.raises(AssertionError):
            assert_no_key_below(tmp_path)
        (below / "some.sqlite").unlink()


# ---------------------------------------------------------------------- the script

TABLE = """
[[accounts]]
name = "account-{number}"
model = "model-x"
api_key_env = "KEY_{number}"
base_url = "{url}"
kind = "{kind}"
transport = "{transport}"
"""


def providers_file(*urls: str, kind: str = "openai", transport: str = "direct") -> str:
    end = "/v1" if kind == "openai" else ""
    return "".join(
        TABLE.format(number=number, url=url + end, kind=kind, transport=transport)
        for number, url in enumerate(urls)
    )


ENVIRON = {f"KEY_{number}": key for number, key in enumerate(KEYS)}


def assert_told_no_key(done: CompletedProcess[str], folder: Path) -> list[str]:
    assert_no_key_in(done.stdout)
    assert_no_key_in(done.stderr)
    return assert_no_key_below(folder)


@pytest.mark.parametrize("fault", [*FAULTS, "refused connection", "well"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_script_tells_and_writes_no_key(
    script: Script, gossip: Gossip, tmp_path: Path, nowhere: str, transport: str, fault: str
) -> None:
    urls = {
        "well": [f"{gossip.url}/well"],
        "401": [f"{gossip.url}/401"] * 3,
        # what comes after the first two ends the run at once
        "refused connection": [nowhere, nowhere, f"{gossip.url}/400"],
    }.get(fault, [f"{gossip.url}/{fault}"] * 3)
    (tmp_path / "llm_providers.toml").write_text(providers_file(*urls, transport=transport))
    done = script("custom_lm.py", "What is 2+2?", PYTHONASYNCIODEBUG="1", **ENVIRON)
    names = assert_told_no_key(done, tmp_path)
    if fault == "well":
        assert (done.returncode, done.stdout) == (0, "4\n")
        assert any(name.endswith("daily_request_log.json") for name in names)
    else:
        assert done.returncode == USAGE
        assert "Incorrect API key provided: ***" in done.stderr
    assert any("daily_request_log.json" in name for name in names)


def test_a_key_from_the_env_file_stays_there(
    script: Script, gossip: Gossip, tmp_path: Path
) -> None:
    work = tmp_path
    (work / "llm_providers.toml").write_text(providers_file(f"{gossip.url}/401"))
    (work / ".env").write_text(f"KEY_0={PLAIN}\n")
    done = script("custom_lm.py", "What is 2+2?")
    assert done.returncode == USAGE
    (work / ".env").unlink()
    assert_told_no_key(done, work)


@pytest.mark.parametrize("flag", ["--print-config", "--dry-run"])
def test_what_a_script_says_of_its_settings_holds_no_key(
    script: Script, gossip: Gossip, tmp_path: Path, flag: str
) -> None:
    (tmp_path / "llm_providers.toml").write_text(providers_file(*[f"{gossip.url}/well"] * 3))
    done = script("custom_lm.py", "What is 2+2?", flag, **ENVIRON)
    assert done.returncode == 0
    assert_told_no_key(done, tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        f"redis://:{PLAIN}@127.0.0.1:1/0",
        f"redis://user:{PLAIN}@127.0.0.1:1/0",
        f"redis://:{PLAIN}@127.0.0.1:port/0",
        f"http://:{PLAIN}@127.0.0.1:1/0",
    ],
)
def test_the_password_of_the_limits_server_is_not_told(
    script: Script, gossip: Gossip, tmp_path: Path, address: str
) -> None:
    (tmp_path / "llm_providers.toml").write_text(providers_file(f"{gossip.url}/well"))
    done = script("custom_lm.py", "2+2?", QO_LIMITS_URL=address, KEY_0=KEYS[1])
    assert done.returncode == USAGE
    assert len(done.stderr.strip().splitlines()) == 1
    assert_told_no_key(done, tmp_path)


# ---------------------------------------------------------------------- a program of DSPy's

PROGRAM = '''
"""Calls a model through every fault, with everything that can log logging at DEBUG."""

import asyncio
import logging
import os
import sys
import traceback
from pathlib import Path

logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
import dspy

from custom_lm import LanguageModels
from question_optimizer import accounts as accounts_module
from question_optimizer import dispatcher as dispatcher_module
from question_optimizer.errors import StopRun
from question_optimizer.providers import load_providers

dispatcher_module.MAX_ATTEMPTS = 3
dispatcher_module._RETRY_SECONDS = (0.01, 0.02)
assert hasattr(accounts_module, "_REST_SECONDS")
accounts_module._REST_SECONDS = (0.01, 0.02)
LOGGERS = "dspy openai anthropic httpx httpx2 httpcore aiohttp asyncio litellm LiteLLM".split()
for name in [*LOGGERS, *logging.root.manager.loggerDict]:
    logging.getLogger(name).setLevel(logging.DEBUG)
    logging.getLogger(name).propagate = True
dspy.enable_logging()


class Question(dspy.Signature):
    """Answer the question."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


async def from_a_coroutine(program):
    return await program.acall(question="What is 2+2?")


def evaluated(program):
    devset = [dspy.Example(question=f"What is {n}+2?").with_inputs("question") for n in range(4)]
    return dspy.Evaluate(
        devset=devset,
        metric=lambda e, p: True,
        num_threads=2,
        provide_traceback=True,
        max_errors=99,
        display_progress=True,
    )(program)


def run(fault):
    """Everything that can be said of one fault."""
    accounts = load_providers(Path(f"{fault}.toml"), os.environ)
    program = dspy.Predict(Question)
    with LanguageModels(accounts, data_dir=Path("data") / fault) as models:
        lm = models.lm("student")
        with dspy.context(lm=lm, track_usage=True):
            for go in (
                lambda: program(question="What is 2+2?"),
                lambda: asyncio.run(from_a_coroutine(program)),
                lambda: lm("What is 2+2?"),
                lambda: evaluated(program),
            ):
                try:
                    print(go())
                except (Exception, StopRun) as error:
                    logging.exception("it failed: %r", error, stack_info=True)
                    print(repr(error), error, error.args, vars(error))
                    traceback.print_exc()
                    last = error
        print(accounts, lm, repr(lm), lm.history, lm.kwargs)
        dspy.inspect_history(n=20)
        dispatcher = models.dispatcher
        print(dispatcher.snapshot(), dispatcher.live_line(), dispatcher.resting(), dispatcher)
        print(dispatcher.prometheus())
        program.save(f"data/{fault}/program.json")
        program.save(f"data/{fault}/program", save_program=True)
    print("ran", fault)
    return last if fault != "well" else None


errors = [run(fault) for fault in sys.argv[1:]]
print("now it crashes")
try:
    raise errors[0]
except BaseException as error:
    raise RuntimeError(f"a bug of ours, while {error!r} was handled") from error
'''


@pytest.mark.parametrize(("kind", "transport"), WAYS)
def test_a_program_of_dspys_tells_and_writes_no_key(
    script: Script, gossip: Gossip, tmp_path: Path, nowhere: str, kind: str, transport: str
) -> None:
    how = {"kind": kind, "transport": transport}
    for fault in (*FAULTS, "400", "well"):
        path = tmp_path / f"{fault}.toml"
        path.write_text(providers_file(*[f"{gossip.url}/{fault}"] * 3, **how))
    (tmp_path / "gone.toml").write_text(providers_file(nowhere, nowhere, nowhere, **how))
    (tmp_path / "program.py").write_text(PROGRAM)
    faults = [*FAULTS, "400", "gone", "well"]
    done = script(
        tmp_path / "program.py",
        *faults,
        PYTHONPATH=str(ROOT),
        PYTHONASYNCIODEBUG="1",
        OPENAI_LOG="debug",
        ANTHROPIC_LOG="debug",
        **ENVIRON,
    )
    names = assert_told_no_key(done, tmp_path)
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    assert ran == [f"ran {fault}" for fault in faults], done.stderr[-3000:]
    assert done.returncode == 1
    assert "RuntimeError: a bug of ours" in done.stderr
    assert "DEBUG:" in done.stderr
    assert "Incorrect API key provided: ***" in done.stderr
    for ending in ("answers.sqlite", "daily_request_log.json", "program.json"):
        assert any(name.endswith(ending) for name in names), ending


# ---------------------------------------------------------------------- objects


def test_the_repr_of_an_account_is_without_its_key() -> None:
    for key in KEYS:
        config = account("http://127.0.0.1:9", key)
        for said in (repr(config), str(config), f"{config}", pprint.pformat([config])):
            assert_no_key_in(said)


async def test_the_repr_of_a_lease_is_without_the_key() -> None:
    for key in KEYS:
        dispatcher = LLMDispatcher([account("http://127.0.0.1:9", key)])
        lease = await dispatcher.get_available_client()
        for said in (repr(lease), str(lease), f"{lease}", pprint.pformat([lease]), lease.name):
            assert_no_key_in(said)
        with pytest.raises(AttributeError) as raised:
            _ = lease.no_such_thing
        assert_no_key_in(repr(raised.value))
        await dispatcher.release_client_on_success(lease)
        with pytest.raises(RuntimeError, match="released twice") as twice:
            await dispatcher.release_client_on_success(lease)
        assert_no_key_in(repr(twice.value))


async def test_the_repr_of_a_connection_is_without_the_key() -> None:
    for key in KEYS:
        config = account("http://127.0.0.1:9", key)
        assert_no_key_in([config.client, config.session])
        await config.aclose()


@pytest.fixture
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher_module, "MAX_ATTEMPTS", 2)
    monkeypatch.setattr(dispatcher_module, "_RETRY_SECONDS", (0.01, 0.02))


@pytest.mark.parametrize("fault", [*FAULTS, "400"])
@pytest.mark.parametrize(("kind", "transport"), WAYS)
def test_what_can_be_seen_of_a_dispatcher_is_without_keys(
    gossip: Gossip, few_attempts: None, kind: str, transport: str, fault: str
) -> None:
    accounts = [
        account(f"{gossip.url}/{fault}", key, kind=kind, transport=transport) for key in KEYS
    ]
    with LLMDispatcher(accounts, seed=0) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        for _ in range(3):
            with pytest.raises(BaseException):  # noqa: B017 - whatever it is
                lm("What is 2+2?")
        assert_no_key_in(dispatcher.snapshot())
        assert_no_key_in(json.dumps(dispatcher.snapshot()))
        assert_no_key_in(dispatcher.live_line() + dispatcher.resting())
        assert_no_key_in(dispatcher.prometheus())
        assert_no_key_in([dispatcher, lm, lm.history, lm.kwargs])
        assert sum(account["failed"] for account in dispatcher.snapshot()) >= 1


# ---------------------------------------------------------------------- exceptions


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and all that it came from, shown in a traceback or not."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or any(one is other for other in seen):
            continue
        seen.append(one)
        yield one
        waiting += [one.__cause__, one.__context__]
        waiting += getattr(one, "exceptions", ())


def assert_no_key_in_chain(error: BaseException) -> None:
    for one in chain_of(error):
        for said in (str(one), repr(one), one.args, vars(one), getattr(one, "__notes__", "")):
            assert_no_key_in(f"{type(one).__name__}: {said}")


def caught(do: Callable[[], Any]) -> BaseException:
    with pytest.raises(BaseException) as raised:
        do()
    return raised.value


def through_dspy(gossip: Gossip, fault: str, how: str, **fields: Any) -> list[BaseException]:
    """What DSPy raises, the first two times."""
    with LLMDispatcher([account(f"{gossip.url}/{fault}", **fields)], seed=0) as dispatcher:
        lm = DispatcherLM(dispatcher, cache=False)
        if how == "thread":
            with ThreadPoolExecutor(1) as threads:
                return [threads.submit(caught, lambda: lm("2+2?")).result() for _ in range(2)]
        if how == "program":
            with dspy.context(lm=lm):
                predict = dspy.Predict("question -> answer")
                return [caught(lambda: predict(question="2+2?")) for _ in range(2)]

        async def main() -> list[BaseException]:
            errors = []
            for _ in range(2):
                try:
                    await lm.acall("2+2?")
                except BaseException as error:
                    errors.append(error)
            await dispatcher.aclose()
            return errors

        return asyncio.run(main())


HOW = ["thread", "program", "coroutine"]
SAID = [*FAULTS, "400"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("fault", SAID)
@pytest.mark.parametrize(("kind", "transport"), WAYS)
def test_what_dspy_raises_says_no_key_nor_does_what_stands_behind_it_nor_a_copy(
    gossip: Gossip, few_attempts: None, kind: str, transport: str, fault: str, how: str
) -> None:
    errors = through_dspy(gossip, fault, how, kind=kind, transport=transport)
    assert len(errors) == 2
    assert isinstance(errors[0], StopRun) == (fault == "401")
    for error in errors:
        assert_no_key_in_chain(error)
        for copied in (copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))):
            with contextlib.suppress(TypeError):  # DSPy's own hold what cannot be copied
                assert_no_key_in_chain(copied(error))
        with contextlib.suppress(TypeError):
            assert PLAIN.encode() not in pickle.dumps(error)


def test_the_end_of_a_run_can_be_copied_and_sent_to_another_process() -> None:
    stop = StopRun("no account left", exit_code=USAGE)
    for other in (copy.deepcopy(stop), pickle.loads(pickle.dumps(stop))):
        assert (str(other), other.exit_code) == (str(stop), USAGE)


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("fault", SAID)
async def test_an_attempt_of_ours_that_fails_says_no_key(
    gossip: Gossip, kind: str, fault: str
) -> None:
    """`wire.send` knows the key, and its error says "Holds no key"."""
    config = account(f"{gossip.url}/{fault}", kind=kind)
    try:
        with pytest.raises(Exception) as raised:
            await send(config, ChatRequest("", (("user", "What is 2+2?"),)))
    finally:
        await config.aclose()
    assert_no_key_in_chain(raised.value)


@pytest.mark.parametrize(("kind", "transport"), WAYS)
async def test_a_broken_line_says_no_key(nowhere: str, kind: str, transport: str) -> None:
    config = account(nowhere, kind=kind, transport=transport)
    try:
        with pytest.raises(Exception) as raised:
            await send(config, ChatRequest("", (("user", "What is 2+2?"),)))
    finally:
        await config.aclose()
    assert_no_key_in_chain(raised.value)


async def test_a_server_that_speaks_no_http_makes_no_error_with_a_key() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    config = account(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(Exception) as raised:
        await send(config, ChatRequest("", (("user", "What is 2+2?"),)))
    await config.aclose()
    server.close()
    assert_no_key_in_chain(raised.value)


@pytest.mark.parametrize("fault", [*FAULTS, "400"])
@pytest.mark.parametrize(("kind", "transport"), WAYS)
def test_no_logger_of_this_process_is_told_a_key(
    gossip: Gossip,
    few_attempts: None,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    transport: str,
    fault: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "anthropic", "httpx", "httpcore", "aiohttp", "asyncio", "dspy"):
        caplog.set_level(logging.DEBUG, logger=name)
    through_dspy(gossip, fault, "thread", kind=kind, transport=transport)
    for record in caplog.records:
        assert_no_key_in(f"{record.name}: {record.getMessage()} {record.args}")
    assert_no_key_in(caplog.text)
