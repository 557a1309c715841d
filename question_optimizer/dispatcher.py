"""The dispatcher: every LLM call waits here until an account may make it.

    limits      requests and tokens per minute (GCRA, paced), requests per UTC day (kept in a JSON
                file, safe with several processes), calls at once
    choice      round robin among the accounts that could start now; otherwise wait for the first
                one ready, first come first served per role, woken by one timer, never by polling
    failures    a 429 rests that account and costs the item nothing; timeouts, 5xx and broken
                connections go to another account; a bad key or unknown model takes the account out
    money       running spend, and a ceiling that refuses the call which would pass it

All state lives on one event loop, the home loop. A call from another loop or thread is carried
over, so that limits hold however many loops and threads a program has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from question_optimizer import files
from question_optimizer.errors import BUDGET, TRY_LATER, USAGE, StopRun, UserError
from question_optimizer.providers import Failure, LLMClientConfig, Role, classify

__all__ = ["LLMClientConfig", "LLMDispatcher", "Lease"]

T = TypeVar("T")
Answer = TypeVar("Answer", bound="Metered")
_MAX_ATTEMPTS = 5  # of one item, by faults that are not rate limits
_REST_AFTER_FAILURES = 3
_REST_SECONDS = (1.0, 60.0)  # first and longest rest of an account that keeps failing
_FLUSH_SECONDS = 1.0
_GRACE_SECONDS = 10.0  # for calls in flight when a run ends
_EPSILON = 1e-9


class Metered(Protocol):
    """An answer that tells what it used; None where the provider does not say."""

    @property
    def input_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...


class Pace:
    """A GCRA limiter: `per_minute` units, evenly paced, at most `burst` at once.

    The generic cell rate algorithm (ITU-T I.371) keeps one number, the theoretical arrival time of
    the next unit. The default burst is half a second's worth: a whole minute at once is what trips
    providers that check every second.
    """

    def __init__(self, per_minute: float, burst: float | None = None):
        self.rate = per_minute / 60.0
        self.burst = max(1.0, self.rate / 2) if burst is None else burst
        self._arrival = -math.inf

    def ready_at(self, units: float, now: float) -> float:
        """The earliest time for `units`; more than a burst waits for a full one."""
        return max(now, self._arrival - max(0.0, self.burst - units) / self.rate)

    def take(self, units: float, now: float) -> None:
        """Take `units`, going into debt if need be; negative `units` are a refund."""
        self._arrival = max(self._arrival, now) + units / self.rate


class DailyLog:
    """Requests and tokens per UTC day and account, in a JSON file that several processes share.

    An account with a daily limit is counted before its call, under a file lock; the others are
    gathered and written once a second.
    """

    KEPT_DAYS = 35

    def __init__(self, path: Path | None, *, today: Callable[[], str]):
        self._path = path
        self._today = today
        self._counts = self._read(path) if path else {}  # unreadable: say so before any call
        self._pending: dict[tuple[str, str], list[int]] = {}
        self._flushed_at = 0.0

    def reserve(self, account: str, limit: int) -> bool:
        """Count one request of `account` if fewer than `limit` were made today, by any process."""
        day = self._today()
        with self._locked() as counts:
            entry = counts.setdefault(day, {}).setdefault(account, _no_requests())
            if entry["requests"] >= limit:
                return False
            entry["requests"] += 1
            return True

    def used(self, account: str) -> int:
        """Requests of `account` today, as far as this process has seen."""
        return self._counts.get(self._today(), {}).get(account, _no_requests())["requests"]

    def add(self, account: str, *, requests: int = 0, tokens: int = 0) -> None:
        """Count what needs no permission; written within a second."""
        pending = self._pending.setdefault((self._today(), account), [0, 0])
        pending[0] += requests
        pending[1] += tokens
        if time.monotonic() - self._flushed_at >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            with self._locked():
                pass
        self._flushed_at = time.monotonic()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict[str, dict[str, dict[str, int]]]]:
        """The file's counts under its lock, pending ones added; written back on leaving."""
        if self._path is None:
            self._merge_pending()
            yield self._counts
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = self._path.with_name(self._path.name + ".lock").open("a")
        except OSError as error:
            raise StopRun(
                f"{self._path}: cannot be written ({error.strerror})", exit_code=USAGE
            ) from error
        with lock:
            with contextlib.suppress(ImportError):
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)
            self._counts = self._read(self._path)
            self._merge_pending()
            yield self._counts
            oldest = (datetime.fromisoformat(self._today()) - timedelta(days=self.KEPT_DAYS)).date()
            for day in [day for day in self._counts if day < oldest.isoformat()]:
                del self._counts[day]
            files.write_json(self._path, dict(sorted(self._counts.items())))

    def _read(self, path: Path) -> dict[str, dict[str, dict[str, int]]]:
        try:
            counts = json.loads(path.read_text(encoding="utf-8"))
            for accounts in counts.values():
                for entry in accounts.values():
                    entry["requests"], entry["tokens"] = (
                        int(entry["requests"]),
                        int(entry["tokens"]),
                    )
        except (FileNotFoundError, NotADirectoryError):  # nothing counted yet; writing will tell
            return {}
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise StopRun(
                f"{path}: unreadable ({error}); repair it, or delete it to forget today's counts",
                exit_code=USAGE,
            ) from error
        return counts

    def _merge_pending(self) -> None:
        for (day, account), (requests, tokens) in self._pending.items():
            entry = self._counts.setdefault(day, {}).setdefault(account, _no_requests())
            entry["requests"] += requests
            entry["tokens"] += tokens
        self._pending.clear()


def _no_requests() -> dict[str, int]:
    return {"requests": 0, "tokens": 0}


@dataclass
class _Account:
    """One account's live state; belongs to the home loop."""

    config: LLMClientConfig
    requests: Pace | None
    tokens: Pace | None
    in_flight: int = 0
    turn: float = 0.0  # round robin: the ready account with the lowest turn goes next
    rests_until: float = -math.inf
    spent_day: str = ""  # the UTC day on which its daily limit was used up
    failures: int = 0  # in a row
    out: str = ""  # why it takes no further part
    started: int = 0
    ok: int = 0
    rate_limited: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    spend: float = 0.0


@dataclass(eq=False)
class Lease:
    """The right to make one call on one account; give it back by one of the release methods.

    Has the fields of its account's configuration, so that code written for a shared client object
    (`lease.client`, `lease.name`, `lease.model`, …) keeps working.
    """

    config: LLMClientConfig
    reserved_tokens: float = 0.0
    reserved_cost: float = 0.0
    started_at: float = 0.0
    released: bool = False

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


@dataclass(eq=False)
class _Waiter:
    future: asyncio.Future[Lease]
    role: Role | None
    tokens: float
    avoid: str | None
    since: float = field(default=0.0)


class LLMDispatcher:
    """Hands out accounts, one lease a call, within every limit.

        dispatcher = LLMDispatcher(configs, log_file=Path("data/daily_request_log.json"))
        answer = await dispatcher.call(send, role="student", input_tokens=900)

    or, as in the existing application, `lease = await dispatcher.get_available_client()`, the call,
    and `await dispatcher.release_client_on_success(lease)` or `…_on_failure(lease)`. It waits where
    that application's own dispatcher returns None.

    `max_cost` is a ceiling on this object's spend. `clock` (seconds) and `today` (ISO date, UTC)
    are arguments so that tests need no time.
    """

    def __init__(
        self,
        configs: Sequence[LLMClientConfig],
        log_file: str | Path | None = None,
        *,
        max_cost: float | None = None,
        clock: Callable[[], float] | None = None,
        today: Callable[[], str] | None = None,
        seed: int = 0,
    ):
        if not configs:
            raise UserError("no LLM account configured")
        if max_cost is not None and (unpriced := [c.name for c in configs if not c.priced]):
            raise UserError(
                f"--max-cost cannot work: account {unpriced[0]!r} has no input_price, output_price"
            )
        self.clients = list(configs)
        self.max_cost = max_cost
        self._clock = clock or time.monotonic
        self._today = today or (lambda: datetime.now(UTC).date().isoformat())
        self._daily = DailyLog(Path(log_file) if log_file else None, today=self._today)
        self._accounts = [
            _Account(
                config,
                Pace(config.rpm_limit) if config.rpm_limit else None,
                Pace(config.tpm_limit) if config.tpm_limit else None,
            )
            for config in configs
        ]
        self._random = random.Random(seed)
        self._queues: dict[Role | None, deque[_Waiter]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._turn = 0.0  # at which the latest call was granted
        self._reserved_cost = 0.0
        self._output_guess = 300.0  # tokens; a moving average of what answers really took
        self._stop: StopRun | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False

    # ------------------------------------------------------------------ interface of the host

    @property
    def client_semaphores(self) -> dict[str, contextlib.AbstractAsyncContextManager[None]]:
        """The existing application's callers enter one a call; a lease already holds the slot."""
        return {config.name: contextlib.nullcontext() for config in self.clients}

    async def get_available_client(
        self,
        role: Role | None = None,
        *,
        tokens: float = 0.0,
        avoid: str | None = None,
    ) -> Lease:
        """Wait for an account that may make a call now, and reserve the call.

        `tokens` is the call's estimated input and output together. An account named `avoid` is
        taken only if there is no other. Raises StopRun when no account can serve today, when the
        budget would be passed, or after `stop`.
        """
        if self._is_home():
            return await self._acquire(role, tokens, avoid)
        carried = self._carry(self._acquire(role, tokens, avoid))
        try:
            return await asyncio.shield(asyncio.wrap_future(carried))
        except asyncio.CancelledError:
            carried.add_done_callback(self._give_back_unwanted)  # granted too late: nobody took it
            raise

    async def release_client_on_success(self, lease: Lease, answer: Metered | None = None) -> None:
        """The call succeeded; settle its reservation by what `answer` says it used."""
        if not self._is_home():
            await asyncio.wrap_future(self._carry(self.release_client_on_success(lease, answer)))
            return
        account = self._finish(lease)
        account.ok += 1
        account.failures = 0
        used_in = (answer.input_tokens if answer else None) or 0
        used_out = (answer.output_tokens if answer else None) or 0
        if used_in or used_out:
            if account.tokens:
                account.tokens.take(used_in + used_out - lease.reserved_tokens, self._clock())
            self._output_guess += 0.1 * (used_out - self._output_guess)
        account.input_tokens += used_in
        account.output_tokens += used_out
        account.spend += lease.config.cost(used_in, used_out)
        self._daily.add(
            account.config.name,
            requests=0 if account.config.daily_limit else 1,
            tokens=used_in + used_out,
        )
        self._serve()

    async def release_client_on_failure(
        self, lease: Lease, failure: Failure | Exception | None = None
    ) -> None:
        """The call failed. What failed decides whether the account rests, and for how long."""
        if not self._is_home():
            await asyncio.wrap_future(self._carry(self.release_client_on_failure(lease, failure)))
            return
        if not isinstance(failure, Failure):
            secrets = [lease.config.api_key]
            failure = (
                classify(failure, secrets=secrets)
                if failure
                else Failure("transient", "call failed")
            )
        account = self._finish(lease)
        now = self._clock()
        if account.tokens:
            account.tokens.take(-lease.reserved_tokens, now)
        if not account.config.daily_limit:
            self._daily.add(account.config.name, requests=1)
        if failure.kind == "rate_limited":
            account.rate_limited += 1
            account.failures += 1
            pause = failure.retry_after or self._backoff(account)  # some say "after 0 seconds"
            account.rests_until = max(account.rests_until, now + pause)
        elif failure.kind == "account_out":
            account.failed += 1
            account.out = failure.reason
        elif failure.kind == "transient":
            account.failed += 1
            account.failures += 1
            if account.failures >= _REST_AFTER_FAILURES:
                account.rests_until = max(account.rests_until, now + self._backoff(account))
        else:
            account.failed += 1
        self._serve()

    # ------------------------------------------------------------------ calls

    async def call(
        self,
        send: Callable[[Lease], Awaitable[Answer]],
        *,
        role: Role | None = None,
        input_tokens: float = 0.0,
    ) -> tuple[Answer, Lease]:
        """Make one call, on whichever account can, and again on another where that may help.

        `send` makes one attempt on the home loop. A rate limit costs the item nothing; other
        passing faults are tried up to 5 times. Raises `send`'s own exception where the item is at
        fault or the attempts are used up, StopRun where no account is left.
        """
        if not self._is_home():
            return await self.run_async(self.call(send, role=role, input_tokens=input_tokens))
        attempts = 0
        avoid = None
        while True:
            lease = await self._acquire(role, input_tokens + self._output_guess, avoid)
            try:
                answer = await send(lease)
            except Exception as error:
                failure = classify(error, secrets=[lease.config.api_key])
                await self.release_client_on_failure(lease, failure)
                attempts += failure.kind == "transient"
                if failure.kind == "bad_request" or attempts >= _MAX_ATTEMPTS:
                    raise
                avoid = lease.config.name
            except BaseException:  # cancelled: the slot is free again, the provider has counted
                self._finish(lease)
                self._serve()
                raise
            else:
                await self.release_client_on_success(lease, answer)
                return answer, lease

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the home loop from a thread that has no loop of its own, and wait."""
        if self._is_home(settle=False):
            coroutine.close()
            raise RuntimeError("a blocking call on the dispatcher's own loop would wait for itself")
        future = self._carry(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def run_async(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the home loop from any loop."""
        if self._is_home():
            return await coroutine
        return await asyncio.wrap_future(self._carry(coroutine))

    def stop(self, reason: StopRun) -> None:
        """No further call starts: whoever asks or waits for one gets `reason`. From any thread."""
        self._stop = reason
        if self._home is not None and not self._home.is_closed():
            self._home.call_soon_threadsafe(self._serve)

    def close(self) -> None:
        """Let calls in flight end (at most 10 s), cancel the rest, close connections, write counts.

        No call starts any more; a thread that still asks for one gets StopRun.
        """
        self._stop = self._stop or StopRun("the dispatcher is closed", exit_code=USAGE)
        with self._starting:
            self._closed = True  # from here on nothing new is carried to the home loop
        thread, home = self._thread, self._home
        if thread is not None and home is not None and not home.is_closed():
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._wind_up(), home).result(
                    timeout=2 * _GRACE_SECONDS
                )
            home.call_soon_threadsafe(home.stop)
            thread.join(timeout=_GRACE_SECONDS)
        self._daily.flush()

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

    def __enter__(self) -> LLMDispatcher:
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

    def slots(self, role: Role | None = None) -> int:
        """How many calls of `role` can be in flight at once."""
        return sum(a.config.concurrency for a in self._accounts if _serves(a, role))

    def calls_per_minute(self, role: Role | None = None) -> float:
        """Calls a minute that the accounts of `role` allow; inf where one has no limit."""
        return sum(a.config.rpm_limit or math.inf for a in self._accounts if _serves(a, role))

    def models(self, role: Role | None = None) -> list[str]:
        """The models that serve `role`, sorted."""
        return sorted({a.config.model for a in self._accounts if _serves(a, role)})

    def resting(self) -> str:
        """Which accounts rest, and for how long yet; '' if none does."""
        now = self._clock()
        rests = [(a.config.name, a.rests_until - now) for a in self._accounts if not a.out]
        return ", ".join(f"{name} rests {left:.0f} s" for name, left in rests if left >= 1)

    def snapshot(self) -> list[dict[str, Any]]:
        """One plain dict per account: counts, tokens, spend, state. No key, no address."""
        return [
            {
                "name": account.config.name,
                "model": account.config.model,
                "started": account.started,
                "ok": account.ok,
                "rate_limited": account.rate_limited,
                "failed": account.failed,
                "in_flight": account.in_flight,
                "input_tokens": account.input_tokens,
                "output_tokens": account.output_tokens,
                "spend": account.spend,
                "requests_today": self._daily.used(account.config.name),
                "out": account.out,
            }
            for account in self._accounts
        ]

    # ------------------------------------------------------------------ home loop

    def _is_home(self, *, settle: bool = True) -> bool:
        """Whether the running loop is the home loop; the first loop to ask becomes it."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return False
        with self._starting:
            if settle and (self._home is None or self._deserted(self._home)):
                self._move_in(running)
            return running is self._home

    def _deserted(self, home: asyncio.AbstractEventLoop) -> bool:
        """Whether nobody runs `home` any more: closed, or left standing by its owner."""
        ours = self._thread is not None and self._thread.is_alive()
        return home.is_closed() or not (ours or home.is_running())

    def _move_in(self, loop: asyncio.AbstractEventLoop) -> None:
        self._home = loop
        self._queues.clear()  # whoever waited on a closed loop is gone
        self._timer = None
        for account in self._accounts:
            account.in_flight = 0

    def _carry(self, coroutine: Coroutine[Any, Any, T]) -> Any:
        """Start a coroutine on the home loop, in a thread of our own if nobody else runs it."""
        with self._starting:
            home = self._home
            if self._closed:
                coroutine.close()
                raise self._stop or StopRun("the dispatcher is closed", exit_code=USAGE)
            if home is None or self._deserted(home):
                home = asyncio.new_event_loop()
                self._move_in(home)
                self._thread = threading.Thread(
                    target=_run_loop, args=(home,), name="llm-dispatcher", daemon=True
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, home)

    async def aclose(self) -> None:
        """Close the running loop's connections and write what is still to be counted."""
        for config in self.clients:
            with contextlib.suppress(Exception):
                await config.aclose()
        self._daily.flush()

    # ------------------------------------------------------------------ granting

    async def _acquire(self, role: Role | None, tokens: float, avoid: str | None) -> Lease:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future(), role, tokens, avoid, self._clock())
        self._queues.setdefault(role, deque()).append(waiter)
        self._serve()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if (
                waiter.future.done()
                and not waiter.future.cancelled()
                and not waiter.future.exception()
            ):
                self._undo(waiter.future.result())
            waiter.future.cancel()
            self._serve()
            raise

    def _serve(self) -> None:
        """Grant whatever can be granted now, oldest waiter first; arm the timer for the rest."""
        soonest = math.inf
        blocked: set[Role | None] = set()
        while True:
            heads = [q[0] for role, q in self._queues.items() if q and role not in blocked]
            if not heads:
                break
            waiter = min(heads, key=lambda w: w.since)
            queue = self._queues[waiter.role]
            if waiter.future.done():
                queue.popleft()
                continue
            try:
                granted = self._try_grant(waiter)
            except BaseException as error:
                queue.popleft()
                waiter.future.set_exception(error)
                continue
            if isinstance(granted, Lease):
                queue.popleft()
                waiter.future.set_result(granted)
            else:
                blocked.add(waiter.role)
                soonest = min(soonest, granted)
        self._arm(soonest)

    def _try_grant(self, waiter: _Waiter) -> Lease | float:
        """A lease, or the time at which there might be one (inf: only a release can help)."""
        if self._stop is not None:
            raise self._stop
        now = self._clock()
        while True:
            serving = [a for a in self._accounts if _serves(a, waiter.role)]
            if all(account.out or self._spent_today(account) for account in serving):
                raise self._nobody_left(serving, waiter.role)
            usable = [a for a in serving if not a.out and not self._spent_today(a)]
            at = {a.config.name: self._ready_at(a, waiter.tokens, now) for a in usable}
            ready = [a for a in usable if at[a.config.name] <= now + _EPSILON]
            if not ready:
                return min(at.values())
            preferred = [a for a in ready if a.config.name != waiter.avoid] or ready
            account = min(preferred, key=lambda a: a.turn)
            cost = self._affordable(account, waiter)
            limit = account.config.daily_limit
            if limit and not self._daily.reserve(account.config.name, limit):
                account.spent_day = self._today()
                continue
            return self._grant(account, waiter, now, cost)

    def _ready_at(self, account: _Account, tokens: float, now: float) -> float:
        if account.in_flight >= account.config.concurrency:
            return math.inf
        at = max(now, account.rests_until)
        if account.requests:
            at = max(at, account.requests.ready_at(1, now))
        if account.tokens:
            at = max(at, account.tokens.ready_at(tokens, now))
        return at

    def _affordable(self, account: _Account, waiter: _Waiter) -> float:
        """The call's estimated cost; StopRun where it could pass the budget."""
        cost = account.config.cost(max(0.0, waiter.tokens - self._output_guess), self._output_guess)
        if self.max_cost is not None and self.spend + self._reserved_cost + cost > self.max_cost:
            raise StopRun(
                f"budget reached: {self.spend:.4f} of {self.max_cost:g} spent, and the next call "
                "could pass it; raise --max-cost to go on",
                exit_code=BUDGET,
            )
        return cost

    def _grant(self, account: _Account, waiter: _Waiter, now: float, cost: float) -> Lease:
        if account.requests:
            account.requests.take(1, now)
        if account.tokens:
            account.tokens.take(waiter.tokens, now)
        # start-time fair queueing: an account that was idle or resting gets no stored-up turns
        self._turn = max(account.turn, self._turn)
        account.turn = self._turn + 1.0
        account.in_flight += 1
        account.started += 1
        self._reserved_cost += cost
        return Lease(account.config, waiter.tokens, cost, now)

    def _finish(self, lease: Lease) -> _Account:
        if lease.released:
            raise RuntimeError(f"lease on account {lease.config.name!r} released twice")
        lease.released = True
        account = next(a for a in self._accounts if a.config is lease.config)
        account.in_flight = max(0, account.in_flight - 1)
        self._reserved_cost = max(0.0, self._reserved_cost - lease.reserved_cost)
        return account

    def _undo(self, lease: Lease) -> None:
        """Never sent: give back the slot and the pace. A daily reservation stays counted."""
        account = self._finish(lease)
        account.started -= 1
        if account.requests:
            account.requests.take(-1, self._clock())
        if account.tokens:
            account.tokens.take(-lease.reserved_tokens, self._clock())

    def _give_back_unwanted(self, future: Any) -> None:
        if self._home is not None and not future.cancelled() and future.exception() is None:
            lease = future.result()

            def give_back() -> None:
                self._undo(lease)
                self._serve()

            self._home.call_soon_threadsafe(give_back)

    def _spent_today(self, account: _Account) -> bool:
        limit = account.config.daily_limit
        if not limit:
            return False
        return account.spent_day == self._today() or self._daily.used(account.config.name) >= limit

    def _nobody_left(self, serving: list[_Account], role: Role | None) -> StopRun:
        what = f"role {role!r}" if role else "any role"
        spent = [account for account in serving if not account.out]
        reasons = "; ".join(f"{a.config.name}: {a.out}" for a in serving if a.out)
        if spent:
            until = datetime.fromisoformat(self._today()) + timedelta(days=1)
            names = ", ".join(account.config.name for account in spent)
            return StopRun(
                f"daily quota of every account for {what} is spent ({names}) until "
                f"{until:%Y-%m-%d %H:%M} UTC; everything is saved, run the same command then"
                + (f" ({reasons})" if reasons else ""),
                exit_code=TRY_LATER,
            )
        return StopRun(
            f"no account left for {what}: {reasons or 'none configured'}", exit_code=USAGE
        )

    def _backoff(self, account: _Account) -> float:
        first, longest = _REST_SECONDS
        doubled = first * 2.0 ** min(10, max(0, account.failures - _REST_AFTER_FAILURES))
        return min(longest, doubled) * (0.5 + 0.5 * self._random.random())

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at < math.inf:
            delay = max(0.0, at - self._clock())
            # Another process may use up a daily quota and midnight frees one: look at least hourly.
            self._timer = asyncio.get_running_loop().call_later(min(delay, 3600.0), self._serve)


def _serves(account: _Account, role: Role | None) -> bool:
    return role is None or role in account.config.roles


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
