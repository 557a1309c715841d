"""Label Studio: tasks as it imports them, its labelling configuration, and its tasks home again.

Sources: "Label Studio JSON format of annotated tasks", "Import pre-annotated data", the tags
Choices, Choice and TextArea; `tasks/serializers.py` for what survives an import.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from question_optimizer.annotation.answers import (
    CONTROLS,
    DECISIONS,
    AnnotationTask,
    Answer,
    Response,
    Sheet,
    annotator_name,
    controls,
    id_of,
    labels,
    misshapen,
    objects,
    utc,
)
from question_optimizer.errors import UserError
from question_optimizer.hostile_text import one_line


def to_label_studio(task: AnnotationTask, skip_reasons: Sequence[str]) -> dict[str, Any]:
    """`task` as Label Studio imports it; `data.chunk_id` is what it is known by.

    Answers become annotations. Whose they are stands in their results' `meta`: Label Studio refuses
    a whole file for one `completed_by` that it has no member for.
    """
    data: dict[str, Any] = {
        "chunk_id": task.chunk_id,
        "chunk": task.text,
        "place": task.place,
        "persona": task.asker,
        "persona_id": task.persona.id if task.persona else None,
        "suggestions": [
            {"alias": str(number), "value": line} for number, line in enumerate(task.shown, 1)
        ],
        "split": task.split,
        "suggested_by": task.shown_by,
    }
    reasons = labels(skip_reasons)
    return {"data": data, "annotations": [_annotation(answer, reasons) for answer in task.told]}


def _annotation(answer: Answer, reasons: Sequence[str]) -> dict[str, Any]:
    meta = {"annotator": annotator_name(answer.annotator)}
    values = controls(answer, reasons)
    at = utc(answer.at)
    return {
        "result": [_result(name, value, meta) for name, value in values.items()],
        "was_cancelled": False,
        "ground_truth": False,  # else an imported annotation counts as ground truth
        "lead_time": answer.active_seconds,
    } | ({"created_at": at, "updated_at": at} if at else {})


def _result(name: str, value: str | list[str], meta: dict[str, str]) -> dict[str, Any]:
    typed = name in ("gold_question", "note")
    return {
        "id": name,
        "from_name": name,
        "to_name": "chunk",
        "type": "textarea" if typed else "choices",
        "value": {"text" if typed else "choices": value if isinstance(value, list) else [value]},
        "meta": meta,
    }


# ------------------------------------------------------------------ setting up


def label_studio_config(skip_reasons: Sequence[str]) -> str:
    """The labelling configuration: texts by $variable, the given reasons escaped."""
    header = {
        name: f'<Header value="{escape(title)}" size="5"/>' for name, title in CONTROLS.items()
    }
    decisions = [f'alias="{name}" value="{escape(text)}"' for name, text in DECISIONS.items()]
    decisions[0] += ' selected="true"'  # a question, as most are
    reasons = [f'value="{escape(reason)}"' for reason in labels(skip_reasons)]
    skip = f"\n  {header['skip_reason']}\n  {_choices('skip_reason', reasons)}" if reasons else ""
    return f"""<View>
  <Header value="$place" size="5"/>
  <Text name="chunk" value="$chunk"/>
  <Header value="$persona" size="4"/>
  {_choices("decision", decisions, ' required="true"')}
  {header["pick"]}
  <Choices name="pick" toName="chunk" value="$suggestions"/>
  {header["gold_question"]}
  <TextArea name="gold_question" toName="chunk" maxSubmissions="1" editable="true" rows="2"/>{skip}
  {header["note"]}
  <TextArea name="note" toName="chunk" maxSubmissions="1" editable="true" rows="2"/>
  {header["bad"]}
  <Choices name="bad" toName="chunk" value="$suggestions" choice="multiple"/>
</View>
"""


def _choices(name: str, choices: Sequence[str], more: str = "") -> str:
    lines = "".join(f"\n    <Choice {choice}/>" for choice in choices)
    return f'<Choices name="{name}" toName="chunk"{more}>{lines}\n  </Choices>'


# ------------------------------------------------------------------ home again


def label_studio_sheet(record: dict[str, Any], where: str) -> Sheet:
    """A task of the JSON export; UserError if it is misshapen or was never ours."""
    data = record["data"]
    if "chunk_id" not in data:
        raise UserError(f"{where}: no data.chunk_id; import our export into the tool first")
    options = data.get("suggestions") or []
    if not isinstance(options, list):
        raise misshapen(where, "data.suggestions")
    shown = [option.get("value") if isinstance(option, dict) else option for option in options]
    annotations = objects(record.get("annotations") or [], where, "annotations")
    drafts = objects(record.get("drafts") or [], where, "drafts")
    return Sheet(
        where=where,
        chunk_id=id_of(data["chunk_id"], where),
        shown=[one_line(str(text)) for text in shown],
        persona_id=data.get("persona_id"),
        responses=[_response(annotation, where) for annotation in annotations]
        + [Response("", {}, draft=True) for _ in drafts],
    )


def _response(annotation: dict[str, Any], where: str) -> Response:
    values: dict[str, Any] = {}
    known_as = ""
    for result in objects(annotation.get("result") or [], where, "annotations.result"):
        value, meta = result.get("value"), result.get("meta")
        if isinstance(value, dict) and isinstance(result.get("from_name"), str):
            values[result["from_name"]] = value.get("choices", value.get("text"))
        if isinstance(meta, dict) and isinstance(meta.get("annotator"), str):
            known_as = meta["annotator"]
    return Response(
        identity=_completed_by(annotation.get("completed_by")),
        values=values,
        dismissed="skipped in the browser" if annotation.get("was_cancelled") else "",
        known_as=known_as,
        seconds=annotation.get("lead_time"),
        at=annotation.get("updated_at") or annotation.get("created_at"),
    )


def _completed_by(who: Any) -> str:
    """A user's address, or `user-7` where the export has the number only."""
    user = who if isinstance(who, dict) else {"id": who}
    number = user.get("id")
    return str(user.get("email") or ("" if number is None else f"user-{number}"))
