"""Answers home from a browser tool: a file of Argilla's or Label Studio's, seen by its shape.

Label Studio's JSON-MIN export is refused: it drops who answered how.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from question_optimizer.annotation.answers import (
    EXPORT_AGAIN,
    AnnotationTask,
    Answer,
    Reading,
    Response,
    Sheet,
    annotator_name,
    quoted,
)
from question_optimizer.annotation.argilla import argilla_sheet
from question_optimizer.annotation.label_studio import label_studio_sheet
from question_optimizer.errors import UserError
from question_optimizer.hostile_text import printable


@dataclass(frozen=True)
class Imported:
    """What a file from a browser tool held.

    `open` is how many of the tasks got no answer in it, `drafts` how many responses were begun and
    not submitted (both tools keep them), `unknown` the ids that none of the tasks has. `blind` are
    the ids of tasks that showed no suggestion.
    """

    answers: list[tuple[str, Answer]]
    unknown: list[str]
    open: int
    drafts: int
    blind: frozenset[str] = frozenset()


def read_answers(
    path: Path, tasks: Mapping[str, AnnotationTask], names: Mapping[str, str] | None = None
) -> Imported:
    """The answers in a file from Argilla or Label Studio, in the file's order; all or UserError.

    `tasks` go by chunk id. `names` may tell who a tool's user id or address is; else see
    `annotator_name`. Two ids or addresses never become one annotator unless `names` or the file
    says so. The file may be a JSON array or one object a line, and hold records of both tools.
    """
    answers: list[tuple[str, Answer]] = []
    unknown: dict[str, None] = {}
    taken: dict[str, str] = {}
    blind: set[str] = set()
    drafts = 0
    for where, record in _objects(path):
        sheet = _sheet(record, where)
        task = tasks.get(sheet.chunk_id)
        if task is None:
            unknown[printable(sheet.chunk_id)] = None
            continue
        drafts += sum(response.draft for response in sheet.responses)
        for response in sheet.responses:
            if response.draft:
                continue
            annotator = _annotator(response, names or {}, taken, where)
            answers.append((sheet.chunk_id, Reading(response, sheet, task).answer(annotator)))
        if not sheet.shown:
            blind.add(sheet.chunk_id)
    left = set(tasks) - {chunk_id for chunk_id, _ in answers}
    return Imported(answers, list(unknown), len(left), drafts, frozenset(blind))


def _annotator(
    response: Response, names: Mapping[str, str], taken: dict[str, str], where: str
) -> str:
    """Whose the response is; `taken` keeps whose each name became."""
    known_as = names.get(response.identity) or response.known_as
    if known_as:
        return annotator_name(known_as)
    name = annotator_name(response.identity)
    first = taken.setdefault(name, response.identity)
    if first != response.identity:
        raise UserError(
            f"{where}: {quoted(first)} and {quoted(response.identity)} would both be "
            f"annotator {name}; tell them apart in the file"
        )
    return name


def _sheet(record: dict[str, Any], where: str) -> Sheet:
    """`record` by the shape it has; UserError if it is neither tool's."""
    if isinstance(record.get("data"), dict):
        return label_studio_sheet(record, where)
    if "annotation_id" in record:
        raise UserError(f"{where}: this is Label Studio's JSON-MIN; export as JSON instead")
    if isinstance(record.get("fields"), dict) or ("chunk" in record and "id" in record):
        return argilla_sheet(record, where)
    raise UserError(
        f"{where}: neither an Argilla record nor a Label Studio task; export as JSON from either"
    )


# ------------------------------------------------------------------ JSON, an array or lines


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path:line, object) for each object of a JSON array or of JSON lines."""
    text = _text_of(path)
    array = text.lstrip().startswith("[")
    at = _past_gap(text, text.index("[") + 1 if array else 0)
    line, counted = 1, 0
    while at < len(text) and not (array and text[at] == "]"):
        line, counted = line + text.count("\n", counted, at), at
        record, at = _decoded(text, at, path, line)
        yield f"{path}:{line}", record
        at = _past_gap(text, at)
    if array and at >= len(text):
        raise UserError(f"{path}:{line}: ends in the middle of a list; {EXPORT_AGAIN}")


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; name one that does") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: not UTF-8 text ({error.reason}); {EXPORT_AGAIN}"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _past_gap(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _decoded(text: str, at: int, path: Path, line: int) -> tuple[dict[str, Any], int]:
    """The object that begins at `at`, and where it ends."""
    try:
        record, end = json.JSONDecoder(parse_constant=_refused).raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); {EXPORT_AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{line}: not JSON that can be read; {EXPORT_AGAIN}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}:{line}: not an object; {EXPORT_AGAIN}")
    return record, end


def _refused(constant: str) -> None:
    raise ValueError(constant)
