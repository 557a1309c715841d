"""The records that phases pass on in files, and the closed sets that prompts choose from.

A record is known by its id (the Qdrant point id), never by its place in a file. Unknown keys are
kept, so that a file may carry more than these tools know of.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import core_schema

PointId = int | str
Split = Literal["train", "dev", "test"]
Origin = Literal["picked", "edited", "written"]


class ClosedSet(str):
    """A string out of a fixed list, read tolerantly and held exactly.

    Models answer `Fact Retrieval.`, `fact_retrieval` or `keywords (short)` where `fact retrieval`
    and `keywords` were asked for. A `Literal` refuses all three, and each refusal costs a second,
    paid call. Reading ignores case and punctuation, knows the usual synonyms, and accepts a longer
    answer if it names exactly one member; whatever is held is always a member.
    """

    members: ClassVar[tuple[str, ...]] = ()
    synonyms: ClassVar[dict[str, str]] = {}

    @classmethod
    def read(cls, answer: object) -> Self:
        """The member that `answer` names; ValueError listing the members if it names none."""
        folded = _folded(answer if isinstance(answer, str) else str(answer))
        known = {_folded(member): member for member in cls.members} | cls.synonyms
        if folded in known:
            return cls(known[folded])
        named = {member for name, member in known.items() if f" {name} " in f" {folded} "}
        if len(named) == 1:
            return cls(named.pop())
        raise ValueError(f"{str(answer)[:80]!r} is none of: {', '.join(cls.members)}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(
            cls.read,
            core_schema.is_instance_schema(cls),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "enum": list(cls.members)}


def _folded(text: str) -> str:
    return " ".join(re.findall(r"[a-z]+", text.casefold().replace("isation", "ization")))


class QueryType(ClosedSet):
    """What kind of thinking the question asks for."""

    members = (
        "fact retrieval",
        "analytical",
        "reasoning",
        "hypothetical",
        "summarisation",
        "evaluative",
    )
    synonyms: ClassVar[dict[str, str]] = {
        "fact": "fact retrieval",
        "factual": "fact retrieval",
        "explanatory": "analytical",
        "analytical or explanatory": "analytical",
        "scenario": "hypothetical",
        "hypothetical or scenario": "hypothetical",
        "summary": "summarisation",
        "evaluation": "evaluative",
    }


class QueryFormat(ClosedSet):
    """How the question is put: a sentence, or the few words one types into a search box."""

    members = ("formal question", "keywords")
    synonyms: ClassVar[dict[str, str]] = {
        "question": "formal question",
        "keyword": "keywords",
    }


class Chunk(BaseModel):
    """One chunk of a document as sampled from Qdrant."""

    model_config = ConfigDict(extra="allow")

    chunk_id: PointId
    chunk_text: str = Field(min_length=1, validation_alias=AliasChoices("chunk_text", "text"))
    document_id: str | None = None
    file_name: str | None = None
    headings: list[str] = []
    page_no: int | None = None
    existing_query: str | None = None  # the old generator's; never shown to an LLM
    previous_text: str | None = None  # the end of the chunk before it in the document
    next_text: str | None = None  # the beginning of the one after it

    @field_validator("headings", mode="before")
    @classmethod
    def _no_headings_is_an_empty_list(cls, value: object) -> object:
        return [] if value is None else value

    @property
    def document(self) -> str:
        """What stands for the document when items are split: id, else file name, else ''."""
        return self.document_id or self.file_name or ""


class Persona(BaseModel):
    """Who asks. `description` is what is embedded and what prompts get to see."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    source: str = ""


class Decision(BaseModel):
    """What a person decided on one chunk; a line of a `--replay` file has this shape too."""

    model_config = ConfigDict(extra="forbid")

    chunk_id: PointId
    action: Literal["pick", "edit", "write", "skip", "defer", "flag"]
    pick: int | None = Field(default=None, ge=1, description="which suggestion, from 1")
    gold_question: str | None = None
    persona_id: str | None = None
    query_type: QueryType | None = None
    query_format: QueryFormat | None = None
    reason: str | None = None  # of a skip
    note: str | None = None  # of a flag
    at: str | None = None

    @property
    def settles(self) -> bool:
        """Whether the chunk is done with; a deferred or flagged one comes back."""
        return self.action not in ("defer", "flag")

    @field_validator("gold_question", "reason", "note")
    @classmethod
    def _fit_for_utf8(cls, value: str | None) -> str | None:
        return value and re.sub("[\ud800-\udfff]", "\ufffd", value)


class GoldItem(BaseModel):
    """One entry of the gold set. Any tool may rely on the first three keys."""

    model_config = ConfigDict(extra="allow")

    chunk_text: str = Field(min_length=1)
    persona_description: str
    gold_question: str = Field(min_length=1)
    chunk_id: PointId
    document_id: str | None = None
    persona_id: str | None = None
    query_type: QueryType | None = None
    query_format: QueryFormat | None = None
    suggestions: list[str] = []
    suggestions_shown: bool = False
    suggested_by: list[str] = []  # the models
    bad_suggestions: list[str] = []  # those of `suggestions` that a person marked as bad
    order_seed: int | None = None  # of the order in which they were shown
    origin: Origin = "written"
    blind: bool = False  # an own question was asked for before any suggestion showed
    note: str | None = None  # what it was flagged with
    active_seconds: float | None = None
    annotator: str = ""
    split: Split | None = None
    split_group: str = ""  # the document (or section, or chunk) that is split as a whole
    existing_query: str | None = None  # the old generator's question for this chunk, if it has one
    file_name: str | None = None  # of the document, for people
