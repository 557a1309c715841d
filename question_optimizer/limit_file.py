"""Limits that the processes of one machine share, and the daily log that people read.

`SharedLimitStore` keeps them in a file that processes map into memory, beside
`daily_request_log.json`, which is written from it once a second. A change costs some microseconds
under the file's lock; what a killed process had counted stays.

Processes never wake one another. Whoever waits for a shared account reserves its next call and is
told the time to make it, so that processes take turns as they asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from weakref import WeakSet

from question_optimizer import files
from question_optimizer.errors import USAGE, StopRun, UserError
from question_optimizer.limit_store import Limits, LimitStore, Wall, Wish, configure
from question_optimizer.limits import (
    MARGIN_SECONDS,
    ROW_LENGTH,
    TOLERANCE_SECONDS,
    Ended,
    Meter,
    Need,
)
from question_optimizer.providers import LLMClientConfig

KEPT_DAYS = 35
_EXPORT_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 0.05  # another process holds the last slot; it cannot wake this one
_STALE_SECONDS = 4 * _LOOK_AGAIN_SECONDS  # who waits says so more often than this
# A reserved call may be made a little early or late, within the margin of every window; one that is
# later could come too close to those that others reserved, and has lost its place.
_EARLIEST_SECONDS = 0.1 * (MARGIN_SECONDS - TOLERANCE_SECONDS)
_LATEST_SECONDS = 0.55 * (MARGIN_SECONDS - TOLERANCE_SECONDS)
Log = dict[str, dict[str, dict[str, int]]]

_MAGIC = b"QOlimit4"
_PROCESSES = 64
_ACCOUNTS = 512
_HEADER = struct.Struct(f"8s2d{_PROCESSES}d")  # magic, wall less monotonic clock, boot, processes
_ROW = struct.Struct(f"{ROW_LENGTH + _PROCESSES + 1}d")  # in flight by process, last crowded
_NAME = 32  # bytes of an account's digest before its row
_WAIT = struct.Struct("2d")  # since when a process waits for a slot, and when it last said so
_STRIDE = _NAME + _ROW.size + _PROCESSES * _WAIT.size
_SIZE = _HEADER.size + _ACCOUNTS * _STRIDE


class SharedLimitStore(LimitStore):
    """Limits in a file that several processes map, and the daily log that is written from it."""

    shared = True

    def __init__(self, log: Path, wall: Wall = time.time):
        super().__init__(wall)
        self._log = log
        self._path = log.with_name(log.name + ".shared")
        self._exported_at = self._reaped_at = -math.inf
        self._writer = threading.Thread()
        self._limits: list[SharedLimits] = []
        self.map: mmap.mmap = mmap.mmap(-1, 1)  # until `open`
        self.closed = True
        self.process = 0

    def open(
        self, configs: Sequence[LLMClientConfig], now: float, wake: Callable[[], None]
    ) -> list[Limits]:
        import fcntl

        self._flock = fcntl.flock
        logged = read_log(self._log)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(  # noqa: SIM115 - as long as the store
                os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0
            )
        except OSError as error:
            raise StopRun(
                f"{self._log}: cannot be written ({error.strerror})", exit_code=USAGE
            ) from error
        with self.locked():
            self._reserve()
            self.map = mmap.mmap(self._file.fileno(), _SIZE)
            alone = self._attach(now)
            self.closed = False
            self._limits = []
            for config in configs:
                limits = SharedLimits(config, self._wall, self, self._row_of(config.name))
                self._limits.append(limits)
                self._bring_up_to_date(limits, logged, alone, now)
        self._write()
        return list(self._limits)

    def _reserve(self) -> None:
        """Claim the table's room on disk: a hole in it, met on a full disk, would be a SIGBUS."""
        handle = self._file.fileno()
        try:
            while (size := os.fstat(handle).st_size) < _SIZE:
                os.pwrite(handle, bytes(_SIZE - size), size)
        except OSError as error:
            raise StopRun(
                f"{self._path}: cannot be written ({error.strerror}); free the disk or change "
                "--data-dir",
                exit_code=USAGE,
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        self._flock(self._file.fileno(), _LOCK_EX)
        try:
            yield
        finally:
            self._flock(self._file.fileno(), _LOCK_UN)

    def _attach(self, now: float) -> bool:
        """Take a process's place in the table; True if no other process lives."""
        magic, base, boot, *pids = _HEADER.unpack_from(self.map)
        if magic != _MAGIC:
            self.map[:] = bytes(_SIZE)
            base, pids = 0.0, [0.0] * _PROCESSES
        self._time_base = self._wall() - now
        this_boot = _boot()
        self._same_clock = boot == this_boot and abs(base - self._time_base) < 5.0
        if boot != this_boot:
            pids = [0.0] * _PROCESSES  # whoever has these numbers now is somebody else
        pids = self._free_places_of_the_dead(pids)
        if all(pids):
            raise StopRun(
                f"{self._path}: {_PROCESSES} processes use it; wait for one to end",
                exit_code=USAGE,
            )
        alone = not any(pids)
        self.process = pids.index(0.0)
        pids[self.process] = float(os.getpid())
        base = self._time_base if alone else base
        _HEADER.pack_into(self.map, 0, _MAGIC, base, this_boot, *pids)
        _OPEN.add(self)
        return alone

    def _free_places_of_the_dead(self, pids: Sequence[float]) -> list[float]:
        """The table without processes that ended, and stores that were dropped; what those had in
        flight is forgotten."""
        ours = {store.process for store in _OPEN if store._path == self._path}
        alive = [
            pid if _is_alive(pid) and (pid != os.getpid() or place in ours) else 0.0
            for place, pid in enumerate(pids)
        ]
        dead = [place for place, pid in enumerate(alive) if not pid]
        for row in range(_ACCOUNTS):
            self._forget(row, dead)
        return alive

    def reap(self) -> None:
        """Somebody waits for slots that others hold: do they still live? Asked once a second."""
        if time.monotonic() - self._reaped_at < 1.0:
            return
        self._reaped_at = time.monotonic()
        with self.locked():
            magic, base, boot, *pids = _HEADER.unpack_from(self.map)
            alive = self._free_places_of_the_dead(pids)
            _HEADER.pack_into(self.map, 0, magic, base, boot, *alive)

    def _forget(self, row: int, places: list[int]) -> None:
        start = _HEADER.size + row * _STRIDE
        if not any(self.map[start : start + _NAME]):
            return
        for place in places:
            at = start + _NAME + 8 * (ROW_LENGTH + place)
            self.map[at : at + 8] = bytes(8)
            waits = start + _NAME + _ROW.size + place * _WAIT.size
            self.map[waits : waits + _WAIT.size] = bytes(_WAIT.size)

    def _row_of(self, name: str) -> int:
        """The offset of an account's row; a fresh one if it has none yet."""
        digest = hashlib.sha256(name.encode()).digest()
        for row in range(_ACCOUNTS):
            start = _HEADER.size + row * _STRIDE
            found = self.map[start : start + _NAME]
            if found == digest:
                return start + _NAME
            if not any(found):
                _ROW.pack_into(self.map, start + _NAME, *Meter().row(), *[0.0] * (_PROCESSES + 1))
                self.map[start : start + _NAME] = digest
                return start + _NAME
        raise StopRun(
            f"{self._path}: holds {_ACCOUNTS} accounts; delete it to begin anew", exit_code=USAGE
        )

    def _bring_up_to_date(
        self, limits: SharedLimits, logged: Log | None, alone: bool, now: float
    ) -> None:
        """What the file says, the settings and the log, made one."""
        meter = limits.load()
        if not meter.is_sane(now):
            meter.read_row(Meter().row())
        if alone and meter.day > limits.today() + 1:  # the clock was ahead once
            meter.day = 0.0
        if alone and not self._same_clock:
            meter.forget_times()
        if alone:
            meter.soften()
        configure(meter, limits.config, now)
        meter.turn_day(limits.today())
        entry = (logged or {}).get(limits.day, {}).get(limits.config.name)
        if logged is None and alone:  # somebody deleted the log to forget the day's counts
            meter.requests_today = meter.tokens_today = 0.0
        elif entry is not None:
            meter.requests_today = max(meter.requests_today, entry["requests"])
            meter.tokens_today = max(meter.tokens_today, entry["tokens"])
        limits.store()

    # ------------------------------------------------------------------ the log

    def export_if_due(self) -> None:
        if self.closed or time.monotonic() - self._exported_at < _EXPORT_SECONDS:
            return
        if self._writer.is_alive():
            return
        self._exported_at = time.monotonic()
        self._writer = threading.Thread(target=self._export, daemon=True)
        self._writer.start()

    def _export(self) -> None:
        try:
            self._write()
        except StopRun as problem:
            self.problem = problem
        except UserError as error:
            self.problem = StopRun(str(error), exit_code=USAGE)

    def _write(self) -> None:
        """Write what all processes have counted into the log; what else stands there is kept."""
        with _log_locked(self._log):
            log = read_log(self._log)
            kept = {day: dict(accounts) for day, accounts in (log or {}).items()}
            for limits in self._limits:
                for day, requests, tokens in limits.counts():
                    accounts = kept.setdefault(day, {})
                    if requests or tokens or limits.config.name in accounts:
                        entry = {"requests": requests, "tokens": tokens}
                        accounts[limits.config.name] = entry
            latest = max(date.fromisoformat(limits.day) for limits in self._limits)
            oldest = (latest - timedelta(days=KEPT_DAYS)).isoformat()
            kept = {day: kept[day] for day in sorted(kept) if day >= oldest and kept[day]}
            if kept != log:
                files.write_json(self._log, kept)

    def flush(self) -> None:
        if self.closed:
            return
        if self._writer.is_alive():
            self._writer.join()
        self._write()

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.flush()
        finally:
            self.closed = True
            self._detach()

    def _detach(self) -> None:
        """Leave the table, with everything that was in flight."""
        with self.locked():
            magic, base, boot, *pids = _HEADER.unpack_from(self.map)
            pids[self.process] = 0.0
            _HEADER.pack_into(self.map, 0, magic, base, boot, *pids)
            for row in range(_ACCOUNTS):
                self._forget(row, [self.process])
        self.map.close()
        self._file.close()


class SharedLimits(Limits):
    """One account's row in the shared file. `meter` is a copy, current as of the last change."""

    def __init__(self, config: LLMClientConfig, wall: Wall, store: SharedLimitStore, row: int):
        super().__init__(config, wall)
        self._store = store
        self._at = row
        self._own = ROW_LENGTH + store.process
        self._reserved: tuple[float, Need, float] | None = None  # time, need, episode
        self._left: list[float] = []  # the paces' arrivals as that left them
        self._waits_since = 0.0

    def ready_at(self, wish: Wish, now: float) -> float:
        """As in `Limits`; an account that is not ready yet has its next call reserved for us."""
        if self._store.closed:
            return super().ready_at(wish, now)
        row = self._row()
        if (at := self._blocked_until(row, now)) is not None:
            return at
        if self.daily and row[_DAY_AT + 2] >= (self.config.daily_token_limit or math.inf):
            return now + _LOOK_AGAIN_SECONDS  # reserved by calls in flight, else it were spent
        if self._reserved and self._reserved[2] == row[_EPISODE_AT]:
            at = self._reserved[0]
            if now <= at + _LATEST_SECONDS:
                return now if now >= at - _EARLIEST_SECONDS else at
        with self.edit() as meter:
            self._give_back(meter)  # one that is void, or too late to be used
            at = meter.ready_at(now)
            need = wish.need(self.config)
            meter.take(need, at)
            self._reserved = (at, need, meter.episode)
            self._left = [pace.arrival for pace in meter.paces]
            return at

    def likely_at(self, now: float) -> float:
        if self._store.closed:
            return super().likely_at(now)
        row = self._row()
        if self._reserved and self._reserved[2] == row[_EPISODE_AT]:
            return max(now, self._reserved[0])
        in_flight = _in_flight(row)
        if in_flight + 1 > row[_SLOTS_AT]:
            return math.inf if row[self._own] >= in_flight else now + _LOOK_AGAIN_SECONDS
        self.meter.read_row(row)
        return self.meter.ready_at(now)

    def _blocked_until(self, row: Sequence[float], now: float) -> float | None:
        """When to look again for one of the slots that all processes share; None: there is one.

        Nobody can wake another process, so a waiter looks again and again, and says since when it
        has waited: whoever has waited less lets it go first.
        """
        slots, own = row[_SLOTS_AT], row[self._own]
        in_flight = _in_flight(row)
        crowded = abs(now - row[_CROWDED_AT]) < _STALE_SECONDS
        full = in_flight + 1 > slots
        if not full and not (crowded and self._others_first(now, slots - in_flight)):
            if self._waits_since:
                self._say_waiting(0.0, now)
            return None
        if full and own >= in_flight and not crowded:
            return math.inf  # all are ours, and nobody else wants one
        self._waits_since = self._waits_since or now
        self._say_waiting(self._waits_since, now)
        self._store.reap()
        return now + _LOOK_AGAIN_SECONDS

    def _others_first(self, now: float, free: float) -> bool:
        """Whether as many others as slots are free have waited longer than we."""
        since = self._waits_since or now
        earlier = 0
        for place in range(_PROCESSES):
            waits, said = _WAIT.unpack_from(self._store.map, self._waits_at(place))
            if place != self._store.process and waits and now - said < _STALE_SECONDS:
                earlier += (waits, place) < (since, self._store.process)
        return earlier >= free

    def _say_waiting(self, since: float, now: float) -> None:
        self._waits_since = since
        _WAIT.pack_into(self._store.map, self._waits_at(self._store.process), since, now)
        if since:
            _DOUBLE.pack_into(self._store.map, self._at + 8 * _CROWDED_AT, now)

    def _waits_at(self, place: int) -> int:
        return self._at + _ROW.size + place * _WAIT.size

    def take(self, need: Need, now: float) -> bool:
        if self._store.closed:
            return super().take(need, now)
        with self.edit() as meter:
            meter.turn_day(self.today())
            reserved = self._reserved
            void = reserved is not None and reserved[2] != meter.episode
            full = self._day_of_tokens_full(meter) or meter.in_flight + 1 > meter.slots.now
            if void or full or self.spent(meter):
                self._give_back(meter)
                return False
            if reserved is None:
                meter.take(need, now)
            else:
                meter.adjust(reserved[1], need, reserved[0])
            self._reserved = None
            meter.start(need)
            return True

    def _give_back(self, meter: Meter) -> None:
        """Return a reservation, but not the time behind which others have reserved theirs."""
        if self._reserved and self._reserved[2] == meter.episode:
            at, need, _ = self._reserved
            last = [
                taken if pace.arrival == left else 0.0
                for pace, taken, left in zip(meter.paces, need, self._left, strict=True)
            ]
            meter.adjust(Need(*last), Need(0.0), at)
        self._reserved = None

    def end(self, call: Ended) -> Meter:
        with self.edit() as meter:
            meter.end(call)
            return meter

    def relax(self) -> None:
        if self._store.closed:
            return
        if self._waits_since:
            self._say_waiting(0.0, 0.0)
        if self._reserved is not None:
            with self.edit() as meter:
                self._give_back(meter)

    def forget_calls(self) -> None:
        with self.edit() as meter:
            meter.in_flight -= self._in_flight[self._own - ROW_LENGTH]

    @contextlib.contextmanager
    def edit(self) -> Iterator[Meter]:
        if self._store.closed:  # a call in flight ends later: there is nobody left to tell
            yield self.meter
            return
        with self._store.locked():
            meter = self.load()
            yield meter
            self.store()

    def load(self) -> Meter:
        row = self._row()
        self.meter.read_row(row)
        self._in_flight = list(row[ROW_LENGTH : ROW_LENGTH + _PROCESSES])
        self.meter.in_flight = self._loaded = sum(self._in_flight)
        return self.meter

    def store(self) -> None:
        own = self._own - ROW_LENGTH
        self._in_flight[own] = max(0.0, self._in_flight[own] + self.meter.in_flight - self._loaded)
        _ROW_AND_CALLS.pack_into(self._store.map, self._at, *self.meter.row(), *self._in_flight)

    def _row(self) -> tuple[float, ...]:
        return _ROW.unpack_from(self._store.map, self._at)

    def counts(self) -> list[tuple[str, int, int]]:
        """(day, requests, tokens) of all processes together, for the last two days of use.

        Reads without the lock, since the log is written by a thread of its own.
        """
        row = self._row()
        figures = (row[_DAY_AT : _DAY_AT + 3], row[_DAY_BEFORE_AT : _DAY_BEFORE_AT + 3])
        return [
            (date.fromordinal(int(day)).isoformat(), round(requests), max(0, round(tokens)))
            for day, requests, tokens in figures
            if day >= 1.0
        ]


_EPISODE_AT = Meter.position("episode")
_DAY_AT = Meter.position("day")
_DAY_BEFORE_AT = Meter.position("day_before")
_SLOTS_AT = Meter.position("slots")
_CROWDED_AT = ROW_LENGTH + _PROCESSES
_ROW_AND_CALLS = struct.Struct(f"{ROW_LENGTH + _PROCESSES}d")
_DOUBLE = struct.Struct("d")
_OPEN: WeakSet[SharedLimitStore] = WeakSet()  # of this process
_LOCK_EX, _LOCK_UN = 2, 8  # fcntl.LOCK_EX, LOCK_UN; fcntl itself is missing on Windows


def _in_flight(row: Sequence[float]) -> float:
    """The calls that all processes together have in flight."""
    return sum(row[ROW_LENGTH : ROW_LENGTH + _PROCESSES])


def _boot() -> float:
    """A number for this start of the machine; 0 where the system has none."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return 0.0
    return float(int.from_bytes(hashlib.sha256(boot_id).digest()[:6], "big"))


def _is_alive(pid: float) -> bool:
    if not 1.0 <= pid < 2.0**31:  # none, or damage
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _log_locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("a")
    except OSError as error:
        raise StopRun(f"{path}: cannot be written ({error.strerror})", exit_code=USAGE) from error
    with lock:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_log(path: Path) -> Log | None:
    """Requests and tokens by day and account; None where no log is; StopRun if it is damaged."""
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
        for accounts in log.values():
            for entry in accounts.values():
                entry["requests"], entry["tokens"] = int(entry["requests"]), int(entry["tokens"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise StopRun(
            f"{path}: unreadable ({error}); repair it, or delete it to forget today's counts",
            exit_code=USAGE,
        ) from error
    return log
