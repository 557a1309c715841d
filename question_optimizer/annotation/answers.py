"""What people decide on chunks in a browser tool: tasks, answers, and the controls between them.

One task is one chunk, known by its chunk id in either tool; one answer is what one person decided
on it. Either tool is set up with the same controls:

    decision        question, skip, defer or flag
    pick            the number of a suggestion
    gold_question   the question as typed; left empty where the pick is taken as it stands
    skip_reason     one of the given reasons; any other reason goes into `note`
    note            why a chunk is flagged
    bad             the numbers of suggestions that are of no use

`controls` tells how an answer fills them in, `Reading` what a filled-in response means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from question_optimizer.annotation.session import MOST_SUGGESTIONS, Action
from question_optimizer.annotation.wording import place_of
from question_optimizer.errors import UserError
from question_optimizer.hostile_text import one_line, printable
from question_optimizer.records import Chunk, Persona

MOST_CHARACTERS = 2000  # of a typed text
NUMBERS = [str(number) for number in range(1, MOST_SUGGESTIONS + 1)]
CONTROLS = {
    "decision": "What is it to be?",
    "pick": "Take a suggestion",
    "gold_question": "The question, if you type one or change the picked",
    "skip_reason": "Why skip?",
    "note": "Note, or another reason",
    "bad": "Bad suggestions",
}
DECISIONS = {
    "question": "A question: picked or typed below",
    "skip": "Skip: no good question can be asked of this chunk",
    "defer": "Defer: ask me again later",
    "flag": "Flag: to be discussed, see the note",
}
EXPORT_AGAIN = "export again from the tool"


class Answer(BaseModel):
    """What one person decided on one chunk. `pick` and `bad` count the task's suggestions from 1.

    `gold_question` is there for pick (the picked text), edit and write; `at` is in UTC.
    """

    annotator: str
    action: Action
    pick: int | None = Field(default=None, ge=1)
    gold_question: str | None = None
    persona_id: str | None = None
    reason: str | None = None
    note: str | None = None
    bad: list[int] = []
    active_seconds: float | None = None
    at: str | None = None


class AnnotationTask(BaseModel):
    """One chunk to be annotated, and the answers there are; the properties may be seen outside.

    `withheld` marks a blind test item: nothing of its suggestions leaves the house.
    """

    chunk: Chunk
    persona: Persona | None = None
    suggestions: list[str] = Field(default=[], max_length=MOST_SUGGESTIONS)
    suggested_by: list[str] = []
    split: str | None = None
    withheld: bool = False
    answers: list[Answer] = []

    @property
    def chunk_id(self) -> str:
        return str(self.chunk.chunk_id)

    @property
    def text(self) -> str:
        return printable(self.chunk.chunk_text)

    @property
    def place(self) -> str:
        """File › headings › page."""
        return place_of(self.chunk)

    @property
    def asker(self) -> str:
        """The persona's name and description; '' if there is none."""
        return one_line(f"{self.persona.name}: {self.persona.description}") if self.persona else ""

    @property
    def shown(self) -> list[str]:
        return [] if self.withheld else [printable(line) for line in self.suggestions]

    @property
    def shown_by(self) -> list[str]:
        """The models that made what is shown."""
        return self.suggested_by if self.shown else []

    @property
    def told(self) -> list[Answer]:
        """The answers; on a blind item none that repeats a suggestion."""
        if not self.withheld:
            return self.answers
        secret = {one_line(line) for line in self.suggestions}
        return [
            answer.model_copy(update={"bad": []})
            for answer in self.answers
            if answer.action not in ("pick", "edit")
            and one_line(answer.gold_question or "") not in secret
        ]


def annotator_name(identity: str) -> str:
    """`identity` as 1 to 40 of the characters A-Z a-z 0-9 _ . -

    Of an e-mail address the part before the @ is taken. Each run of other characters becomes one
    hyphen, hyphens at either end go, the rest is cut at 40; nothing left is `unknown`.
    """
    local = identity.partition("@")[0]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", local).strip("-")[:40] or "unknown"


# ------------------------------------------------------------------ to a tool


def labels(reasons: Sequence[str]) -> list[str]:
    """`reasons` as a tool's choices: distinct, one line each, none empty or over 200 characters."""
    # The two characters are no XML.
    lines = [one_line(re.sub("[\ufffe\uffff]", "", reason))[:200] for reason in reasons]
    return list(dict.fromkeys(line for line in lines if line))


def controls(answer: Answer, reasons: Sequence[str]) -> dict[str, str | list[str]]:
    """`answer` as the controls would have it; what is empty is left out.

    A skip's reason that is none of `reasons`, the choices there are, goes into the note.
    """
    picked, typed = answer.action in ("pick", "edit"), answer.action in ("edit", "write")
    reason = one_line(answer.reason or "") if answer.action == "skip" else ""
    note = one_line(answer.note or "")
    if reason not in reasons:
        reason, note = "", "; ".join(part for part in (reason, note) if part)
    values: dict[str, str | list[str]] = {
        "decision": "question" if picked or typed else answer.action,
        "pick": str(answer.pick) if picked else "",
        "gold_question": one_line(answer.gold_question or "") if typed else "",
        "skip_reason": reason,
        "note": note,
        "bad": [str(number) for number in sorted(set(answer.bad))],
    }
    return {name: value for name, value in values.items() if value}


# ------------------------------------------------------------------ from a tool


@dataclass(frozen=True)
class Response:
    """What one person did with one task in a tool; values are as the file has them."""

    identity: str
    values: dict[str, Any]  # by control
    dismissed: str = ""  # how, if it was: "discarded in the browser"
    draft: bool = False  # begun and not submitted
    known_as: str = ""  # the annotator's name, where the file tells it
    seconds: Any = None
    at: Any = None

    def lines(self, control: str) -> list[str]:
        """What `control` holds, one line each, without empty ones."""
        held = self.values.get(control)
        values = held if isinstance(held, list) else [held]
        lines = [one_line(str(value)) for value in values if value is not None]
        return [line for line in lines if line]


@dataclass(frozen=True)
class Sheet:
    """One record of a file: the task as it was shown, and the responses to it.

    `where` is path and line, `shown` the suggestions on one line each.
    """

    where: str
    chunk_id: str
    shown: list[str]
    persona_id: Any
    responses: list[Response]


@dataclass(frozen=True)
class Reading:
    """One response that is no draft, its sheet, and the task as it stands today."""

    response: Response
    sheet: Sheet
    task: AnnotationTask

    def answer(self, annotator: str) -> Answer:
        """What the response means; a dismissed one is a skip, whatever its controls hold.

        Typed text that equals a suggestion is a pick; text beside a pick is an edit of it.
        UserError where it says nothing, too much, or what was not on offer.
        """
        decision, reason, note = self._decision(), self._line("skip_reason"), self._line("note")
        if decision != "skip":
            reason = ""
        elif not reason:
            reason, note = note or self.response.dismissed, ""
        return Answer(
            annotator=annotator,
            persona_id=_persona_id(self.sheet.persona_id),
            reason=reason or None,
            note=note or None,
            bad=sorted({self._today(number) for number in self._numbers("bad")}),
            active_seconds=_seconds(self.response.seconds),
            at=utc(self.response.at),
            **(self._question() if decision == "question" else {"action": decision}),
        )

    def _decision(self) -> str:
        if self.response.dismissed:
            return "skip"
        asks, skips = bool(self._line("gold_question") or self._pick()), self._line("skip_reason")
        line = self._line("decision")
        decision = {text: name for name, text in DECISIONS.items()}.get(line, line)
        if decision not in ("", *DECISIONS):
            raise self._wrong(f"no decision {quoted(decision)}")
        if decision not in ("", "question"):
            return decision
        if asks and skips:
            raise self._wrong("a question and a reason to skip at once")
        if not asks and not skips:
            raise self._wrong("an answer with neither text nor choice")
        return "question" if asks else "skip"

    def _question(self) -> dict[str, Any]:
        typed, pick, shown = self._line("gold_question"), self._pick(), self.sheet.shown
        if typed and typed in shown and not (pick and shown[pick - 1] == typed):
            pick, typed = shown.index(typed) + 1, ""
        if pick is None:
            return {"action": "write", "gold_question": typed}
        number = self._today(pick)
        if typed and typed != shown[pick - 1]:
            return {"action": "edit", "pick": number, "gold_question": typed}
        picked = self.task.suggestions[number - 1]
        return {"action": "pick", "pick": number, "gold_question": picked}

    def _line(self, control: str) -> str:
        """What was chosen or typed, on one line; the notes of several fields are joined."""
        lines = self.response.lines(control)
        if len(lines) > 1 and control != "note":
            raise self._wrong(f"more than one {control.removeprefix('gold_')}")
        line = " ".join(lines)
        if len(line) > MOST_CHARACTERS:
            raise self._wrong(f"{control} of {len(line)} characters, {MOST_CHARACTERS} are allowed")
        return line

    def _pick(self) -> int | None:
        numbers = self._numbers("pick")
        if len(numbers) > 1:
            raise self._wrong("more than one pick")
        return numbers[0] if numbers else None

    def _numbers(self, control: str) -> list[int]:
        """The suggestions named, by where they were shown."""
        return [self._number(line) for line in self.response.lines(control)]

    def _number(self, line: str) -> int:
        """A number from 1, or the text of a suggestion as Label Studio may give it."""
        shown = self.sheet.shown
        if re.fullmatch("[0-9]{1,3}", line):
            if not 1 <= int(line) <= len(shown):
                raise self._wrong(f"picks suggestion {line} of {len(shown)}")
            return int(line)
        if line not in shown:
            raise self._wrong(f"no suggestion {quoted(line)}")
        return shown.index(line) + 1

    def _today(self, number: int) -> int:
        """Where the suggestion shown as `number` stands in the task."""
        text = self.sheet.shown[number - 1]
        today = [one_line(line) for line in self.task.suggestions]
        if text not in today:
            unknown = f"suggestion {number} is not one that the log knows"
            raise self._wrong(unknown, "export the tasks anew")
        return number if today[number - 1 : number] == [text] else today.index(text) + 1

    def _wrong(self, what: str, fix: str = "correct it in the tool and export again") -> UserError:
        return UserError(f"{self.sheet.where}: chunk {quoted(self.sheet.chunk_id)}: {what}; {fix}")


def _persona_id(value: Any) -> str | None:
    return (one_line(value)[:200] or None) if isinstance(value, str) else None


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1e9 else None  # neither NaN nor past a float


# ------------------------------------------------------------------ values in either direction


def quoted(text: str) -> str:
    """`text` as a message may hold it."""
    return repr(one_line(text)[:60])


def utc(value: Any) -> str | None:
    """An ISO 8601 time in UTC; a time without a zone is taken to be in it. None if it is none."""
    if not isinstance(value, str):
        return None
    try:
        at = datetime.fromisoformat(value)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return None


def id_of(value: Any, where: str, name: str = "id") -> str:
    """An id as text; UserError if `value` is neither a number nor a text."""
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise UserError(f"{where}: no {name}; {EXPORT_AGAIN}")
    return str(value)


def objects(value: Any, where: str, name: str) -> list[dict[str, Any]]:
    """`value` if it is a list of objects, else UserError."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise misshapen(where, name)
    return value


def misshapen(where: str, name: str) -> UserError:
    """What to raise where a file's `name` is no list or object as the tools write it."""
    return UserError(
        f"{where}: {quoted(name)} has a shape that neither tool gives it; {EXPORT_AGAIN}"
    )
