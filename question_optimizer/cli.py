"""What every phase script shares: flags, exit codes, progress, Ctrl-C. Imports nothing heavy."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn, Protocol, TextIO

from question_optimizer.errors import INTERRUPTED, USAGE, StopRun, UserError
from question_optimizer.hostile_text import one_line, printable

if TYPE_CHECKING:
    from question_optimizer.providers import LLMClientConfig

SETTING_FLAGS = {
    "qdrant_path": "the local Qdrant folder (it holds meta.json)",
    "qdrant_url": "a Qdrant server instead; its key comes from QO_QDRANT_API_KEY",
    "collection": "which collection; may be left out where there is only one",
    "data_dir": "where files are read and written (default: data)",
    "personas_file": "the personas (default: personas.json in the data dir, else the shipped one)",
    "providers_file": "the LLM accounts (default: llm_providers.toml)",
    "limits_url": "a Redis or Valkey server, for machines that share the accounts' limits",
    "embedding_model": "a sentence-transformers model or folder (default: the carried MiniLM)",
    "seed": "of every random choice (default: 0)",
}
_GRACE_SECONDS = 10.0
_LOG_EVERY_SECONDS = 30.0
_FEWEST_BLOCKS = 5  # of a bar; where words leave no room for them they are worth more


def bare_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose --help is the module's docstring."""
    return _Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse would print every flag before it."""

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1, 0.75)
            message += f" (did you mean {near[0]}?)" if near else ""
        self.exit(USAGE, printable(f"{self.prog}: {message}; --help lists the flags") + "\n")


def phase_parser(
    doc: str | None, *, calls_llm: bool = False, positional: tuple[str, str] | None = None
) -> argparse.ArgumentParser:
    """`bare_parser` with the settings' flags, and those of scripts that spend money."""
    parser = bare_parser(doc)
    if positional:
        parser.add_argument(positional[0], help=positional[1])
    settings = parser.add_argument_group("settings (also QO_… in the environment or .env)")
    for name, text in SETTING_FLAGS.items():
        kind = int if name == "seed" else str
        settings.add_argument(
            f"--{name.replace('_', '-')}", dest=name, type=kind, metavar="…", help=text
        )
    settings.add_argument(
        "--rehearsal",
        action="store_const",
        const=True,
        default=None,
        help="use the built-in rule-based stand-in instead of an LLM",
    )
    settings.add_argument(
        "--print-config", action="store_true", help="print every setting and its origin, and exit"
    )
    if calls_llm:
        money = parser.add_argument_group("before spending")
        money.add_argument(
            "--dry-run", action="store_true", help="say what would be called and spent, and exit"
        )
        money.add_argument(
            "--max-cost", type=amount, metavar="X", help="refuse the call that would pass this sum"
        )
        money.add_argument(
            "--max-calls", type=positive, metavar="N", help="make no more calls than this"
        )
    return parser


def amount(text: str) -> float:
    """argparse type: a finite number, not negative."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("must be a number, not negative")
    return number


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    number = amount(text)
    if number > 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return number


def count(text: str) -> int:
    """argparse type: a whole number, not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("must be a whole number, not negative")
    return int(text)


def positive(text: str) -> int:
    """argparse type: a whole number, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def run(main: Callable[[], int]) -> int:
    """Run a script's `main` and turn what a person can act on into one line and an exit code.

    Anything else is our bug: its traceback stays, and Python ends with exit code 1.
    """
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a terminal without UTF-8
        sys.stderr.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        return main()
    except (UserError, StopRun) as error:
        print(printable(f"{_script()}: {error}"), file=sys.stderr)
        if error.exit_code == INTERRUPTED:
            print(f"{_script()}: resume with: {resume_command()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\n{_script()}: interrupted; resume with: {resume_command()}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our stdout went away: `… | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def leave(code: int, *, working: str) -> NoReturn:
    """End the process with `code`, at once if a daemon thread of the name `working` is still busy.

    Python's own end would pull the interpreter from under it: torch, while it loads, then aborts.
    """
    if any(thread.name == working for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def resume_command() -> str:
    """The command line that goes on where this one stopped: the same one."""
    return shlex.join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]])


def _script() -> str:
    return os.path.basename(sys.argv[0]) or "question-optimizer"


class Stoppable(Protocol):
    """Whoever makes calls: a dispatcher, or a cluster of them."""

    def stop(self, reason: StopRun) -> None: ...


@contextlib.contextmanager
def finish_on_interrupt(*callers: Stoppable) -> Iterator[threading.Event]:
    """First Ctrl-C (or TERM): no new call starts, what is in flight may end, at most 10 s. Second:
    leave at once. Yields the event that the first one sets."""
    asked = threading.Event()
    stream = sys.stderr  # as it is now: DSPy's own output may be redirected later

    def leave() -> None:
        left = f"{_script()}: left with calls in flight; resume with: {resume_command()}"
        print(f"\n{left}", file=stream)
        stream.flush()
        os._exit(INTERRUPTED)

    def on_signal(number: int, frame: object) -> None:
        if asked.is_set():
            leave()
        asked.set()
        print("\nfinishing what is in flight; press Ctrl-C again to leave at once", file=stream)
        for caller in callers:
            caller.stop(StopRun("interrupted; everything so far is saved", exit_code=INTERRUPTED))
        timer = threading.Timer(_GRACE_SECONDS, leave)
        timer.daemon = True
        timer.start()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_until(
    moment: datetime,
    *,
    why: str,
    stop: threading.Event,
    wall: Callable[[], float] = time.time,
    sleep: Callable[[float], object] | None = None,
) -> bool:
    """Sleep until `moment` (aware) and a minute; say so once on stderr, count down on a terminal.

    In slices and by the clock on the wall, so that a suspended machine or a clock that is set does
    not make it late. False as soon as `stop` is set. `why` may be a StopRun's text: what it says
    after " until " is said here.
    """
    from question_optimizer.generation.forecast import seconds_until  # asyncio, which --help spares

    stream, left = sys.stderr, seconds_until(moment, wall)
    if left <= 0:
        return not stop.is_set()
    ends = datetime.fromtimestamp(wall() + left, UTC)
    reason = printable(why.partition(" until ")[0])
    day = f"{ends:%A}" if left < 6 * 86400 else f"{ends:%Y-%m-%d}"
    print(
        f"{reason}; waiting until {day} {ends:%H:%M} UTC ({_hours(left)}), Ctrl-C ends it; "
        "everything is saved",
        file=stream,
    )
    live = stream.isatty()
    while (left := seconds_until(moment, wall)) > 0 and not stop.is_set():
        if live:
            print(f"\r\x1b[Kgoes on in {_hours(left)}", end="", file=stream, flush=True)
        (sleep or stop.wait)(min(left, 1.0 if live else _LOG_EVERY_SECONDS))
    if live:
        print("\r\x1b[K", end="", file=stream, flush=True)
    return not stop.is_set()


def _hours(seconds: float) -> str:
    """5 h 12 min; 12 min; below ten minutes 3 min 20 s."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


class Progress:
    """done/total, rejected, failures, spend and when it ends, on stderr.

    A bar that redraws itself on a terminal and is cut to its width, a line every 30 s elsewhere.
    `eta(left)` tells in words when so many items will be through; where it tells nothing, the time
    left is guessed from the pace so far.
    """

    def __init__(
        self,
        what: str,
        total: int | Callable[[], int],
        *,
        spend: Callable[[], float] | None = None,
        note: Callable[[], str] = str,
        eta: Callable[[int], str] | None = None,
    ):
        self._note = note
        self._eta = eta
        self._what = what
        self._total = total if callable(total) else lambda: total
        self._spend = spend
        self._done = self._rejected = self._failed = 0
        self._started = self._shown = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._stream = sys.stderr  # as it is now: DSPy's own output may be redirected later
        self._terminal = self._stream.isatty()

    def __enter__(self) -> Progress:
        threading.Thread(target=self._tick, name="progress", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._terminal and self._done:
            self._draw()
            print(file=self._stream)

    def advance(self, *, failed: bool = False, rejected: bool = False) -> None:
        """One more item is through."""
        with self._lock:
            self._done += 1
            self._failed += failed
            self._rejected += rejected
            now = time.monotonic()
            if now - self._shown >= (0.2 if self._terminal else _LOG_EVERY_SECONDS):
                self._shown = now
                self._draw()

    def _tick(self) -> None:
        """Say something also while nothing ends: a silent minute looks like a dead program."""
        every = 1.0 if self._terminal else _LOG_EVERY_SECONDS
        while not self._over.wait(every):
            with self._lock:
                if time.monotonic() - self._shown >= every:
                    self._shown = time.monotonic()
                    self._draw()

    def _draw(self) -> None:
        total = max(self._total(), self._done)
        line = one_line(", ".join(filter(None, self._parts(total))))
        if not self._terminal:
            print(line, file=self._stream)
            return
        room = _width(self._stream) - 1  # a full last column makes some terminals begin a new line
        if (blocks := min(20, room - len(line) - 1)) >= _FEWEST_BLOCKS:
            filled = round(blocks * self._done / max(1, total))
            line = f"{'█' * filled}{'░' * (blocks - filled)} {line}"
        if len(line) > room:
            line = line[: room - 1] + "…"
        print(f"\r\x1b[K{line}", end="", file=self._stream)
        self._stream.flush()

    def _parts(self, total: int) -> Iterator[str]:
        yield f"{self._what} {self._done}/{total}"
        if self._rejected:
            yield f"{self._rejected} rejected"
        yield f"{self._failed} failed"
        if self._spend and (spend := self._spend()):
            yield f"spent {spend:.4f}"
        left = total - self._done
        if self._eta and (told := self._eta(left)):
            yield told
        elif self._done:
            elapsed = time.monotonic() - self._started
            yield f"{_duration(elapsed / self._done * left)} left"
        yield self._note()


def _width(stream: TextIO) -> int:
    """Columns of the terminal behind `stream`: stdout, which Python asks, may be a file."""
    with contextlib.suppress(OSError, ValueError):
        return max(20, os.get_terminal_size(stream.fileno()).columns or 80)
    return shutil.get_terminal_size().columns


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def dry_run_line(
    accounts: Sequence[LLMClientConfig],
    calls: Mapping[str, int],
    *,
    characters: float | Mapping[str, float],
    answer_tokens: float = 150.0,
) -> str:
    """What a run would take: calls by role, tokens, price range, time at the present limits.

    `characters` is the length of a typical prompt, for all roles or by role. Tokens are a quarter
    of characters, and the price ranges from the cheapest to the dearest account that may serve each
    call.
    """
    total = sum(calls.values())
    low = high = minutes = tokens = 0.0
    unpriced = False
    for role, count in calls.items():
        serving = [a for a in accounts if role in a.roles]
        asked = characters if isinstance(characters, int | float) else characters[role]
        prompt_tokens = asked / 4
        tokens += count * (prompt_tokens + answer_tokens)
        unpriced |= any(not a.priced for a in serving)
        prices = [a.cost(prompt_tokens, answer_tokens) for a in serving] or [0.0]
        low, high = low + count * min(prices), high + count * max(prices)
        rates = [a.rpm_limit or float("inf") for a in serving] or [float("inf")]
        minutes = max(minutes, count / sum(rates))
    daily = [a.daily_limit for a in accounts]
    days = 0 if None in daily else total / max(1, sum(d or 0 for d in daily))
    by_role = ", ".join(f"{count} {role}" for role, count in calls.items() if count)
    price = "price unknown" if unpriced else f"cost {low:.4f} to {high:.4f}"
    took = "time unknown: no limit per minute is configured"
    if all(a.kind == "rehearsal" for a in accounts):
        price, took = "free: a rehearsal", "seconds"
    if minutes:
        took = f"at least {_duration(minutes * 60)} at the present limits"
    if days > 1:
        took = f"at least {days:.1f} days at the present daily limits"
    return f"dry run: {total} calls ({by_role}), about {tokens:,.0f} tokens, {price}, {took}"
