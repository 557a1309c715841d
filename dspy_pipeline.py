"""Phase 2 of 5 · SyntheticQuestionPipeline: chunk and persona -> query type and format -> query.

Saving keeps instructions and demonstrations only, never a model, key or address. Loading checks
that the signatures are still those the file was made with: DSPy itself stores no field names and
would silently shift every description by one.

    pipeline = load_pipeline(Path("data/optimized_pipeline.json"))
    prediction = pipeline(chunk_text=..., persona_description=...)
    prediction.query, prediction.query_type, prediction.query_format
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import dspy

from dspy_signatures import AnalyzeQueryRelevance, GenerateFinalQuery
from question_optimizer import files
from question_optimizer.errors import UserError, reason_of
from question_optimizer.hostile_text import promptable
from question_optimizer.records import QueryFormat, QueryType

Program = TypeVar("Program", bound=dspy.Module)
_MADE_BY = "optimize_pipeline.py"


class SyntheticQuestionPipeline(dspy.Module):
    """Two calls a chunk: `analyzer` chooses type and format, `generator` writes the query."""

    def __init__(self) -> None:
        super().__init__()
        self.analyzer = dspy.Predict(AnalyzeQueryRelevance)
        self.generator = dspy.Predict(GenerateFinalQuery)

    def forward(self, chunk_text: str, persona_description: str) -> dspy.Prediction:
        """Prediction with `query` (stripped), `query_type`, `query_format`."""
        given = _inputs(chunk_text, persona_description)
        analysis = self.analyzer(**given)
        written = self.generator(**given, **_chosen(analysis))
        return _prediction(analysis, written)

    async def aforward(self, chunk_text: str, persona_description: str) -> dspy.Prediction:
        """As `forward`, for a running event loop."""
        given = (chunk_text, persona_description)
        query_type, query_format = await self.analyse(*given)
        query = await self.write(*given, query_type, query_format)
        return dspy.Prediction(query=query, query_type=query_type, query_format=query_format)

    async def analyse(
        self, chunk_text: str, persona_description: str
    ) -> tuple[QueryType, QueryFormat]:
        """The first step alone: what kind of query the persona would bring, and its format."""
        analysis = await self.analyzer.acall(**_inputs(chunk_text, persona_description))
        return analysis.query_type, analysis.query_format

    async def write(
        self,
        chunk_text: str,
        persona_description: str,
        query_type: QueryType,
        query_format: QueryFormat,
        *,
        advice: str = "",
    ) -> str:
        """The second step alone: the query, stripped.

        `advice` follows the instructions in this one prompt (a length, why an earlier query was
        refused); the program and every prompt without advice stay as they are.
        """
        given = _inputs(chunk_text, persona_description)
        chosen: dict[str, Any] = {"query_type": query_type, "query_format": query_format}
        if advice := promptable(advice).strip():
            chosen["signature"] = _advised(self.generator.signature, advice)
        written = await self.generator.acall(**given, **chosen)
        return (written.query or "").strip()


@functools.lru_cache(maxsize=128)  # the adapter renders a signature once, if it is the same class
def _advised(signature: type[dspy.Signature], advice: str) -> type[dspy.Signature]:
    return signature.with_instructions(f"{signature.instructions}\n\n{advice}")


def _inputs(chunk_text: str, persona_description: str) -> dict[str, str]:
    return {
        "chunk_text": promptable(chunk_text),
        "persona_description": promptable(persona_description),
    }


def _chosen(analysis: dspy.Prediction) -> dict[str, Any]:
    return {"query_type": analysis.query_type, "query_format": analysis.query_format}


def _prediction(analysis: dspy.Prediction, written: dspy.Prediction) -> dspy.Prediction:
    return dspy.Prediction(query=(written.query or "").strip(), **_chosen(analysis))


# ---------------------------------------------------------------------- saving and loading


def fingerprint(program: dspy.Module) -> dict[str, list[dict[str, str]]]:
    """{predictor: its fields in order, each with name, role (input or output) and type}."""
    return {
        name: [
            {
                "name": field,
                "role": info.json_schema_extra["__dspy_field_type"],
                "type": getattr(info.annotation, "__name__", str(info.annotation)),
            }
            for field, info in predictor.signature.fields.items()
        ]
        for name, predictor in program.named_predictors()
    }


def pipeline_state(program: dspy.Module) -> str:
    """The JSON text of a program's instructions and demonstrations. Holds no LM, ever."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.json"
        program.save(str(path))
        state = json.loads(path.read_text(encoding="utf-8"))
    for name in fingerprint(program):
        state[name]["lm"] = None
        state[name]["traces"], state[name]["train"] = [], []
    return json.dumps(state, ensure_ascii=False, indent=2) + "\n"


def load_pipeline(path: Path) -> SyntheticQuestionPipeline:
    """The optimised pipeline; UserError if unfinished, foreign, or made for other fields."""
    return load_program(path, SyntheticQuestionPipeline())


def load_program(path: Path, program: Program) -> Program:
    """`program` with the state saved at `path`; UserError as for `load_pipeline`."""
    if not path.is_file():
        raise UserError(f"{path}: does not exist; run {_MADE_BY} first")
    if not files.meta_path(path).is_file():
        raise UserError(
            f"{path}: unfinished, {files.meta_path(path).name} is missing; copy both files, or "
            f"rerun {_MADE_BY}"
        )
    meta = files.read_meta(path, made_by=_MADE_BY)
    state = files.read_json(path, made_by=_MADE_BY)
    output, saved = meta.get("output"), meta.get("signature")
    if not isinstance(output, dict) or not isinstance(saved, dict):
        raise UserError(f"{files.meta_path(path)}: damaged; restore it or rerun {_MADE_BY}")
    if output.get("sha256") != files.sha256(path):
        raise UserError(f"{path}: changed since it was made; restore it or rerun {_MADE_BY}")
    if saved and not {*saved} & {*fingerprint(program)}:
        raise UserError(
            f"{path}: holds {', '.join(map(repr, sorted(saved)))}, not "
            f"{', '.join(map(repr, fingerprint(program)))}: a program of another kind (a pipeline "
            "belongs to --program, a judge to --judge)"
        )
    _check_fields(path, saved, fingerprint(program))
    _check_state(path, state, program)
    try:
        program.load_state({name: state[name] for name in fingerprint(program)})
        fingerprint(program)
        for _, predictor in program.named_predictors():
            list(map(dict, predictor.demos))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); rerun {_MADE_BY}") from error
    return program


def _check_fields(path: Path, saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuse, naming the first field that differs, unless both have the same fields in order."""
    for predictor in sorted({*saved, *current}):
        was = {field["name"]: field for field in saved.get(predictor, [])}
        now = {field["name"]: field for field in current.get(predictor, [])}
        problem = None
        if added := [name for name in now if name not in was]:
            problem = f"field {added[0]!r} is new"
        elif gone := [name for name in was if name not in now]:
            problem = f"field {gone[0]!r} is gone"
        elif changed := [name for name in now if now[name] != was[name]]:
            name = changed[0]
            problem = f"field {name!r} is {_described(now[name])}, was {_described(was[name])}"
        elif list(was) != list(now):
            name = next(a for a, b in zip(now, was, strict=True) if a != b)
            problem = f"field {name!r} has moved"
        if problem:
            raise UserError(
                f"{path}: made for other signatures: in predictor {predictor!r} {problem}; "
                f"rerun {_MADE_BY}"
            )


def _described(field: dict[str, str]) -> str:
    return f"{field['role']} of type {field['type']}"


def _check_state(path: Path, state: Any, pipeline: dspy.Module) -> None:
    """DSPy sets every unknown key of a state as an attribute; let only the known ones in."""
    expected = pipeline.dump_state()
    if not isinstance(state, dict) or {*state} - {"metadata"} != {*expected}:
        raise UserError(
            f"{path}: not a saved program of this kind (predictors {', '.join(expected)}); "
            f"rerun {_MADE_BY}"
        )
    for name, known in expected.items():
        saved = state[name]
        odd = sorted({*saved} - {*known}) if isinstance(saved, dict) else ["it is no object"]
        if odd:
            raise UserError(f"{path}: predictor {name!r}: unknown key {odd[0]!r}; rerun {_MADE_BY}")
        if saved.get("lm") is not None:
            raise UserError(
                f"{path}: predictor {name!r} names a model; a pipeline must not; rerun {_MADE_BY}"
            )
