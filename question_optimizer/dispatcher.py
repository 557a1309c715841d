"""The dispatcher: every LLM call waits here until an account may make it.

    limits      requests and tokens per minute and per day, calls at once; kept by `limits`, where
                the server's refusals and headers correct what was configured
    choice      weighted round robin among the accounts that could start now; otherwise wait for the
                first one ready, the oldest waiter first, woken by one timer, never by polling
    failures    a 429 rests that account and costs the item nothing; timeouts, 5xx and broken
                connections go to another account, ahead of the queue; an account that keeps failing
                rests until one probe succeeds; a bad key or unknown model takes the account out
    money       running spend, and a ceiling that refuses the call which would pass it

All state lives on one event loop, the home loop; processes share limits through the log's file.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from datetime import UTC
from pathlib import Path
from typing import Any, Protocol, TypeVar

from question_optimizer.accounts import Account
from question_optimizer.errors import BUDGET, TRY_LATER, USAGE, StopRun, UserError
from question_optimizer.failures import Failure, classify
from question_optimizer.generation.forecast import Allowance
from question_optimizer.home_loop import HomeLoop
from question_optimizer.limit_file import SharedLimitStore
from question_optimizer.limit_store import LimitStore
from question_optimizer.limits import Ended, Meter, Need
from question_optimizer.metrics import prometheus
from question_optimizer.providers import LLMClientConfig, Role

__all__ = ["LLMClientConfig", "LLMDispatcher", "Lease", "open_store"]

T = TypeVar("T")
Answer = TypeVar("Answer", bound="Metered")
MAX_ATTEMPTS = 10  # of one item, by faults that are not rate limits
_RETRY_SECONDS = (0.5, 8.0)  # first and longest wait of an item beyond the retry budget
_RETRY_SHARE, _RETRY_SAVED = 0.1, 10.0  # retries at once: a tenth of the traffic, saved up to ten
_PATIENCE_SECONDS = 900.0  # all accounts resting longer than this: come back later
_GRACE_SECONDS = 10.0  # for calls in flight when a run ends
_LEARNT_WORKERS = 64  # where the number in flight is to be learnt
_MOST_TOO_LARGE = 3  # refusals of an item that is larger than a minute's limit
_NOTABLE_LAG_SECONDS, _LONGEST_LAG_SECONDS = 0.01, 0.3
_EPSILON = 1e-6


class Metered(Protocol):
    """An answer that tells what it used; None where the provider does not say."""

    @property
    def input_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...


class _Ask:
    """Somebody who wants to make a call, and since when. Tokens are as far as can be guessed."""

    __slots__ = (
        "avoid",
        "future",
        "kept",
        "max_tokens",
        "model",
        "role",
        "serving",
        "since",
        "used",
    )

    def __init__(
        self,
        role: Role | None,
        model: str | None,
        input_tokens: float,
        output_tokens: float,
        max_tokens: int | None,
        since: float,
        avoid: str | None = None,
    ):
        self.role = role
        self.model = model
        self.max_tokens = max_tokens
        self.since = since
        self.avoid = avoid
        self.future: asyncio.Future[Lease] | None = None
        self.serving: list[Account] | None = None
        if max_tokens and max_tokens < output_tokens:
            output_tokens = max_tokens
        self.used = Need(1.0, input_tokens + output_tokens, input_tokens, output_tokens)
        self.kept = self.used
        if max_tokens:
            self.kept = Need(1.0, input_tokens + max_tokens, input_tokens, float(max_tokens))

    def need(self, config: LLMClientConfig) -> Need:
        """What the call takes by the account's rule of counting."""
        return self.kept if config.token_rule == "reserved" else self.used  # noqa: S105

    def kept_output(self, config: LLMClientConfig) -> float:
        """Tokens that count against the account whether the model writes them or not."""
        reserved = config.token_rule == "reserved"  # noqa: S105 - no secret
        return float(self.max_tokens or 0) if reserved else 0.0


class Lease:
    """The right to make one call on one account; give it back by one of the release methods.

    Has the fields of its account's configuration, so that code written for a shared client object
    (`lease.client`, `lease.name`, `lease.model`, …) keeps working.
    """

    def __init__(
        self,
        config: LLMClientConfig,
        need: Need,
        started_at: float,
        account: Account,
        generation: int,
        day: float,
        kept_output: float = 0.0,
        reserved_cost: float = 0.0,
    ):
        self.config = config
        self.need = need  # what was reserved
        self.started_at = started_at
        self.account = account
        self.generation = generation  # of the home loop
        self.day = day  # the account's
        self.kept_output = kept_output  # tokens that count whether they are written or not
        self.reserved_cost = reserved_cost
        self.probe = False  # whether it tells if a failing account is well again
        self.released = False

    def __repr__(self) -> str:
        return f"Lease({self.config.name!r}, model={self.config.model!r})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "config":
            raise AttributeError(name)
        return getattr(self.config, name)

    @property
    def raw_client(self) -> Any:
        """The SDK's client; the existing application wraps its `client` and keeps this one bare."""
        return self.config.client

    @property
    def limiter(self) -> None:
        """Nothing more to wait for: the dispatcher has waited already."""
        return None


class LLMDispatcher:
    """Hands out accounts, one lease a call, within every limit.

        dispatcher = LLMDispatcher(configs, log_file=Path("data/daily_request_log.json"))
        answer, lease = await dispatcher.call(send, role="student", input_tokens=900)

    or, as in the existing application, `lease = await dispatcher.get_available_client()`, the call,
    and `await dispatcher.release_client_on_success(lease)` or `…_on_failure(lease)`. It waits where
    that application's own dispatcher returns None, and raises `errors.StopRun`, a BaseException,
    where waiting is of no use: quotas spent until a named time, budget reached, no account left.

    With a `log_file` all processes that name it share the accounts' limits; `store` keeps them
    elsewhere. `max_cost` is a ceiling on this object's spend, `max_calls` on the calls it starts,
    retries included. `clock` (seconds, monotonic) and `wall` (seconds since 1970) are arguments so
    that tests need no time.
    """

    def __init__(
        self,
        configs: Sequence[LLMClientConfig],
        log_file: str | Path | None = None,
        *,
        max_cost: float | None = None,
        max_calls: int | None = None,
        store: LimitStore | None = None,
        clock: Callable[[], float] | None = None,
        wall: Callable[[], float] = time.time,
        seed: int | None = None,
    ):
        if not configs:
            raise UserError("no LLM account configured")
        if max_cost is not None and (unpriced := [c.name for c in configs if not c.priced]):
            raise UserError(
                f"--max-cost cannot work: account {unpriced[0]!r} has no input_price, output_price"
            )
        self.clients = list(configs)
        self.max_cost = max_cost
        self.max_calls = max_calls
        self._clock = clock or time.monotonic
        self._wall = wall
        self._random = random.Random(seed).random
        self._store = store or open_store(Path(log_file) if log_file else None, wall)
        limits = self._store.open(self.clients, self._clock(), self.wake)
        self._accounts = [
            Account(config, kept, self._random)
            for config, kept in zip(configs, limits, strict=True)
        ]
        self._serving: dict[tuple[Role | None, str | None], list[Account]] = {}
        self._queues: dict[tuple[Role | None, str | None], deque[_Ask]] = {}
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._aimed_at = 0.0
        self._lag = 0.0  # seconds by which timers are late, on the average
        self._blocked_until = -math.inf  # until then only the end of a call lets another start
        self._turn = 0.0  # at which the latest call was granted
        self._reserved_cost = 0.0
        self._output_guess = 300.0  # tokens; a moving average of what answers really took
        self._retries = _RETRY_SAVED  # that may still go at once
        self._stop: StopRun | None = None
        self._generation = 0
        self._home = HomeLoop(self._move_in, thread_name="llm-dispatcher")

    # ------------------------------------------------------------------ interface of the host

    @property
    def client_semaphores(self) -> dict[str, contextlib.AbstractAsyncContextManager[None]]:
        """The existing application's callers enter one a call; a lease already holds the slot."""
        return {config.name: contextlib.nullcontext() for config in self.clients}

    async def get_available_client(
        self,
        role: Role | None = None,
        *,
        model: str | None = None,
        tokens: float = 0.0,
        max_tokens: int | None = None,
        avoid: str | None = None,
    ) -> Lease:
        """Wait for an account that may make a call now, and reserve the call.

        `tokens` is the call's estimated input and output together, `max_tokens` the most that it
        lets the model write. An account named `avoid` is taken only if no other is ready. Raises
        StopRun when no account can serve today, when the budget would be passed, or after `stop`.
        """
        guess = min(self._output_guess, tokens)
        ask = _Ask(role, model, tokens - guess, guess, max_tokens, self._clock(), avoid)
        if self._home.is_here():
            return await self._acquire(ask)
        return await self._acquire_from_elsewhere(ask)

    async def release_client_on_success(self, lease: Lease, answer: Metered | None = None) -> None:
        """The call succeeded; settle its reservation by what `answer` says it used."""
        if not self._home.is_here():
            await self._carry(self.release_client_on_success(lease, answer))
            return
        used, used_in, used_out = lease.need, 0, 0
        if answer is not None:
            used_in, used_out = _figure(answer.input_tokens), _figure(answer.output_tokens)
        if used_in or used_out:
            charged = float(max(used_out, lease.kept_output))
            used = Need(1.0, used_in + charged, float(used_in), charged)
            self._output_guess += 0.1 * (used_out - self._output_guess)
        reported = float(used_in + used_out) or None  # else what was reserved stands
        account, meter, now = self._end(lease, used, tokens=reported)
        account.ok += 1
        account.failures = 0
        account.input_tokens += used_in
        account.output_tokens += used_out
        if account.priced:
            in_doubt = (used.input_tokens, used.output_tokens)
            paid = (used_in, used_out) if reported else in_doubt
            account.spend += lease.config.cost(*paid)
        if self._retries < _RETRY_SAVED:
            self._retries += _RETRY_SHARE
        if meter.taught:
            with account.limits.edit() as meter:
                meter.slots.grow(int(meter.in_flight), now)
                for pace in meter.paces:
                    pace.grow(now, self._random)
        if announced := getattr(answer, "announced", ()):
            account.heed(announced, now)
        self._store.export_if_due()
        self._serve(account)

    async def release_client_on_failure(
        self, lease: Lease, failure: Failure | Exception | None = None
    ) -> None:
        """The call failed. What failed decides whether the account rests, and for how long."""
        if not self._home.is_here():
            await self._carry(self.release_client_on_failure(lease, failure))
            return
        if isinstance(failure, Exception):
            failure = classify(failure, secrets=[lease.config.api_key])
        failure = failure or Failure("transient", "call failed")
        # What broke down half-way may have been counted, tokens that were turned away were not.
        used = lease.need if failure.kind == "transient" else Need()
        account, _, now = self._end(lease, used)
        account.failed_with(failure, lease.need, lease.started_at, now, self._wall())
        self._store.export_if_due()
        self._serve()

    # ------------------------------------------------------------------ calls

    async def call(
        self,
        send: Callable[[Lease], Awaitable[Answer]],
        *,
        role: Role | None = None,
        model: str | None = None,
        input_tokens: float = 0.0,
        max_tokens: int | None = None,
    ) -> tuple[Answer, Lease]:
        """Make one call, on whichever account can, and again on another where that may help.

        `send` makes one attempt on the home loop. A rate limit costs the item nothing; other
        passing faults are tried up to 10 times. Raises `send`'s own exception where the item is at
        fault or the attempts are used up, StopRun where no account is left.
        """
        if not self._home.is_here():
            return await self.run_async(
                self.call(
                    send, role=role, model=model, input_tokens=input_tokens, max_tokens=max_tokens
                )
            )
        ask = _Ask(role, model, input_tokens, self._output_guess, max_tokens, self._clock())
        attempts = too_large = 0
        while True:
            lease = await self._acquire(ask)
            try:
                answer = await send(lease)
            except Exception as error:
                failure = classify(error, secrets=[lease.config.api_key])
                await self.release_client_on_failure(lease, failure)
                attempts += failure.kind == "transient"
                too_large += failure.kind == "rate_limited" and lease.account.exceeds(lease.need)
                if too_large >= _MOST_TOO_LARGE:  # no waiting makes it smaller
                    raise
                if failure.kind == "bad_request" or attempts >= MAX_ATTEMPTS:
                    raise
                lease.account.retried += 1
                ask.avoid = lease.config.name
                if failure.kind == "transient":
                    await self._pause_before_retry(ask, attempts)
            except BaseException:  # cancelled: the slot is free again, the provider has counted
                self._end(lease, lease.need)
                self._serve()
                raise
            else:
                await self.release_client_on_success(lease, answer)
                return answer, lease

    async def _pause_before_retry(self, ask: _Ask, attempts: int) -> None:
        """At once on another account while the retry budget lasts, else later and jittered."""
        others = any(not a.out and a.config.name != ask.avoid for a in self._serving_for(ask))
        if others and self._retries >= 1:
            self._retries -= 1
            return
        first, longest = _RETRY_SECONDS
        wait = min(longest, first * 2.0 ** (attempts - 1))
        await asyncio.sleep(wait * (0.5 + 0.5 * self._random()))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the home loop from a thread that has no loop of its own, and wait."""
        if self._home.is_here(settle=False):
            coroutine.close()
            raise RuntimeError("a blocking call on the dispatcher's own loop would wait for itself")
        future = self._home.carry(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def run_async(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the home loop from any loop."""
        if self._home.is_here():
            return await coroutine
        return await self._carry(coroutine)

    async def _carry(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._home.carry(coroutine))

    def stop(self, reason: StopRun) -> None:
        """No further call starts: whoever asks or waits for one gets `reason`. From any thread."""
        self._stop = reason
        self.wake()

    def wake(self) -> None:
        """Look again who can be served; from any thread."""
        self._home.call_soon(self._serve)

    def close(self, *, patience_seconds: float = _GRACE_SECONDS) -> None:
        """Let calls in flight end (at most 10 s), cancel the rest, close connections, write counts.

        No call starts any more; a thread that still asks for one gets StopRun. Without patience
        nothing in flight is waited for; what was counted is written all the same.
        """
        self._stop = self._stop or StopRun("the dispatcher is closed", exit_code=USAGE)
        self.wake()  # a host's own loop is not ended here, but nobody shall wait on it
        self._home.close(self._wind_up, reason=self._stop, patience=patience_seconds)
        self._store.close()

    async def _wind_up(self) -> None:
        """On the background loop: nobody may be left waiting for an answer that cannot come."""
        self._serve()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=_GRACE_SECONDS)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.aclose()

    async def aclose(self) -> None:
        """Close the running loop's connections and write what was counted."""
        for config in self.clients:
            with contextlib.suppress(Exception):
                await config.aclose()
        self._store.flush()

    def __enter__(self) -> LLMDispatcher:
        return self

    def __copy__(self) -> LLMDispatcher:
        return self  # two would use every limit twice

    def __deepcopy__(self, memo: dict[int, Any]) -> LLMDispatcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------------ what can be seen

    @property
    def spend(self) -> float:
        """What the calls so far cost, in the accounts' currency."""
        return sum(account.spend for account in self._accounts)

    @property
    def calls(self) -> int:
        """Calls started so far."""
        return sum(account.started for account in self._accounts)

    @property
    def waiting(self) -> int:
        """Who waits for an account."""
        return self._waiting

    def slots(self, role: Role | None = None) -> int:
        """How many calls of `role` can usefully be asked for at once."""
        serving = [a for a in self._accounts if a.serves(role)]
        return sum(a.config.concurrency or _LEARNT_WORKERS for a in serving)

    def calls_per_minute(self, role: Role | None = None) -> float:
        """Calls a minute that the accounts of `role` allow, as learnt; inf where one has no limit.

        An account that is out allows none.
        """
        serving = [a for a in self._accounts if a.serves(role) and not a.out]
        return sum(a.limits.meter.paces[0].limit * 60.0 for a in serving)

    def allowances(self, role: Role | None = None) -> list[Allowance]:
        """What each account of `role` may still do, for a forecast; none of those that are out.

        Limits on tokens count as calls by what calls have used on the average so far.
        """
        serving = [a for a in self._accounts if a.serves(role) and not a.out]
        answered = max(1, sum(a.ok for a in self._accounts))
        used_in = sum(a.input_tokens for a in self._accounts) / answered
        used_out = sum(a.output_tokens for a in self._accounts) / answered
        usual = Need(1.0, used_in + used_out, used_in, used_out)
        now, wall = self._clock(), self._wall()
        return [account.allowance(now, wall, usual) for account in serving]

    def models(self, role: Role | None = None) -> list[str]:
        """The models that serve `role`, sorted."""
        return sorted({a.config.model for a in self._accounts if a.serves(role)})

    def resting(self) -> str:
        """Which accounts rest, how long yet and why, or do not answer; '' if all is well."""
        now = self._clock()
        troubles = (account.trouble(now) for account in self._accounts if not account.out)
        return ", ".join(filter(None, troubles))

    def live_line(self) -> str:
        """For a progress bar: who waits, rests, is out or spent, and why; '' if all is well."""
        now = self._clock()
        spent = [a.config.name for a in self._accounts if not a.out and a.limits.spent()]
        parts = [
            f"{self._waiting} waiting" if self._waiting else "",
            self.resting(),
            f"{', '.join(spent)} spent today" if spent else "",
            ", ".join(account.trouble(now) for account in self._accounts if account.out),
        ]
        return " · ".join(part for part in parts if part)

    def account_line(self, most: int = 6) -> str:
        """For a progress bar: each account's calls today and its pace, or why there are none.

        Of more accounts than `most` the first ones and how many more there are.
        """
        now, wall = self._clock(), self._wall()
        lines = [account.line(now, wall) for account in self._accounts[:most]]
        if (more := len(self._accounts) - most) > 0:
            lines.append(f"{more} more")
        return " · ".join(lines)

    def snapshot(self) -> list[dict[str, Any]]:
        """One plain dict per account: counts, tokens, spend, limits as learnt, state, and why it
        rests or is out, in words of our own. No key.

        Rates are per minute, times in seconds, None is no limit. `requests_today` and
        `tokens_today` are those of all processes that share the log.
        """
        now = self._clock()
        return [
            account.seen(now) | {"waiting": self._waiting_for(account)}
            for account in self._accounts
        ]

    def prometheus(self) -> str:
        """The snapshot as Prometheus text, for an endpoint or a textfile collector."""
        return prometheus(self.snapshot())

    def _waiting_for(self, account: Account) -> int:
        return sum(
            len(queue)
            for (role, model), queue in self._queues.items()
            if account.serves(role, model)
        )

    # ------------------------------------------------------------------ home loop

    def _move_in(self) -> None:
        """Another loop is home now: whoever waited or called on the former one is gone."""
        self._generation += 1
        self._queues.clear()
        self._waiting = 0
        self._timer, self._timer_at = None, math.inf
        self._blocked_until = -math.inf
        self._reserved_cost = 0.0
        for account in self._accounts:
            account.in_flight = 0
            account.probing = False
            account.limits.forget_calls()

    async def _acquire_from_elsewhere(self, ask: _Ask) -> Lease:
        """For a caller on another loop, who may give up before or after the grant."""
        given_up = False
        waiting: list[asyncio.Task[Any]] = []

        async def acquire() -> Lease:
            task = asyncio.current_task()
            if task is not None:
                waiting.append(task)
            if given_up:
                raise asyncio.CancelledError
            return await self._acquire(ask)

        carried = self._home.carry(acquire())
        try:
            return await asyncio.shield(asyncio.wrap_future(carried))
        except asyncio.CancelledError:
            given_up = True
            self._home.call_soon(lambda: waiting and waiting[0].cancel())
            carried.add_done_callback(self._give_back_unwanted)
            raise

    def _give_back_unwanted(self, future: Future[Lease]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        lease = future.result()

        def give_back() -> None:
            self._undo(lease)
            self._serve()

        self._home.call_soon(give_back)

    # ------------------------------------------------------------------ granting

    async def _acquire(self, ask: _Ask) -> Lease:
        if not self._waiting:  # nobody to overtake
            granted = self._try_grant(ask, self._clock())
            if isinstance(granted, Lease):
                self._relax()
                return granted
        ask.future = asyncio.get_running_loop().create_future()
        if self._enqueue(ask):
            self._serve()
        try:
            return await ask.future
        except asyncio.CancelledError:
            if (
                ask.future.done() and not ask.future.cancelled() and not ask.future.exception()
            ):  # granted and cancelled in the same tick
                self._undo(ask.future.result())
            ask.future.cancel()
            self._serve()
            raise

    def _enqueue(self, ask: _Ask) -> bool:
        """By age: an item that is tried again stands before all who came after it. Returns whether
        it is the first of its queue; what the others wait for is known."""
        key = (ask.role, ask.model)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        self._waiting += 1
        if not queue or queue[-1].since <= ask.since:
            queue.append(ask)
            return len(queue) == 1
        place = next(n for n, other in enumerate(queue) if other.since > ask.since)
        queue.insert(place, ask)
        return place == 0

    def _serve(self, changed: Account | None = None) -> None:
        """Grant whatever can be granted now, oldest waiter first; arm the timer for the rest.

        After the end of a call on the account `changed` only that one is looked at, as long as the
        others are known not to be ready.
        """
        if not self._waiting:
            return
        now = self._clock()
        if now >= self._blocked_until:
            changed = None
        soonest = math.inf if changed is None else self._blocked_until
        queues = [queue for queue in self._queues.values() if queue]
        while queues:
            queue = queues[0] if len(queues) == 1 else min(queues, key=_oldest)
            at = self._serve_first(queue, now, changed)
            if at is not None:  # the others of this queue wait behind it
                if at < soonest:
                    soonest = at
                queues.remove(queue)
            elif changed is not None and changed.limits.full:
                break
            elif not queue:
                queues.remove(queue)
        if not self._waiting:
            soonest = -math.inf
            self._relax()
        elif soonest == self._blocked_until and changed is not None:
            return  # the timer stands
        self._blocked_until = soonest
        self._arm(soonest if self._waiting else math.inf, now)

    def _relax(self) -> None:
        """Nobody waits: give back what was reserved ahead on shared accounts."""
        if self._store.shared:
            for account in self._accounts:
                account.limits.relax()

    def _serve_first(self, queue: deque[_Ask], now: float, changed: Account | None) -> float | None:
        """Take the oldest waiter off its queue if it can be served; else when it could be."""
        ask = queue[0]
        future = ask.future
        if future is not None and not future.done():
            try:
                granted = self._try_grant(ask, now, changed)
            except BaseException as error:
                future.set_exception(error)
            else:
                if not isinstance(granted, Lease):
                    return granted
                future.set_result(granted)
        queue.popleft()
        self._waiting -= 1
        return None

    def _try_grant(self, ask: _Ask, now: float, changed: Account | None = None) -> Lease | float:
        """A lease, or the time at which there might be one (inf: only a release can help)."""
        if self._stop is not None:
            raise self._stop
        if self._store.problem is not None:
            raise self._store.problem
        while True:
            account, soonest = self._choose(ask, now, changed)
            if account is None:
                return soonest
            if self.max_calls is not None and self.calls >= self.max_calls:
                raise self._calls_made()
            cost = self._cost(account, ask) if self.max_cost is not None else 0.0
            need = ask.need(account.config)
            if account.limits.take(need, now):
                return self._grant(account, ask, need, cost, now)

    def _choose(
        self, ask: _Ask, now: float, changed: Account | None
    ) -> tuple[Account | None, float]:
        """The ready account whose turn it is; otherwise None and when the first will be ready."""
        if self.max_cost is not None:
            changed = None
        second_best, soonest, patient, costly = None, math.inf, changed is not None, False
        serving = ask.serving or self._serving_for(ask)
        if (
            changed is not None
            and changed in serving
            and not (changed.out or changed.limits.daily or changed.config.name == ask.avoid)
            and changed.ready_at(ask, now) <= now + _EPSILON
        ):
            return changed, now  # as below, and almost always so
        if changed is not None:
            among = [changed] if changed in serving else []
        else:
            among = sorted(serving, key=_turn)
        # To ask a shared account is to reserve a call: a lone waiter asks the likeliest first.
        likely: dict[Account, float] | None = None
        if changed is None and self._store.shared and self._waiting <= 1:
            likely = {account: account.likely_at(now) for account in among}
            among.sort(key=lambda a: (likely[a], a.config.name == ask.avoid))
        for account in among:
            if likely and soonest < math.inf and soonest <= likely[account]:
                break
            if account.out or (account.limits.daily and account.limits.spent()):
                patient = patient and changed is None  # look at all: this may have been the last
                if not account.out:
                    soonest = min(soonest, now + account.limits.seconds_left())
                continue
            if self.max_cost is not None and not self._affords(account, ask):
                costly = True
                continue
            at = account.ready_at(ask, now)
            if at <= now + _EPSILON:
                if account.config.name != ask.avoid:
                    return account, now
                second_best = account
            if not patient:
                patient = at - now < _PATIENCE_SECONDS or (
                    account.resting_until() - now < _PATIENCE_SECONDS
                )
            elif changed is not None and account.resting_until() - now >= _PATIENCE_SECONDS:
                patient = False  # look at all: may be that everyone rests so long
            if at < soonest:
                soonest = at
        if second_best is None and costly and not patient and not self._reserved_cost:
            raise self._budget_reached()
        if second_best is None and not patient and not costly:
            if changed is not None:
                return self._choose(ask, now, None)
            raise self._nobody_left(serving, ask, now)
        return second_best, soonest

    def _serving_for(self, ask: _Ask) -> list[Account]:
        key = (ask.role, ask.model)
        if key not in self._serving:
            self._serving[key] = [a for a in self._accounts if a.serves(*key)]
        ask.serving = self._serving[key]
        return ask.serving

    def _cost(self, account: Account, ask: _Ask) -> float:
        """What the call may cost: as much as it may write, where that is known."""
        return account.config.cost(ask.kept.input_tokens, ask.kept.output_tokens)

    def _affords(self, account: Account, ask: _Ask) -> bool:
        """Whether the call stays below the ceiling, together with those in flight."""
        most = self.max_cost if self.max_cost is not None else math.inf
        return self.spend + self._reserved_cost + self._cost(account, ask) <= most

    def _budget_reached(self) -> StopRun:
        return StopRun(
            f"budget reached: {self.spend:.4f} of {self.max_cost:g} spent, and the next call "
            "could pass it; raise --max-cost to go on",
            exit_code=BUDGET,
        )

    def _calls_made(self) -> StopRun:
        return StopRun(
            f"{self.calls} calls made, as many as --max-calls allows; everything is saved, run "
            "the same command with a higher number to go on",
            exit_code=BUDGET,
        )

    def _grant(self, account: Account, ask: _Ask, need: Need, cost: float, now: float) -> Lease:
        # start-time fair queueing: an account that was idle or resting gets no stored-up turns
        self._turn = max(account.turn, self._turn)
        account.turn = self._turn + 1.0 / account.config.weight
        account.in_flight += 1
        if not account.started:
            account.first_at = now
        account.started += 1
        self._reserved_cost += cost
        config = account.config
        kept = ask.kept_output(config) if ask.max_tokens else 0.0
        day = account.limits.meter.day
        lease = Lease(config, need, now, account, self._generation, day, kept, cost)
        if account.failing:
            account.probing = lease.probe = True
        return lease

    # ------------------------------------------------------------------ ends of calls

    def _end(
        self, lease: Lease, used: Need, *, tokens: float | None = None, counted: bool = True
    ) -> tuple[Account, Meter, float]:
        """Take a lease back. `tokens` are those of the day, where they differ from `used`."""
        if lease.released:
            raise RuntimeError(f"lease on account {lease.config.name!r} released twice")
        lease.released = True
        account: Account = lease.account
        if lease.probe:
            account.probing = False
        ours = lease.generation == self._generation  # else its slot was freed with its loop
        if lease.reserved_cost and ours:
            left = self._reserved_cost - lease.reserved_cost
            self._reserved_cost = left if left > 1e-9 else 0.0  # some wait for the last to go
        if ours:
            account.in_flight -= 1
        tokens = used.tokens if tokens is None else tokens
        ended = Ended(lease.need, used, tokens, lease.started_at, lease.day, ours, not counted)
        return account, account.limits.end(ended), self._clock()

    def _undo(self, lease: Lease) -> None:
        """Never sent: give everything back."""
        if lease.released:
            return
        account, _, _ = self._end(lease, Need(0.0), counted=False)
        account.started -= 1

    # ------------------------------------------------------------------ ends of runs

    def _nobody_left(self, serving: list[Account], ask: _Ask, now: float) -> StopRun:
        what = f"role {ask.role!r}" if ask.role else "any role"
        if ask.model:
            what += f" and model {ask.model!r}"
        left = [account for account in serving if not account.out]
        reasons = "; ".join(f"{a.config.name}: {a.out}" for a in serving if a.out)
        if not left:
            return StopRun(
                f"no account left for {what}: {reasons or 'none configured'}", exit_code=USAGE
            )
        until = min(account.usable_again(now, self._wall()) for account in left)
        names = ", ".join(account.config.name for account in left)
        all_spent = all(account.limits.spent() for account in left)
        state = "daily quota of every account" if all_spent else "every account rests or is spent"
        return StopRun(
            f"{state} for {what}{' is spent' if all_spent else ''} ({names}) until "
            f"{until.astimezone(UTC):%Y-%m-%d %H:%M} UTC; everything is saved, run the same "
            "command then" + (f" ({reasons})" if reasons else ""),
            exit_code=TRY_LATER,
            until=until,
        )

    def _arm(self, at: float, now: float) -> None:
        """One timer, for the earliest time at which a waiter could be served."""
        if at < math.inf:
            at = min(at, now + 3600.0)  # another process may spend a quota, midnight frees one
        if self._timer is not None:
            if now < self._timer_at <= at:
                return  # it will look again, and arm the next
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        if at < math.inf:
            wait = max(0.0, at - now)
            # A busy loop is late for its timers, and a place in a shared line is soon lost.
            early = self._lag if self._lag > _NOTABLE_LAG_SECONDS else 0.0
            wait = wait - early if wait > 2 * early else wait / 2
            self._aimed_at = now + wait
            self._timer = asyncio.get_running_loop().call_later(wait, self._fire)

    def _fire(self) -> None:
        late = min(_LONGEST_LAG_SECONDS, max(0.0, self._clock() - self._aimed_at))
        self._lag += 0.3 * (late - self._lag)
        self._timer, self._timer_at = None, math.inf
        self._serve()


def open_store(
    log: Path | None, wall: Callable[[], float] = time.time, *, url: str | None = None
) -> LimitStore:
    """Limits on the server at `url`, else in a file beside `log`, else in memory.

    Windows has none of the locks that the shared file needs: there each process is on its own.
    """
    if url:
        from question_optimizer.limit_redis import RedisLimitStore

        return RedisLimitStore(url, wall=wall)
    if log is None or os.name == "nt":
        return LimitStore(wall)
    return SharedLimitStore(log, wall)


def _figure(tokens: Any) -> int:
    """A count as a provider reports it; 0 where that is none."""
    if type(tokens) is int:
        return tokens if tokens > 0 else 0
    return int(tokens) if isinstance(tokens, float) and 0 <= tokens < 1e12 else 0


def _turn(account: Account) -> float:
    return account.turn


def _oldest(queue: deque[_Ask]) -> float:
    return queue[0].since
