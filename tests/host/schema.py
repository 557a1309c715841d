"""What the host's former two structured calls returned."""

from typing import Literal

from pydantic import BaseModel


class QueryProfile(BaseModel):
    query_type: Literal["fact retrieval", "analytical", "reasoning", "hypothetical"]
    query_format: Literal["keywords", "formal question"]


class GeneratedQuery(BaseModel):
    query: str
