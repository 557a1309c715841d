"""The session in line mode: for dumb terminals, screen readers and scripts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

from question_optimizer.annotation.session import ALL_DECIDED, Card, Refused, Session
from question_optimizer.annotation.wording import (
    KEYS,
    notices_of,
    persona_line,
    place_of,
    progress_line,
)
from question_optimizer.errors import UserError
from question_optimizer.hostile_text import printable

PATIENCE_SECONDS = 20.0


class LineMode:
    """Asks line by line until the person quits. End of input quits.

    Lines cannot fill in later, so a chunk shows at once and is followed by its suggestions as soon
    as they are there, or after `patience_seconds` without; Enter shows the chunk again.
    """

    def __init__(
        self,
        session: Session,
        console: Console,
        read_line: Callable[[str], str] = input,
        *,
        patience_seconds: float | None = PATIENCE_SECONDS,
        spend: Callable[[], float] = lambda: 0.0,
    ):
        self._session = session
        self._console = console
        self._read_line = read_line
        self._patience = patience_seconds
        self._spend = spend
        self._shown: Card | None = None  # what the next line decides on

    def run(self) -> None:
        again = True
        while True:
            if again:
                self._show()
            try:
                key, _, rest = self._ask(self._prompt()).partition(" ")
                if key == "q":
                    return
                again = self._obey(key, rest.strip())
            except EOFError:
                self._console.print()
                return
            except (Refused, UserError) as refusal:  # a full disk: nothing was decided
                self._say(str(refusal))
                again = False

    # ------------------------------------------------------------------ keys

    def _obey(self, key: str, rest: str) -> bool:
        """Do what a line asks for; returns whether the chunk has to be shown (again)."""
        session, card = self._session, self._shown
        match key:
            case "0":
                session.keep(card)
            case _ if key.isdecimal():
                session.pick(_number(key), card)
            case "e":
                self._edit(rest)
            case "w":
                session.write(self._typed("question: ", rest, "write"), card)
            case "s":
                session.skip(self._reason(rest))
            case "d":
                session.defer()
            case "f":
                session.flag(self._typed("note: ", rest, "flag"))
            case "u":
                self._say(f"undone: {session.undo().action}")
            case "p":
                self._persona(rest)
            case "r":
                session.more()
            case "x":
                bad = session.mark_bad(_number(rest), card)
                self._say("marked as bad" if bad else "no longer marked")
            case "/":
                return self._find(rest or self._ask("search: "))
            case "n" | "?":
                self._neighbours() if key == "n" else self._help()
                return False
            case "":
                return True
            case _:
                raise Refused(f"{key!r} is no key here; ? shows them")
        return True

    def _help(self) -> None:
        for known in KEYS:
            self._say(f"{known.press:4} {known.help}")

    def _edit(self, rest: str) -> None:
        number, suggestions = _number(rest or "1"), self._card().suggestions
        if not 1 <= number <= len(suggestions):
            raise Refused(f"there is no suggestion {rest or 1}")
        line = suggestions[number - 1]
        kind = f"edit {line}"
        text = self._ask("question: ", prefill=self._session.draft(kind) or line)
        self._session.keep_draft(text, kind)
        self._session.edit(number, text, self._shown)

    def _reason(self, given: str) -> str:
        reasons = self._session.rules.skip_reasons
        listed = " ".join(f"{number} {reason}" for number, reason in enumerate(reasons, 1))
        answer = given or self._ask(f"why? {listed}, or in your words > ")
        if not answer.isdecimal():
            return answer
        if not 1 <= _number(answer) <= len(reasons):
            raise Refused(f"there is no reason {answer}; a digit, or words of your own")
        return reasons[_number(answer) - 1]

    def _persona(self, rest: str) -> None:
        personas = list(self._session.preparation.chooser.personas.values())
        if not rest:
            self._say("0    none of them fits: skip")
            for number, persona in enumerate(personas, 1):
                self._say(f"{number:<4} {persona.name}: {persona.description}")
            rest = self._ask("who asks? > ")
        number = _number(rest)
        if number == 0:
            self._session.none_fits()
        elif number <= len(personas):
            self._session.choose_persona(personas[number - 1])
        else:
            raise Refused(f"there is no persona {number}")

    def _find(self, text: str) -> bool:
        found = self._session.find(text)
        for number, hit in enumerate(found, 1):
            state = hit.standing.action if hit.standing else "open"
            self._say(f"{number:<4} {state:6} …{hit.excerpt}…")
        if not found:
            raise Refused("nothing found")
        answer = self._ask("go to which? (empty: stay) > ")
        if not answer:
            return False
        if not 1 <= _number(answer) <= len(found):
            raise Refused(f"there is no {answer}")
        self._session.open(found[_number(answer) - 1].chunk.chunk_id)
        return True

    def _neighbours(self) -> None:
        chunk = self._card().chunk
        self._console.print(Text(f"before: {_near(chunk.previous_text)}", style="dim"))
        self._console.print(Text(f"after: {_near(chunk.next_text)}", style="dim"))

    # ------------------------------------------------------------------ lines

    def _card(self) -> Card:
        if self._shown is None:
            raise Refused(ALL_DECIDED)
        return self._shown

    def _typed(self, prompt: str, given: str, kind: str) -> str:
        """A text for `kind`: what was given with the key, or asked for. It is kept until used."""
        text = given or self._ask(prompt, prefill=self._session.draft(kind))
        self._session.keep_draft(text, kind)
        return text

    def _prompt(self) -> str:
        if self._shown is None:
            return "u undo · / find · q quit > "
        count = len(self._shown.suggestions)
        choices = f"1-{count} pick · e edit · " if count else ""
        return f"{choices}w write · s skip · ? help · q quit > "

    def _ask(self, prompt: str, prefill: str = "") -> str:
        with _prefilled(prefill, self._console):
            try:
                return self._read_line(prompt).strip()
            finally:
                self._session.touch()

    def _say(self, text: str) -> None:
        self._console.print(Text(f"  {printable(text)}"))

    def _show(self) -> None:
        """The chunk at once, its persona and suggestions when they are there or time is up."""
        console, card = self._console, self._session.card
        self._shown = card
        console.rule(progress_line(self._session.progress, self._spend()), style="dim")
        if card is None:
            self._say(ALL_DECIDED)
            return
        console.print(Text(place_of(card.chunk), style="dim"))
        console.print(Text(printable(card.chunk.chunk_text)))
        console.print()
        if card.prepared.pending and not card.withheld:
            self._session.preparation.wait(card.chunk, self._patience)
            self._shown = card = self._session.card or card
        console.print(Text(persona_line(card), style="cyan"))
        console.print()
        for notice in notices_of(card):
            console.print(Text(notice, style="yellow"))
        for number, suggestion in enumerate(card.suggestions, 1):
            mark = "  (bad)" if suggestion in card.bad else ""
            console.print(Text(f"  {number}  {suggestion}{mark}"))
        if card.own:
            console.print(Text(f"  0  yours: {printable(card.own)}"))


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 4:
        raise Refused(f"which one? {text[:20]!r} is no number" if text else "which one?")
    return int(text)


def _near(text: str | None) -> str:
    return printable(text) if text else "(not known)"


@contextlib.contextmanager
def _prefilled(text: str, console: Console) -> Iterator[None]:
    """Lines read inside start with `text`, ready to be edited, or else it is shown."""
    try:
        import readline
    except ImportError:  # Windows
        if text:
            console.print(Text(f"  {text}"))
        yield
        return
    readline.set_startup_hook((lambda: readline.insert_text(text)) if text else None)
    try:
        yield
    finally:
        readline.set_startup_hook(None)
