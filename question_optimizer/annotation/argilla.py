"""Argilla: tasks as its records, its dataset's settings, and its records home again.

Sources, of version 2.8: `Record.to_dict` and `from_dict`, `GenericIO.to_list`, `Settings.serialize`
of the client; the validators of the server.

Argilla keeps neither time nor duration of a response, and a discard with nothing filled in leaves
no trace in what its client exports: the task stays open. Only `to_list(flatten=True)` tells each
response's status; prefer it to `to_json`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from question_optimizer.annotation.answers import (
    CONTROLS,
    DECISIONS,
    NUMBERS,
    AnnotationTask,
    Response,
    Sheet,
    annotator_name,
    controls,
    id_of,
    labels,
    misshapen,
    objects,
)
from question_optimizer.hostile_text import one_line

_GUIDELINES = (
    "Which question would this persona type, and find its answer in this chunk? Pick a suggestion, "
    "or pick one and type it better, or type your own. Without a pick and without a text there is "
    "no question."
)
_METADATA = ("document", "persona_id", "split", "suggested_by", "annotators")
_TEXT = {"type": "text", "use_markdown": False}
_USERS = uuid.UUID("6f1a5d0e-0c43-5b0b-9a63-3f7e5a1d2c84")  # a namespace of our own


def argilla_user_id(annotator: str) -> str:
    """The user id under which `annotator`'s answers are exported to Argilla; always the same.

    Argilla's server takes a response only of a user it knows. Make one with this id, which
    `rg.User(id=...)` allows and older servers ignore, or leave the `responses` out.
    """
    return str(uuid.uuid5(_USERS, annotator_name(annotator)))


def to_argilla(task: AnnotationTask, skip_reasons: Sequence[str] = ()) -> dict[str, Any]:
    """`task` as `rg.Record.from_dict` reads it; the id is the chunk id.

    Of each annotator the last answer is told, since Argilla holds one response a person. A skip's
    reason that `argilla_settings(skip_reasons)` has no choice for goes into the note.
    """
    last = {annotator_name(answer.annotator): answer for answer in task.told}
    responses: dict[str, list[dict[str, Any]]] = {}
    for annotator, answer in last.items():
        by = {"user_id": argilla_user_id(annotator), "status": "submitted"}
        for question, value in controls(answer, _reasons(skip_reasons)).items():
            responses.setdefault(question, []).append({"value": value, **by})
    return {
        "id": task.chunk_id,
        "fields": _fields(task),
        "metadata": _metadata(task, last),
        # Preset, because one question has to be required; nothing of the gold question is.
        "suggestions": {"decision": {"value": "question", "agent": "preset", "score": None}},
        "responses": responses,
        "vectors": {},
        "status": "completed" if responses else "pending",
    }


def _fields(task: AnnotationTask) -> dict[str, str]:
    fields = {"chunk": task.text, "place": task.place, "persona": task.asker}
    fields |= {f"suggestion_{number}": line for number, line in enumerate(task.shown, 1)}
    return {name: text for name, text in fields.items() if text.strip()}


def _metadata(task: AnnotationTask, annotators: Iterable[str]) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "document": one_line(task.chunk.document),
        "persona_id": task.persona.id if task.persona else None,
        "split": task.split,
        "suggested_by": task.shown_by,
        "annotators": [f"{argilla_user_id(name)}={name}" for name in annotators],
    }
    return {name: value for name, value in metadata.items() if value}


# ------------------------------------------------------------------ setting up


def argilla_settings(skip_reasons: Sequence[str]) -> dict[str, Any]:
    """The dataset's settings as `rg.Settings.from_json` reads them from a file.

    One submitted response completes a record. `decision` is required because Argilla publishes no
    dataset without a required question.
    """
    fields = {"chunk": "Chunk", "place": "Place", "persona": "Persona"}
    fields |= {f"suggestion_{number}": f"Suggestion {number}" for number in NUMBERS}
    return {
        "guidelines": _GUIDELINES,
        "questions": _questions(_reasons(skip_reasons)),
        "fields": [_item(name, title, _TEXT, "chunk") for name, title in fields.items()],
        "vectors": [],
        "metadata": [_property(name) for name in _METADATA],
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "mapping": None,
    }


def _reasons(skip_reasons: Sequence[str]) -> list[str]:
    """The choices of a reason; Argilla's server has no choice of fewer than two."""
    reasons = labels(skip_reasons)
    return reasons if len(reasons) > 1 else []


def _questions(reasons: Sequence[str]) -> list[dict[str, Any]]:
    several = {"type": "multi_label_selection", "options_order": "natural"}
    kinds = {
        "decision": _choice(DECISIONS),
        "pick": _choice(dict.fromkeys(NUMBERS)),
        "gold_question": _TEXT,
        "skip_reason": _choice(dict.fromkeys(reasons)) if reasons else None,
        "note": _TEXT,
        "bad": _choice(dict.fromkeys(NUMBERS)) | several,
    }
    return [_item(name, CONTROLS[name], kind, "decision") for name, kind in kinds.items() if kind]


def _choice(texts: Mapping[str, str | None]) -> dict[str, Any]:
    """A choice of one value; a value without a text is its own."""
    return {
        "type": "label_selection",
        "options": [{"value": value, "text": text or value} for value, text in texts.items()],
        "visible_options": len(texts) if len(texts) >= 3 else None,
    }


def _item(name: str, title: str, kind: dict[str, Any], required: str) -> dict[str, Any]:
    return {"name": name, "title": title, "required": name == required, "settings": kind}


def _property(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "title": name,
        "settings": {"type": "terms", "values": None},
        "visible_for_annotators": name == "document",
    }


# ------------------------------------------------------------------ home again


def argilla_sheet(record: dict[str, Any], where: str) -> Sheet:
    """A record in any shape that client or server gives it; UserError if it is misshapen.

    Where the file does not tell a response's status, the record's stands in: completed is
    submitted, pending is a draft.
    """
    if not isinstance(record.get("fields"), dict):
        record = _unflattened(record, where)
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise misshapen(where, "metadata")
    shown = [record["fields"].get(f"suggestion_{number}") for number in NUMBERS]
    return Sheet(
        where=where,
        # Argilla's server has an id of its own, and calls ours the external one.
        chunk_id=id_of(record.get("external_id") or record.get("id"), where),
        shown=[one_line(text) for text in shown if isinstance(text, str)],
        persona_id=metadata.get("persona_id"),
        responses=_responses(record, _names(metadata.get("annotators")), where),
    )


def _names(told: Any) -> dict[str, str]:
    """{user id: annotator} as `_metadata` told it."""
    entries = told if isinstance(told, list) else [told]
    return dict(one.split("=", 1) for one in entries if isinstance(one, str) and "=" in one)


def _responses(record: dict[str, Any], names: Mapping[str, str], where: str) -> list[Response]:
    values: dict[str, dict[str, Any]] = {}
    status: dict[str, Any] = {}
    for row in _rows(record.get("responses") or {}, where):
        user = id_of(row.get("user_id"), where, "user_id")
        values.setdefault(user, {})[str(row["question_name"])] = row.get("value")
        status[user] = status.get(user) or row.get("status")
    whole = "submitted" if record.get("status") in ("completed", None) else "draft"
    if any(told not in (None, "", "submitted", "draft", "discarded") for told in status.values()):
        raise misshapen(where, "status")
    return [
        Response(
            identity=user,
            values=said,
            dismissed="discarded in the browser" if status[user] == "discarded" else "",
            draft=(status[user] or whole) == "draft",
            known_as=names.get(user, ""),
        )
        for user, said in values.items()
    ]


def _rows(told: Any, where: str) -> list[dict[str, Any]]:
    """One row a user and question, as `Record.serialize` has them.

    `Record.to_dict` has lists by question, the server's own records have a list by user.
    """
    if isinstance(told, dict):
        return [
            row | {"question_name": question}
            for question, rows in told.items()
            for row in objects(rows, where, f"responses.{question}")
        ]
    rows = []
    for row in objects(told, where, "responses"):
        values = row.get("values") or {"": None}  # a discard has none
        if "question_name" in row:
            rows.append(row)
        elif isinstance(values, dict):
            rows += [row | _said(question, value) for question, value in values.items()]
        else:
            raise misshapen(where, "responses.values")
    return rows


def _said(question: str, value: Any) -> dict[str, Any]:
    value = value.get("value") if isinstance(value, dict) else value
    return {"question_name": question, "value": value}


def _unflattened(record: dict[str, Any], where: str) -> dict[str, Any]:
    """`to_list(flatten=True)`, the one export of the client that tells each response's status."""
    responses = {question: _of_columns(record, question, where) for question in CONTROLS}
    return record | {"fields": record, "metadata": record, "responses": responses}


def _of_columns(record: dict[str, Any], question: str, where: str) -> list[dict[str, Any]]:
    key = f"{question}.responses"
    columns = [record.get(name) or [] for name in (key, f"{key}.users", f"{key}.status")]
    if not all(isinstance(column, list) for column in columns):
        raise misshapen(where, key)
    values, users, statuses = columns
    statuses = statuses or [None] * len(values)
    if not len(values) == len(users) == len(statuses):
        raise misshapen(where, key)
    rows = zip(values, users, statuses, strict=True)
    return [{"value": value, "user_id": user, "status": status} for value, user, status in rows]
