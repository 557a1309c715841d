"""Limits shared by several machines, through Redis or Valkey (extra `redis`).

One hash and one sorted set per account hold what `limits.Meter` holds; one Lua script changes them,
so that every step is atomic. Whoever wants an account reserves calls and is told when to send each:
nobody polls, and machines take turns as they asked. The clock is the server's.

A server that lost its memory in a restart is told by everybody what they knew last, and grants
nothing for a moment, so that the limits hold all the same. While it cannot be reached nothing new
is reserved.
"""

from __future__ import annotations

import contextlib
import math
import queue
import struct
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from question_optimizer.errors import TRY_LATER, USAGE, StopRun
from question_optimizer.limit_store import Limits, LimitStore, Wall, Wish
from question_optimizer.limits import ROW_LENGTH, UNITS, Ended, Meter, Need
from question_optimizer.providers import LLMClientConfig

_AHEAD_SECONDS = 0.05  # so much of a rate is reserved in one step
_HEARTBEAT_SECONDS = 1.0
_QUARANTINE_SECONDS = 3.0  # after a loss of memory: time for everybody's heartbeat
_OUTAGE_SECONDS = 120.0  # without the server: come back later
_RETRY_SECONDS = 0.25
_LOOK_AGAIN_SECONDS = 0.05  # another machine holds the last slot
_ROW = struct.Struct(f"{ROW_LENGTH}d")
_VERSION = 2  # its place in what the script returns last

# KEYS: the account's hash, the sorted set of its calls in flight.
# ARGV: wanted, ahead, slots, day, daily requests, daily tokens, seconds that a call may last,
#       quarantine, prefix of call names; what this process knew last (instance, ticks, version,
#       day, requests, tokens, until, 4 arrivals); 4 x (rate, tolerance, units of one call);
#       calls in flight to enter again; calls that ended, n x (call, made or not, tokens of the day,
#       4 units to adjust); what was learnt: version, until, row, 4 marks, or -1.
# Times are stored as seconds since 1970 by the server's clock.
_SCRIPT = """
local hash, calls = KEYS[1], KEYS[2]
local position = 0
local function text() position = position + 1; return ARGV[position] end
local function number() return tonumber(text()) end
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1e6
local wanted, ahead, slots, day = number(), number(), number(), number()
local most_requests, most_tokens, lasts, quarantine = number(), number(), number(), number()
local prefix = text()
local known = {instance = text(), ticks = number(), version = number(), day = number(),
               requests = number(), tokens = number(), till = number(),
               a = {number(), number(), number(), number()}}
local rate, tolerance, units = {}, {}, {}
for i = 1, 4 do rate[i], tolerance[i], units[i] = number(), number(), number() end

local stored = redis.call('HMGET', hash, 'day', 'requests', 'tokens', 'until', 'version',
                          'a1', 'a2', 'a3', 'a4', 's1', 's2', 's3', 's4',
                          'row', 'ticks', 'instance', 'lost')
local function was(i) return tonumber(stored[i] or '0') or 0 end
local s = {day = was(1), requests = was(2), tokens = was(3), till = was(4), version = was(5),
           a = {was(6), was(7), was(8), was(9)}, sent = {was(10), was(11), was(12), was(13)},
           row = stored[14] or '', ticks = was(15), instance = stored[16] or '', lost = was(17)}
if s.instance == '' then s.instance = prefix end
if known.ticks > 0 and (s.instance ~= known.instance or s.ticks < known.ticks) then
  -- memory was lost, or an older one restored: take what each process knew, and wait for all
  if s.instance == known.instance then s.instance = prefix end
  s.lost = now + quarantine
  s.till = math.max(s.till, known.till)
  s.version = math.max(s.version, known.version)
  if known.day > s.day then s.day, s.requests, s.tokens = known.day, 0, 0 end
  if known.day == s.day then
    s.requests = math.max(s.requests, known.requests)
    s.tokens = math.max(s.tokens, known.tokens)
  end
  for i = 1, 4 do s.a[i] = math.max(s.a[i], known.a[i]) end
end
s.version, s.ticks = math.max(s.version, 1), s.ticks + 1
if day > s.day then s.day, s.requests, s.tokens = day, 0, 0 end

for _ = 1, number() do redis.call('ZADD', calls, now + lasts, text()) end
for _ = 1, number() do
  local call, made, tokens = text(), number(), number()
  redis.call('ZREM', calls, call)
  if made == 0 then s.requests = math.max(0, s.requests - 1) end
  s.tokens = math.max(0, s.tokens + tokens)
  for i = 1, 4 do
    local more = number()
    s.sent[i] = s.sent[i] + more
    if rate[i] > 0 then s.a[i] = s.a[i] + more / rate[i] end
  end
end

local version, accepted = number(), 0
if version >= 0 then
  local till, row = number(), text()
  local marks = {number(), number(), number(), number()}
  if version == s.version then
    s.version, s.row, accepted = s.version + 1, row, 1
    for i = 1, 4 do if marks[i] == 1 then s.sent[i] = 0 end end
  end
  if till > s.till then
    s.till = till
    for i = 1, 4 do s.a[i] = math.max(s.a[i], till) end
  end
end

redis.call('ZREMRANGEBYSCORE', calls, '-inf', now)
local sends, why = {}, ''
local in_flight = redis.call('ZCARD', calls)
for n = 1, wanted do
  if now < s.lost then why = 'lost' break end
  if s.requests + 1 > most_requests or s.tokens >= most_tokens then why = 'day' break end
  if in_flight + 1 > slots then why = 'full' break end
  local at = math.max(now, s.till)
  for i = 1, 4 do if rate[i] > 0 then at = math.max(at, s.a[i] - tolerance[i]) end end
  if n > 1 and at > now + ahead then break end
  for i = 1, 4 do
    s.sent[i] = s.sent[i] + units[i]
    if rate[i] > 0 then s.a[i] = math.max(s.a[i], at) + units[i] / rate[i] end
  end
  s.requests, s.tokens, in_flight = s.requests + 1, s.tokens + units[2], in_flight + 1
  redis.call('ZADD', calls, at + lasts, prefix .. n)
  sends[#sends + 1] = string.format('%.6f', at)
end
local function time(x) return string.format('%.6f', x) end
redis.call('HSET', hash, 'day', s.day, 'requests', s.requests, 'tokens', s.tokens,
  'until', time(s.till), 'version', s.version, 'row', s.row, 'ticks', s.ticks,
  'instance', s.instance, 'lost', time(s.lost),
  'a1', time(s.a[1]), 'a2', time(s.a[2]), 'a3', time(s.a[3]), 'a4', time(s.a[4]),
  's1', s.sent[1], 's2', s.sent[2], 's3', s.sent[3], 's4', s.sent[4])
redis.call('EXPIRE', hash, 172800)
redis.call('EXPIRE', calls, 172800)
return {time(now), why, accepted, s.row, sends,
  {s.sent[1] .. '', s.sent[2] .. '', s.sent[3] .. '', s.sent[4] .. ''},
  {s.instance, s.ticks .. '', s.version .. '', s.day .. '', s.requests .. '', s.tokens .. '',
   time(s.till), time(s.a[1]), time(s.a[2]), time(s.a[3]), time(s.a[4])}}
"""


@dataclass
class _Permit:
    """A call that may be made at `at`, by this process's clock."""

    call: str
    at: float
    need: Need


class RedisLimitStore(LimitStore):
    """Limits on a Redis or Valkey server; accounts of one name are one account.

    `url` as in `redis://host:6379/0`; StopRun if the server cannot be reached at the start. `name`
    separates deployments that use one server.
    """

    shared = True

    def __init__(self, url: str, *, name: str = "question-optimizer", wall: Wall = time.time):
        super().__init__(wall)
        try:
            import redis
        except ImportError as error:
            raise StopRun(
                "--limits-url needs the redis client: pip install 'question-optimizer[redis]'",
                exit_code=USAGE,
            ) from error
        try:
            self._server = redis.Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=5.0)
            self._server.ping()
        except ValueError as error:
            raise StopRun(f"--limits-url: {error}", exit_code=USAGE) from None
        except redis.exceptions.RedisError as error:
            raise StopRun(
                f"the limits' server cannot be used: {type(error).__name__}; start it, or leave "
                "--limits-url out",
                exit_code=USAGE,
            ) from None
        self._script = self._server.register_script(_SCRIPT)
        self._name = name
        self._work: queue.SimpleQueue[RedisLimits | None] = queue.SimpleQueue()
        self._shared: list[RedisLimits] = []
        self._thread = threading.Thread(target=self._run, name="limits", daemon=True)
        self._wake: Callable[[], None] = lambda: None
        self._clock_ahead = 0.0

    def open(
        self, configs: Sequence[LLMClientConfig], now: float, wake: Callable[[], None]
    ) -> list[Limits]:
        self._wake = wake
        self._clock_ahead = now - time.monotonic()  # the dispatcher's clock, seen from here
        self._shared = [RedisLimits(config, self._wall, self) for config in configs]
        for limits in self._shared:
            self.exchange(limits)
        self._thread.start()
        return list(self._shared)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        for limits in self._shared:
            limits.relax()
        self._work.put(None)
        self._thread.join(timeout=2 * _HEARTBEAT_SECONDS + 10.0)
        with contextlib.suppress(Exception):
            self._server.close()

    def ask(self, limits: RedisLimits) -> None:
        """Let the thread exchange with the server what this account has to say."""
        self._work.put(limits)

    def now(self) -> float:
        return time.monotonic() + self._clock_ahead

    def _run(self) -> None:
        """The thread: one account after another, and all of them once a second."""
        beat, last_success = time.monotonic(), time.monotonic()
        while True:
            asked: list[RedisLimits | None] = []
            with contextlib.suppress(queue.Empty):
                asked.append(self._work.get(timeout=_HEARTBEAT_SECONDS / 4))
                while True:
                    asked.append(self._work.get_nowait())
            ending = None in asked
            if time.monotonic() - beat > _HEARTBEAT_SECONDS or ending:
                beat = time.monotonic()
                asked += self._shared
            waiting = dict.fromkeys(limits for limits in asked if limits is not None)
            try:
                for limits in waiting:
                    self.exchange(limits)
                last_success, self.problem = time.monotonic(), None
            except Exception:  # gone, in fail-over, read-only, …: it may come back
                if time.monotonic() - last_success > _OUTAGE_SECONDS:
                    self.problem = StopRun(
                        "the limits' server cannot be reached; everything is saved, run the same "
                        "command when it is back",
                        exit_code=TRY_LATER,
                    )
                if not ending:
                    time.sleep(_RETRY_SECONDS)
                    for limits in waiting:  # none of what they had to say is lost
                        self.ask(limits)
            if waiting:
                self._wake()
            if ending:
                return

    def exchange(self, limits: RedisLimits) -> None:
        """One step of the script for one account."""
        message = limits.message()
        tag = f"{self._name}:{{{limits.config.name}}}"  # one hash slot of a cluster
        try:
            reply = self._script(keys=[f"{tag}:limits", f"{tag}:calls"], args=message.arguments)
        except Exception:
            limits.not_sent(message)
            raise
        limits.receive(message, reply)


@dataclass
class _Message:
    """What one account says to the server in one step."""

    arguments: list[Any]
    ended: list[list[Any]]
    lesson: list[Any] | None
    wanted: int
    need: Need
    prefix: str


class RedisLimits(Limits):
    """One account's limits on the server. `meter` is a copy, as of the last word from there.

    Called from the home loop and from the store's thread; what both touch is kept by a lock.
    """

    def __init__(self, config: LLMClientConfig, wall: Wall, store: RedisLimitStore):
        super().__init__(config, wall)
        self._store = store
        self._process = uuid.uuid4().hex[:12]
        self._lock = threading.Lock()
        self._permits: deque[_Permit] = deque()
        self._ended: list[list[Any]] = []
        self._exchanging = False
        self._learnt = False
        self._marks = [0, 0, 0, 0]
        self._wanted: Need | None = None
        self._why = ""
        self._asked_at = -math.inf
        self._number = 0
        self._offset = 0.0  # the server's clock less ours
        self._known: list[Any] = ["", *[0.0] * 10]  # as the script returns it
        self._enter_again = False  # the server has forgotten our calls in flight
        self._own_calls: deque[str] = deque()

    # ------------------------------------------------------------------ on the home loop

    @property
    def full(self) -> bool:
        return False  # the server knows

    def ready_at(self, wish: Wish, now: float) -> float:
        """When the next call reserved for us may be made; inf while the server has yet to say."""
        with self._lock:
            if self._permits:
                return max(now, self._permits[0].at)
            if self._wanted is None and now >= self._asked_at + self._pause():
                self._wanted = wish.need(self.config)
                self._asked_at = now
                self._store.ask(self)
                return math.inf
            return math.inf if self._wanted is not None else self._asked_at + self._pause()

    def _pause(self) -> float:
        return _LOOK_AGAIN_SECONDS if self._why in ("full", "lost") else 0.0

    def spent(self, meter: Meter | None = None) -> bool:
        with self._lock:  # what is still to be said may free a call, or get one
            if self._permits or self._ended or self._exchanging or self._wanted is not None:
                return False
        return super().spent(meter)

    def take(self, need: Need, now: float) -> bool:
        with self._lock:
            if not self._permits:
                return False
            permit = self._permits.popleft()
            self._own_calls.append(permit.call)
            self.meter.in_flight += 1
            if need != permit.need:
                more = _more(permit.need, need)
                self._ended.append(["", 1, need.tokens - permit.need.tokens, *more])
            return True

    def end(self, call: Ended) -> Meter:
        with self._lock:
            name = self._own_calls.popleft() if call.in_flight and self._own_calls else ""
            self.meter.in_flight -= call.in_flight
            tokens, unsent = call.tokens - call.need.tokens, call.unsent
            if call.day != self.meter.day:  # what began yesterday is yesterday's
                tokens, unsent = 0.0, False
            self._ended.append([name, int(not unsent), tokens, *_more(call.need, call.used)])
        self._store.ask(self)
        return self.meter

    def relax(self) -> None:
        with self._lock:
            if not self._permits and self._wanted is None:
                return
            self._wanted = None
            self._give_back()
        self._store.ask(self)

    def _give_back(self, before: float = math.inf) -> None:
        """Return permits for times earlier than `before`."""
        kept = [permit for permit in self._permits if permit.at >= before]
        for permit in self._permits:
            if permit.at < before:
                more = _more(permit.need, Need(0.0))
                self._ended.append([permit.call, 0, -permit.need.tokens, *more])
        self._permits = deque(kept)

    def forget_calls(self) -> None:
        with self._lock:
            while self._own_calls:
                self._ended.append([self._own_calls.popleft(), 1, 0.0, 0, 0, 0, 0])
            self.meter.in_flight = 0.0

    @contextlib.contextmanager
    def edit(self) -> Iterator[Meter]:
        """What is learnt here is told to the server, unless somebody else was first."""
        with self._lock:
            before, marks = self.meter.row(), [pace.mark for pace in self.meter.paces]
            yield self.meter
            if self.meter.row() != before:
                for n, pace in enumerate(self.meter.paces):
                    self._marks[n] |= pace.mark != marks[n]
                self._give_back(self.meter.rests_until)
                self._learnt = True
        if self._learnt:
            self._store.ask(self)

    # ------------------------------------------------------------------ on the store's thread

    def message(self) -> _Message:
        with self._lock:
            self._exchanging = True
            self._number += 1
            prefix = f"{self._process}:{self._number}:"
            need = self._wanted or Need()
            pace = self.meter.paces[0]
            wanted = 0
            if self._wanted is not None:
                most = pace.rate * _AHEAD_SECONDS if pace.rate < math.inf else 4.0
                wanted = max(1, min(64, int(most)))
            ended, self._ended = self._ended, []
            lesson = None
            if self._learnt:
                until = self.meter.rests_until + self._offset
                version = self._known[_VERSION]
                lesson = [version, max(0.0, until), self._row_out(), *self._marks]
                self._learnt, self._marks = False, [0, 0, 0, 0]
            config = self.config
            arguments: list[Any] = [
                wanted,
                _AHEAD_SECONDS,
                min(self.meter.slots.now, 1e9),
                self.today(),
                config.daily_limit or 1e15,
                config.daily_token_limit or 1e15,
                config.timeout + 10.0,
                _QUARANTINE_SECONDS,
                prefix,
                *self._known,
            ]
            for pace, units in zip(self.meter.paces, need, strict=True):
                rate = pace.rate if pace.rate < math.inf else 0.0
                arguments += [rate, pace.tolerance, units]
            names = list(self._own_calls) if self._enter_again else []
            self._enter_again = False
            arguments += [len(names), *names, len(ended)]
            for entry in ended:
                arguments += entry
            arguments += lesson if lesson is not None else [-1]
            return _Message(arguments, ended, lesson, wanted, need, prefix)

    def not_sent(self, message: _Message) -> None:
        """No answer came. If the server did its part all the same, calls are lost, never gained."""
        with self._lock:
            self._exchanging = False
            self._ended = message.ended + self._ended
            if message.lesson is not None:
                self._learnt = True
                self._marks = [a | b for a, b in zip(self._marks, message.lesson[-4:], strict=True)]

    def receive(self, message: _Message, reply: list[Any]) -> None:
        clock, why, accepted, row, sends, sent, known = reply
        with self._lock:
            self._exchanging = False
            self._offset = float(clock) - self._store.now()
            self._why = why.decode()
            before, self._known = self._known, [known[0].decode(), *map(float, known[1:])]
            self._enter_again = before[0] not in ("", self._known[0])
            other_version = before[_VERSION] != self._known[_VERSION] and not accepted
            if row and other_version and not self._learnt:
                self._row_in(row)
            meter = self.meter
            _, _, _, meter.day, meter.requests_today, meter.tokens_today, until, *arrivals = (
                self._known
            )
            meter.rests_until = max(meter.rests_until, until - self._offset)
            for pace, units, arrival in zip(meter.paces, sent, arrivals, strict=True):
                pace.sent, pace.arrival = float(units), arrival - self._offset
            for n, at in enumerate(sends, 1):
                permit = _Permit(f"{message.prefix}{n}", float(at) - self._offset, message.need)
                self._permits.append(permit)
            if self._wanted is None:  # nobody waits any more
                self._give_back()
            else:
                self._give_back(meter.rests_until)
                self._wanted = None if message.wanted else self._wanted

    def _row_out(self) -> bytes:
        """The meter with its times by the server's clock."""
        meter = Meter()
        meter.read_row(self.meter.row())
        meter.shift_times(self._offset)
        return _ROW.pack(*meter.row())

    def _row_in(self, row: bytes) -> None:
        if len(row) != _ROW.size:  # written by another version of this program
            return
        settings, in_flight = self.meter.settings, self.meter.in_flight
        meter = Meter()
        meter.read_row(_ROW.unpack(row))
        if meter.settings != settings:  # other limits are configured there; ours are believed here
            return
        meter.shift_times(-self._offset)
        self.meter.read_row(meter.row())
        self.meter.in_flight = in_flight


def _more(taken: Need, used: Need) -> list[float]:
    return [used[n] - taken[n] for n in range(len(UNITS))]
