"""What every phase script shares: flags, exit codes, Ctrl-C. Imports nothing heavy."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from question_optimizer.errors import INTERRUPTED, USAGE, StopRun, UserError
from question_optimizer.hostile_text import printable
from question_optimizer.progress import duration

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
_GRACE_BEFORE_CALLS_SECONDS = 3.0  # preparing can be broken off at any point
_COST = "cost "


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

    def snapshot(self) -> list[dict[str, Any]]:
        """One dict an account; "started" and "in_flight" are numbers of calls."""


@contextlib.contextmanager
def finish_on_interrupt(*callers: Stoppable) -> Iterator[threading.Event]:
    """First Ctrl-C (or TERM): no new call starts, what is in flight may end, at most 10 s (3 s
    where no call was made yet). Second: leave at once. Yields the event that the first one sets."""
    asked = threading.Event()
    stream = sys.stderr  # as it is now: DSPy's own output may be redirected later

    def leave() -> None:
        left = "left before any call was made; nothing is lost"
        if _calls(callers, "started"):
            in_flight = " with calls in flight" if _calls(callers, "in_flight") else ""
            left = f"left{in_flight}; everything before is saved"
        print(f"\n{_script()}: {left}; resume with: {resume_command()}", file=stream)
        stream.flush()
        os._exit(INTERRUPTED)

    def on_signal(number: int, frame: object) -> None:
        if asked.is_set():
            leave()
        asked.set()
        calls = _calls(callers, "started")
        what = "finishing what is in flight" if calls else "stopping; no call was made yet"
        print(f"\n{what}; press Ctrl-C again to leave at once", file=stream)
        for caller in callers:
            caller.stop(StopRun("interrupted; everything so far is saved", exit_code=INTERRUPTED))
        timer = threading.Timer(_GRACE_SECONDS if calls else _GRACE_BEFORE_CALLS_SECONDS, leave)
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


def _calls(callers: Sequence[Stoppable], which: str) -> int:
    return sum(account[which] for caller in callers for account in caller.snapshot())


def dry_run_line(
    accounts: Sequence[LLMClientConfig],
    calls: Mapping[str, int],
    *,
    characters: float | Mapping[str, float],
    answer_tokens: float = 150.0,
    most: Mapping[str, int] | None = None,
) -> str:
    """What a run would take: calls by role, tokens, price range, time at the present limits; and
    the price of the `most` calls that it may come to.

    `characters` is the length of a typical prompt, for all roles or by role. Tokens are a quarter
    of characters, and the price ranges from the cheapest to the dearest account that may serve each
    call.
    """
    if not any(calls.values()):
        return "dry run: 0 calls, nothing to do"
    if isinstance(characters, int | float):
        characters = dict.fromkeys(calls, characters)
    prompts = {role: characters[role] / 4 for role in calls}
    tokens = sum(count * (prompts[role] + answer_tokens) for role, count in calls.items())
    by_role = ", ".join(f"{count:,} {role}" for role, count in calls.items() if count)
    price = _price(accounts, calls, prompts, answer_tokens)
    if most and price.startswith(_COST) and sum(most.values()) > sum(calls.values()):
        dearest = _price(accounts, most, prompts, answer_tokens).removeprefix(_COST)
        price += f" (for {sum(most.values()):,} calls, the most there may be: {dearest})"
    return (
        f"dry run: {sum(calls.values()):,} calls ({by_role}), about {tokens:,.0f} tokens, {price}, "
        f"{_time(accounts, calls)}"
    )


def _price(
    accounts: Sequence[LLMClientConfig],
    calls: Mapping[str, int],
    prompt_tokens: Mapping[str, float],
    answer_tokens: float,
) -> str:
    if _rehearsed(accounts):
        return "free: a rehearsal"
    low = high = 0.0
    for role, count in calls.items():
        serving = _serving(accounts, role)
        if any(not account.priced for account in serving):
            return "price unknown"
        prices = [a.cost(prompt_tokens[role], answer_tokens) for a in serving] or [0.0]
        low, high = low + count * min(prices), high + count * max(prices)
    same = f"{low:.4f}" == f"{high:.4f}"
    return f"{_COST}{low:.4f}" if same else f"{_COST}{low:.4f} to {high:.4f}"


def _time(accounts: Sequence[LLMClientConfig], calls: Mapping[str, int]) -> str:
    """At the limits of a day where it takes more than one, else at those of a minute."""
    daily = [account.daily_limit for account in accounts]
    if (
        None not in daily
        and (days := sum(calls.values()) / max(1, sum(limit or 0 for limit in daily))) > 1
    ):
        return f"at least {days:.1f} days at the present daily limits"
    minutes = 0.0
    for role, count in calls.items():
        rates = [a.rpm_limit or float("inf") for a in _serving(accounts, role)]
        minutes = max(minutes, count / (sum(rates) or float("inf")))
    if minutes:
        return f"at least {duration(minutes * 60)} at the present limits"
    unlimited = "time unknown: no limit per minute is configured"
    return "seconds" if _rehearsed(accounts) else unlimited


def _serving(accounts: Sequence[LLMClientConfig], role: str) -> list[LLMClientConfig]:
    return [account for account in accounts if role in account.roles]


def _rehearsed(accounts: Sequence[LLMClientConfig]) -> bool:
    return all(account.kind == "rehearsal" for account in accounts)
