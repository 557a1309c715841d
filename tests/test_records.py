"""Records and closed sets: read tolerantly where a model answers, held exactly ever after."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import AdapterParseError
from pydantic import TypeAdapter, ValidationError

from dspy_signatures import AnalyzeQueryRelevance
from question_optimizer.records import Chunk, Decision, GoldItem, Persona, QueryFormat, QueryType

TYPES = "fact retrieval, analytical, reasoning, hypothetical, summarisation, evaluative"
FORMATS = "formal question, keywords"


class ScriptedLM(dspy.LM):
    """A `dspy.LM` over an engine that answers from a queue (the last answer repeats).

    An answer that is an exception is raised. `requests` keeps what was sent.
    """

    def __init__(self, *answers: str | Exception, name: str = "scripted", cache: bool = False):
        self.script = _Script(answers)
        super().__init__(
            f"test/{name}",
            engine=_Engine(self.script),
            async_engine=_AsyncEngine(self.script),
            cache=cache,
            num_retries=0,
        )

    @property
    def requests(self) -> list[lm15.Request]:
        return self.script.requests

    def sent(self) -> list[str]:
        """The text of every message that is the user's, demonstrations included, in order."""
        return [
            message.text
            for request in self.requests
            for message in request.messages
            if message.role == "user"
        ]


class _Script:
    def __init__(self, answers: tuple[str | Exception, ...]):
        self.queue = list(answers)
        self.requests: list[lm15.Request] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> _Script:
        return self

    def answer(self, request: lm15.Request) -> lm15.Response:
        self.requests.append(request)
        answer = self.queue.pop(0) if len(self.queue) > 1 else self.queue[0]
        if isinstance(answer, Exception):
            raise answer
        return lm15.Response(
            id=None,
            model="scripted",
            message=lm15.Message.assistant(answer),
            finish_reason="stop",
            usage=lm15.Usage(),
        )


class _Engine:
    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = False
    supported_params: frozenset[str] = frozenset({"temperature"})

    def __init__(self, script: _Script):
        self.script = script

    def complete(self, request: lm15.Request) -> lm15.Response:
        return self.script.answer(request)


class _AsyncEngine(_Engine):
    async def complete(self, request: lm15.Request) -> lm15.Response:  # type: ignore[override]
        return self.script.answer(request)


def fields(**values: str) -> str:
    """An answer as DSPy's chat adapter asks for it."""
    sections = "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in values.items())
    return f"{sections}[[ ## completed ## ]]"


# ---------------------------------------------------------------------- closed sets

TYPE_ANSWERS = [
    ("fact retrieval", "fact retrieval"),
    ("FACT RETRIEVAL", "fact retrieval"),
    ("Fact Retrieval.", "fact retrieval"),
    ("fact_retrieval", "fact retrieval"),
    ("Fact-Retrieval", "fact retrieval"),
    ("  fact \n retrieval ", "fact retrieval"),
    ('"analytical"', "analytical"),
    ("“analytical”", "analytical"),
    ("'reasoning'.", "reasoning"),
    ("**Hypothetical**", "hypothetical"),
    ("`evaluative`", "evaluative"),
    ("## Evaluative", "evaluative"),
    ("- reasoning", "reasoning"),
    ("1. fact retrieval", "fact retrieval"),
    ("summarisation", "summarisation"),
    ("Summarization", "summarisation"),
    ("analytical/explanatory", "analytical"),
    ("hypothetical or scenario", "hypothetical"),
    ("Factual", "fact retrieval"),
    ("summary", "summarisation"),
    ("Evaluation", "evaluative"),
    ("fact retrieval, because the chunk states limits", "fact retrieval"),
    ("Reasoning\n\nThe chunk explains why the log grows.", "reasoning"),
    ("Query type: summarization (the chunk is an overview)", "summarisation"),
]

FORMAT_ANSWERS = [
    ("keywords", "keywords"),
    ("Keyword", "keywords"),
    ("KEYWORDS!", "keywords"),
    ("keywords (short)", "keywords"),
    ("Keyword(s)", "keywords"),
    ("**keywords**", "keywords"),
    ("formal question", "formal question"),
    ("Formal_Question", "formal question"),
    ('"Formal question."', "formal question"),
    ("question", "formal question"),
    ("Formal question: a complete sentence", "formal question"),
]

REFUSED = [
    (QueryType, "causal", f"'causal' is none of: {TYPES}"),
    (QueryType, "", f"'' is none of: {TYPES}"),
    (QueryType, "?!", f"'?!' is none of: {TYPES}"),
    (QueryType, None, f"'None' is none of: {TYPES}"),
    (QueryType, 3, f"'3' is none of: {TYPES}"),
    (QueryType, "keywords", f"'keywords' is none of: {TYPES}"),
    (QueryType, "artefact retrievals", f"'artefact retrievals' is none of: {TYPES}"),
    (QueryType, "reasoning or analytical", f"'reasoning or analytical' is none of: {TYPES}"),
    (QueryType, "x" * 200, f"'{'x' * 80}' is none of: {TYPES}"),
    (QueryFormat, "formal", f"'formal' is none of: {FORMATS}"),
    (QueryFormat, "formal question or keywords", "'formal question or keywords' is none of: "),
    (QueryFormat, "Stichwörter", f"'Stichwörter' is none of: {FORMATS}"),
]


@pytest.mark.parametrize(("answer", "member"), TYPE_ANSWERS)
def test_a_query_type_is_read_from_what_models_write(answer: str, member: str) -> None:
    read = QueryType.read(answer)
    assert read == member
    assert isinstance(read, QueryType)


@pytest.mark.parametrize(("answer", "member"), FORMAT_ANSWERS)
def test_a_query_format_is_read_from_what_models_write(answer: str, member: str) -> None:
    assert QueryFormat.read(answer) == member


@pytest.mark.parametrize(("closed", "answer", "message"), REFUSED)
def test_an_ambiguous_or_foreign_answer_is_refused_with_the_members(
    closed: type[QueryType] | type[QueryFormat], answer: object, message: str
) -> None:
    with pytest.raises(ValueError, match="is none of") as refusal:
        closed.read(answer)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("closed", [QueryType, QueryFormat])
def test_every_member_and_synonym_reads_as_a_member(
    closed: type[QueryType] | type[QueryFormat],
) -> None:
    assert [closed.read(member) for member in closed.members] == list(closed.members)
    assert {closed.read(synonym) for synonym in closed.synonyms} <= set(closed.members)


def test_the_schema_that_prompts_show_lists_the_members() -> None:
    assert TypeAdapter(QueryFormat).json_schema() == {
        "type": "string",
        "enum": ["formal question", "keywords"],
    }


@pytest.mark.parametrize(("answer", "member"), TYPE_ANSWERS)
def test_a_prediction_holds_the_member_after_one_call(answer: str, member: str) -> None:
    lm = ScriptedLM(fields(query_type=answer, query_format="Keywords."))
    with dspy.context(lm=lm):
        prediction = dspy.Predict(AnalyzeQueryRelevance)(chunk_text="c", persona_description="p")
    assert (prediction.query_type, prediction.query_format) == (member, "keywords")
    assert type(prediction.query_type) is QueryType
    assert len(lm.requests) == 1


def test_a_json_answer_is_read_as_tolerantly() -> None:
    lm = ScriptedLM('{"query_type": "Fact_Retrieval", "query_format": "Formal question!"}')
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        prediction = dspy.Predict(AnalyzeQueryRelevance)(chunk_text="c", persona_description="p")
    assert prediction.query_type == "fact retrieval"
    assert prediction.query_format == "formal question"


def test_a_refused_answer_is_a_parse_error_and_never_a_guess() -> None:
    lm = ScriptedLM(fields(query_type="causal", query_format="keywords"))
    with dspy.context(lm=lm), pytest.raises(AdapterParseError):
        dspy.Predict(AnalyzeQueryRelevance)(chunk_text="c", persona_description="p")
    assert len(lm.requests) == 2  # the chat adapter, then the JSON adapter


# ---------------------------------------------------------------------- records


def test_a_chunk_may_call_its_text_text_and_keeps_unknown_keys() -> None:
    chunk = Chunk.model_validate({"chunk_id": 7, "text": "words", "score": 0.5, "headings": None})
    assert (chunk.chunk_text, chunk.headings) == ("words", [])
    assert chunk.model_dump()["score"] == 0.5
    assert "text" not in chunk.model_dump()


@pytest.mark.parametrize(
    ("row", "document"),
    [
        ({"document_id": "d", "file_name": "f"}, "d"),
        ({"file_name": "f"}, "f"),
        ({"document_id": "", "file_name": "f"}, "f"),
        ({}, ""),
    ],
)
def test_a_chunk_belongs_to_its_document_else_to_its_file(row: dict, document: str) -> None:
    assert Chunk.model_validate({"chunk_id": 1, "chunk_text": "c", **row}).document == document


@pytest.mark.parametrize("chunk_id", [0, 2**64 - 1, "7f8ae809-67e1-4820-b5f3-f4e8ec22c291", "12"])
def test_ids_keep_their_type_through_json(chunk_id: int | str) -> None:
    chunk = Chunk(chunk_id=chunk_id, chunk_text="c")
    again = Chunk.model_validate_json(chunk.model_dump_json())
    assert (again.chunk_id, type(again.chunk_id)) == (chunk_id, type(chunk_id))


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        (
            {"action": "delete"},
            "action",
            "Input should be 'pick', 'edit', 'write', 'skip', 'defer' or 'flag'",
        ),
        ({"action": "pick", "pick": 0}, "pick", "Input should be greater than or equal to 1"),
        ({"action": "skip", "why": "?"}, "why", "Extra inputs are not permitted"),
        (
            {"action": "write", "query_format": "prose"},
            "query_format",
            f"Value error, 'prose' is none of: {FORMATS}",
        ),
    ],
)
def test_a_decision_with_a_slip_is_refused_by_field(row: dict, field: str, message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        Decision.model_validate({"chunk_id": 1, **row})
    first = refusal.value.errors()[0]
    assert (first["loc"], first["msg"]) == ((field,), message)


def test_a_gold_item_writes_its_closed_sets_as_plain_strings_and_reads_them_back() -> None:
    item = GoldItem(
        chunk_text="c",
        persona_description="p",
        gold_question="q?",
        chunk_id=1,
        query_type=QueryType.read("Reasoning"),
        query_format=QueryFormat.read("keyword"),
    )
    dumped = item.model_dump(mode="json")
    assert (dumped["query_type"], dumped["query_format"]) == ("reasoning", "keywords")
    assert type(dumped["query_type"]) is str
    assert GoldItem.model_validate(dumped) == item


def test_a_persona_cannot_be_changed_after_reading() -> None:
    persona = Persona(id="a", name="A", description="does A")
    with pytest.raises(ValidationError, match="Instance is frozen"):
        persona.description = "does B"  # type: ignore[misc]
