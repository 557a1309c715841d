"""Phase 3 of 5 · DispatcherLM: DSPy's language model, served by our rate-limited dispatcher.

As a script it makes one call and prints the answer, the account used, tokens and time:

    python custom_lm.py "What is 2+2?"
    python custom_lm.py --rehearsal "What is 2+2?"

Reads   llm_providers.toml and the keys it names
Writes  data/daily_request_log.json
Next    python optimize_pipeline.py
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and {"-h", "--help"} & set(sys.argv):  # before DSPy is imported
    from question_optimizer.cli import phase_parser

    phase_parser(__doc__, calls_llm=True, positional=("prompt", "what to ask")).parse_args()

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import dspy
from dspy import lm15
from dspy.utils.callback import BaseCallback

from question_optimizer import files
from question_optimizer.answers import AnswerStore, Remembered
from question_optimizer.dispatcher import Lease, LLMDispatcher, open_store
from question_optimizer.errors import TRY_LATER, USAGE, StopRun
from question_optimizer.failures import classify
from question_optimizer.hostile_text import storable
from question_optimizer.pinning import item_in_work, models_for
from question_optimizer.providers import LLMClientConfig, Role
from question_optimizer.usage import CallUsage, Usage, report
from question_optimizer.wire import ChatAnswer, ChatRequest, complete, send

T = TypeVar("T")
CHARACTERS_PER_TOKEN = 4.0  # the usual rule of thumb for English; reservations settle by real usage
_FOREIGN_POLL_SECONDS = (0.05, 2.0)  # a foreign dispatcher returns None when busy: ask again
_FOREIGN_ATTEMPTS = 5
_FOREIGN_PATIENCE_SECONDS = 900.0  # without a client: its accounts' day is spent, it cannot say so


class DispatcherLM(dspy.LM):
    """A `dspy.LM` whose calls go through a dispatcher, from any number of threads and loops.

    `dispatcher` is our `LLMDispatcher` or a foreign one with the same three coroutine methods
    (`get_available_client` may return None when all are busy; its caller holds
    `client_semaphores[name]` and `limiter`). `role` chooses among the accounts. Failures are
    DSPy's own errors; when no account can go on, `StopRun` ends the run.

    With `cache`, `answers` (in memory where none is given) serves what was answered before; without
    it they only keep the figures. For an item in work (`pinning.on_item`) the same one of the
    role's models is asked every time.

    The dispatcher retries and `answers` remembers, so DSPy must do neither. `copy` and `deepcopy`
    share both, so limits are never forked. Never `set_lm` this on a program that is to be saved.
    """

    def __init__(
        self,
        dispatcher: Any,
        *,
        role: Role | None = None,
        model: str | None = None,
        answers: AnswerStore | None = None,
        cache: bool = True,
        temperature: float | None = None,
        max_tokens: int | None = None,
        **kwargs: Any,
    ):
        if cache and answers is None:
            answers = AnswerStore(None)
        core = _Core(dispatcher, role, answers, recall=cache)
        super().__init__(
            model=model or _model_name(models_of(dispatcher, role), role),
            engine=_SyncEngine(core),
            async_engine=_AsyncEngine(core),
            num_retries=0,
            cache=False,
            temperature=temperature,
            max_tokens=max_tokens,
            callbacks=[_NamesCalls()] if answers else [],
            **kwargs,
        )
        self.dispatcher = dispatcher
        self._core = core

    def __deepcopy__(self, memo: dict[int, Any]) -> DispatcherLM:
        return self

    @property
    def asks_directly(self) -> bool:
        """Whether `ask_directly` may stand for a call: nothing is remembered."""
        return self._core.answers is None

    async def ask_directly(self, messages: Sequence[dict[str, Any]], **kwargs: Any) -> str:
        """The answer to rendered messages, without DSPy's layers between: a third less CPU a call.

        For programs in production. DSPy's history, callbacks and cache see nothing of it, `metered`
        blocks do. `kwargs` are the call's own, as DSPy gives them; the LM's stand behind them.
        """
        given = {**self.kwargs, **kwargs}
        system = "".join(str(m["content"]) for m in messages if m["role"] == "system")
        chat = ChatRequest(
            system=storable(system),
            messages=tuple(
                (m["role"], storable(str(m["content"]))) for m in messages if m["role"] != "system"
            ),
            **{name: given[name] for name in _DIRECT if given.get(name) is not None},
        )
        core = self._core
        remembered = await _at_home(core, core.asked(chat, "", core.pinned))
        report(f"direct-{next(_direct_calls)}", remembered.call, fresh=True)
        return remembered.answer.text


_DIRECT = ("temperature", "max_tokens", "top_p", "seed")
_direct_calls = itertools.count()


def models_of(dispatcher: Any, role: Role | None) -> list[str]:
    """The models behind a dispatcher, ours (those of `role`) or a foreign one, sorted."""
    if isinstance(dispatcher, LLMDispatcher):
        return dispatcher.models(role)
    return sorted({str(client.model) for client in getattr(dispatcher, "clients", [])})


def _model_name(models: Sequence[str], role: Role | None) -> str:
    # DSPy takes what follows the last slash for the model's family, and would refuse temperatures
    # for OpenAI's reasoning models although other accounts may serve the call.
    return f"dispatcher/{'+'.join(models) or 'models'}/as-{role or 'any'}"


class _Core:
    """One attempt as DSPy sees it; the dispatcher's waiting, retrying and failing over as it is."""

    def __init__(
        self, dispatcher: Any, role: Role | None, answers: AnswerStore | None, *, recall: bool
    ):
        self.dispatcher = dispatcher
        self.role = role
        self.answers = answers
        self.recall = recall
        self.models = models_of(dispatcher, role)
        self._weights = _weights(dispatcher, role)
        self._gone: set[str] = set()  # models that no account serves any more
        self._served_at = -math.inf  # when a foreign dispatcher last had a client

    def __deepcopy__(self, memo: dict[int, Any]) -> _Core:
        return self

    @property
    def is_ours(self) -> bool:
        return isinstance(self.dispatcher, LLMDispatcher)

    @property
    def secrets(self) -> list[str]:
        """The keys that no error may quote."""
        clients = getattr(self.dispatcher, "clients", None) or []
        return [str(key) for client in clients if (key := getattr(client, "api_key", None))]

    def recalled(self, key: str) -> Remembered | None:
        """What was answered before, if that may be used."""
        return self.answers.recall(key) if self.answers is not None and self.recall else None

    @property
    def pinned(self) -> tuple[str, ...]:
        """The models to ask for the item in work, best first; () where any will do."""
        item = item_in_work()
        return tuple(models_for(item, self._weights)) if item and self._weights else ()

    async def ask(
        self, chat: ChatRequest, pinned: tuple[str, ...] = ()
    ) -> tuple[ChatAnswer, Any, float]:
        """(answer, the account that gave it, seconds). Raises lm15 errors, or StopRun."""
        try:
            return await (self._ours(chat, pinned) if self.is_ours else self._foreign(chat))
        except Exception as error:
            failure = _lm15_error(error, self.secrets)
        # raised out here, so that nothing stands behind it: an SDK's own error may quote the key
        raise failure

    async def answer(
        self, request: lm15.Request, key: str, pinned: tuple[str, ...]
    ) -> tuple[Remembered, bool]:
        """The answer and what it took; whether it was given now, or before.

        Two that want the same at once ask once: the second finds what the first got.
        """
        chat = _chat_request(request)
        if self.answers is None or not self.recall:
            return await self.asked(chat, key, pinned), True
        while True:
            if (remembered := self.recalled(key)) is not None:
                return remembered, False
            asking = self.answers.in_flight.get(key)
            if asking is None or asking.get_loop() is not asyncio.get_running_loop():
                break  # nobody asks, or a loop that has ended did
            await asyncio.wait([asking])
        asking = self.answers.in_flight[key] = asyncio.get_running_loop().create_future()
        try:
            return await self.asked(chat, key, pinned), True
        finally:
            self.answers.in_flight.pop(key, None)
            asking.set_result(None)

    async def asked(self, chat: ChatRequest, key: str, pinned: tuple[str, ...]) -> Remembered:
        """Ask, and remember under `key` what came back and what it took."""
        answer, config, seconds = await self.ask(chat, pinned)
        usage = CallUsage(
            account=config.name,
            model=answer.model,
            input_tokens=answer.input_tokens or 0,
            output_tokens=answer.output_tokens or 0,
            cost=_cost(config, answer),
            # the rehearsal's speed is this machine's, and says nothing about any model
            seconds=0.0 if getattr(config, "kind", "") == "rehearsal" else round(seconds, 3),
        )
        answer = replace(answer, text=storable(answer.text))
        if self.answers is not None:
            self.answers.record(key, answer, usage)
        return Remembered(answer, usage)

    async def _ours(
        self, chat: ChatRequest, pinned: tuple[str, ...]
    ) -> tuple[ChatAnswer, Any, float]:
        """Ask the pinned model; the next one only when no account is left that serves it."""
        for model in pinned[:-1]:
            if model not in self._gone:
                try:
                    return await self._dispatched(chat, model)
                except StopRun as stop:
                    if stop.exit_code != USAGE:
                        raise
                    self._gone.add(model)
                except Exception as error:
                    if classify(error).kind != "transient":
                        raise
                    self._gone.add(model)  # it failed as often as a call may, on all its accounts
        return await self._dispatched(chat, pinned[-1] if pinned else None)

    async def _dispatched(
        self, chat: ChatRequest, model: str | None
    ) -> tuple[ChatAnswer, Any, float]:
        timing = {"seconds": 0.0}

        async def attempt(lease: Lease) -> ChatAnswer:
            started = time.perf_counter()
            answer = await send(lease.config, chat)
            timing["seconds"] = time.perf_counter() - started
            return answer

        answer, lease = await self.dispatcher.call(
            attempt,
            role=self.role,
            model=model,
            input_tokens=chat.characters / CHARACTERS_PER_TOKEN,
            max_tokens=chat.max_tokens,
        )
        return answer, lease.config, timing["seconds"]

    async def _foreign(self, chat: ChatRequest) -> tuple[ChatAnswer, Any, float]:
        """The existing application's contract: poll while busy, hold its semaphore and limiter."""
        attempts = 0
        while True:
            client = await self._free_client()
            started = time.perf_counter()
            try:
                async with _entered(self.dispatcher, client):
                    answer = await complete(
                        getattr(client, "raw_client", None) or client.client, client.model, chat
                    )
            except Exception as error:
                if classify(error).kind == "bad_request":  # the item's fault, not the client's
                    await self.dispatcher.release_client_on_success(client)
                    raise
                await self.dispatcher.release_client_on_failure(client)
                attempts += 1
                if attempts >= _FOREIGN_ATTEMPTS:
                    raise
            except BaseException:
                await self.dispatcher.release_client_on_success(client)
                raise
            else:
                await self.dispatcher.release_client_on_success(client)
                return answer, client, time.perf_counter() - started

    async def _free_client(self) -> Any:
        """Ask a foreign dispatcher until it has a client; StopRun when it has had none for long."""
        pause, longest = _FOREIGN_POLL_SECONDS
        asked_at = time.monotonic()
        while (client := await self.dispatcher.get_available_client()) is None:
            if _all_disabled(self.dispatcher):
                raise StopRun("every account of the dispatcher is disabled", exit_code=USAGE)
            if time.monotonic() - max(asked_at, self._served_at) > _FOREIGN_PATIENCE_SECONDS:
                raise StopRun(
                    "the dispatcher has handed out no client for "
                    f"{_FOREIGN_PATIENCE_SECONDS / 60:.0f} minutes; its quotas may be spent, "
                    "run again later",
                    exit_code=TRY_LATER,
                )
            await asyncio.sleep(pause)
            pause = min(longest, pause * 2)
        self._served_at = time.monotonic()
        return client


@contextlib.asynccontextmanager
async def _entered(dispatcher: Any, client: Any) -> AsyncIterator[None]:
    """Holds a foreign client's semaphore, then its limiter, in the order its own callers do."""
    semaphores = getattr(dispatcher, "client_semaphores", None) or {}
    async with contextlib.AsyncExitStack() as held:
        for gate in (semaphores.get(client.name), getattr(client, "limiter", None)):
            if gate is not None:
                await held.enter_async_context(gate)
        yield


def _all_disabled(dispatcher: Any) -> bool:
    clients = getattr(dispatcher, "clients", None)
    if not clients:
        return False
    return all(getattr(client, "disabled", False) for client in clients)


# ---------------------------------------------------------------------- DSPy's engine contract


class _CurrentCall:
    """The call DSPy is making in this context, and how many samples engines gave it so far."""

    def __init__(self, asked: dict[str, Any]):
        self._asked = asked
        self._samples = 0

    def next_key(self, models: Sequence[str]) -> str:
        """The key of its next sample: one call of DSPy's asks as often as it wants some (n > 1).

        The role is no part of it: the teacher's answer is the student's, if they are one model.
        """
        asked = {"models": list(models), **self._asked}
        if self._samples:
            asked["sample"] = self._samples
        self._samples += 1
        return files.digest(asked)


_current: ContextVar[_CurrentCall | None] = ContextVar("current_lm_call", default=None)


class _Engine:
    """What both engines share. DSPy reads capabilities off the engine; these need none."""

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = False
    supported_params = frozenset({"temperature", "max_tokens", "top_p", "stop", "seed"})

    def __init__(self, core: _Core):
        self._core = core

    def __deepcopy__(self, memo: dict[int, Any]) -> _Engine:
        return self

    def _asking(self, request: lm15.Request) -> tuple[str, tuple[str, ...]]:
        """(the call's key, the models to ask for it)."""
        pinned = self._core.pinned
        current = _current.get()
        if current is None:
            return _key_of_request(request), pinned
        return current.next_key(pinned[:1] or self._core.models), pinned

    def _report(self, key: str, answered: tuple[Remembered, bool]) -> lm15.Response:
        (answer, call), fresh = answered
        seen = [self._core.answers.seen] if self._core.answers else []
        report(key, call, *seen, fresh=fresh)
        return _response(answer)


class _SyncEngine(_Engine):
    """For DSPy's threads: each carries its call to the dispatcher's loop and waits there."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        key, pinned = self._asking(request)
        if (known := self._core.recalled(key)) is not None:
            return self._report(key, (known, False))  # without the way to the loop and back
        return self._report(key, self._run(self._core.answer(request, key, pinned)))

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if self._core.is_ours:
            return self._core.dispatcher.run(coroutine)
        home = _foreign_home(self._core.dispatcher, None)
        if asyncio._get_running_loop() is home:
            coroutine.close()
            raise RuntimeError("a blocking call on the dispatcher's own loop would wait for itself")
        return asyncio.run_coroutine_threadsafe(coroutine, home).result()


class _AsyncEngine(_Engine):
    """For coroutines. A foreign dispatcher's locks belong to the loop that first used them."""

    async def complete(self, request: lm15.Request) -> lm15.Response:
        key, pinned = self._asking(request)
        return self._report(
            key, await _at_home(self._core, self._core.answer(request, key, pinned))
        )


async def _at_home(core: _Core, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop where its dispatcher lives, from any loop."""
    if core.is_ours:
        return await core.dispatcher.run_async(coroutine)
    here = asyncio.get_running_loop()
    home = _foreign_home(core.dispatcher, here)
    if home is here:
        return await coroutine
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, home))


class _NamesCalls(BaseCallback):
    """Says which call of DSPy's an engine serves: what was asked, rollout included.

    A rollout id is how DSPy asks for another answer to the same prompt; no engine gets to see it.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _NamesCalls:
        return self

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        _current.set(_CurrentCall({"lm": instance.kwargs, "call": inputs}))

    def on_lm_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        _current.set(None)


def _key_of_request(request: lm15.Request) -> str:
    return files.digest([request.model, str(request.system), [str(m) for m in request.messages]])


def _chat_request(request: lm15.Request) -> ChatRequest:
    config = request.config
    return ChatRequest(
        system=storable(_text(request.system)),
        messages=tuple((m.role, storable(_text(m.parts))) for m in request.messages),
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        top_p=config.top_p,
        stop=tuple(config.stop or ()),
        seed=config.seed,
    )


def _text(parts: Any) -> str:
    if parts is None or isinstance(parts, str):
        return parts or ""
    return "".join(getattr(part, "text", "") or "" for part in parts)


def _response(answer: ChatAnswer) -> lm15.Response:
    return lm15.Response(
        id=answer.id or None,
        model=answer.model or "unknown",
        message=lm15.Message.assistant(answer.text),
        finish_reason="length" if answer.truncated else "stop",
        usage=lm15.Usage(input_tokens=answer.input_tokens, output_tokens=answer.output_tokens),
    )


def _lm15_error(error: Exception, secrets: Iterable[str]) -> Exception:
    """`error` as DSPy expects it; what it does not know it neither maps nor explains."""
    if isinstance(error, lm15.LM15Error):
        return error
    failure = classify(error, secrets=secrets)
    text = failure.reason
    if any(mark in text.lower() for mark in ("context length", "context_length", "too long")):
        return lm15.ContextLengthError(text, status=failure.status)
    kinds: dict[str, type[lm15.LM15Error]] = {
        "rate_limited": lm15.RateLimitError,
        "account_out": lm15.AuthError,
        "bad_request": lm15.InvalidRequestError,
    }
    if "timeout" in text.lower():
        return lm15.TimeoutError(text, status=failure.status)
    return kinds.get(failure.kind, lm15.ServerError)(text, status=failure.status)


def _weights(dispatcher: Any, role: Role | None) -> dict[str, float]:
    """{model: its share of the items}; {} where there is no choice, or no way to make it.

    By calls a day if every account has such a limit, so that no model's day is over before the
    others'; else by the accounts' weights. Configured figures only: what limits are learnt changes
    from run to run.
    """
    if not isinstance(dispatcher, LLMDispatcher) or len(dispatcher.models(role)) < 2:
        return {}
    serving = [c for c in dispatcher.clients if role is None or role in c.roles]
    daily = all(config.daily_limit for config in serving)
    weights: dict[str, float] = {}
    for config in serving:
        share = float(config.daily_limit or 0) if daily else config.weight
        weights[config.model] = weights.get(config.model, 0.0) + share
    return weights


def _cost(config: Any, answer: ChatAnswer) -> float:
    if isinstance(config, LLMClientConfig):
        return config.cost(answer.input_tokens or 0, answer.output_tokens or 0)
    return 0.0


_homes: WeakKeyDictionary[Any, asyncio.AbstractEventLoop] = WeakKeyDictionary()
_homes_lock = threading.Lock()


def _foreign_home(
    dispatcher: Any, running: asyncio.AbstractEventLoop | None
) -> asyncio.AbstractEventLoop:
    """The loop that a foreign dispatcher's locks are bound to: the first that used it and still
    runs. `running` is the caller's own; a thread without one starts a background loop."""
    with _homes_lock:
        home = _homes.get(dispatcher)
        if home is None or not home.is_running():
            home = running or _background_loop()
            _homes[dispatcher] = home
        return home


def _background_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    started = threading.Event()
    loop.call_soon(started.set)
    threading.Thread(target=loop.run_forever, name="foreign-lm", daemon=True).start()
    started.wait()
    return loop


# ---------------------------------------------------------------------- what scripts open


class LanguageModels:
    """The LMs of a run by role, over one dispatcher; answers and logs live in `data_dir`.

    Use as a context manager. The store of answers is what makes a killed run resume without paying
    twice.
    """

    def __init__(
        self,
        accounts: Sequence[LLMClientConfig],
        *,
        data_dir: Path,
        max_cost: float | None = None,
        max_calls: int | None = None,
        limits_url: str | None = None,
        cache: bool = True,
    ):
        self.dispatcher = LLMDispatcher(
            accounts,
            max_cost=max_cost,
            max_calls=max_calls,
            store=open_store(data_dir / "daily_request_log.json", url=limits_url),
        )
        self.rehearsal = any(account.kind == "rehearsal" for account in accounts)
        self.answers = AnswerStore(data_dir / "cache" / "answers.sqlite" if cache else None)
        self._cache = cache

    @property
    def usage(self) -> Usage:
        """What the run took so far, answers remembered from earlier runs included."""
        return self.answers.seen.total

    def lm(self, role: Role) -> DispatcherLM:
        """A fresh LM for `role`."""
        return DispatcherLM(self.dispatcher, role=role, answers=self.answers, cache=self._cache)

    def __enter__(self) -> LanguageModels:
        return self

    def __exit__(self, *exc: object) -> None:
        self.dispatcher.close()
        self.answers.close()


def main(argv: list[str] | None = None) -> int:
    from config import accounts_of, load_settings
    from question_optimizer.cli import dry_run_line, phase_parser
    from question_optimizer.errors import UserError

    parser = phase_parser(__doc__, calls_llm=True, positional=("prompt", "what to ask"))
    args = parser.parse_args(argv)
    settings = load_settings(args)
    accounts = accounts_of(settings)
    if args.dry_run:
        print(dry_run_line(accounts, {"student": 1}, characters=len(args.prompt)))
        return 0
    with LanguageModels(
        accounts,
        data_dir=settings.data_dir,
        max_cost=args.max_cost,
        limits_url=settings.secret_of("limits_url"),
        cache=False,
    ) as models:
        request = ChatRequest(system="", messages=(("user", args.prompt),))
        core = _Core(models.dispatcher, None, None, recall=False)
        try:
            answer, config, seconds = models.dispatcher.run(core.ask(request))
        except lm15.LM15Error as error:
            raise UserError(f"the call failed: {str(error).splitlines()[0]}") from None
    tokens = f"{answer.input_tokens or 0} + {answer.output_tokens or 0} tokens"
    print(answer.text)
    note = " (rehearsal: not a real model)" if models.rehearsal else ""
    print(f"{config.name}: {answer.model}, {tokens}, {seconds:.2f} s{note}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    from question_optimizer.cli import run

    sys.exit(run(main))
