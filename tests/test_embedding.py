"""Texts as vectors: a model of one's own, LlamaIndex's, or a function; bad vectors are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding

from question_optimizer.embedding import Embedder, embedder_of
from question_optimizer.errors import UserError


class Host(BaseEmbedding):
    """A host's LlamaIndex embedding: texts point one way, queries another."""

    model_name: str = "host-embedding"

    def _get_text_embedding(self, text: str) -> list[float]:
        return [3.0, 4.0 * len(text), 0.0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return [0.0, 0.0, float(len(query))]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


def test_a_llama_index_embedding_embeds_texts_and_queries_each_in_its_way() -> None:
    embedder = embedder_of(Host())
    assert embedder.model == "host-embedding"
    texts = embedder.embed(["a"] * 25)  # more than one of LlamaIndex's own batches
    assert texts.dtype == np.float32
    assert texts.tolist() == [[pytest.approx(0.6), pytest.approx(0.8), 0]] * 25
    assert embedder.embed_queries(["why", "how"]).tolist() == [[0, 0, 1], [0, 0, 1]]
    assert embedder.embed([]).shape == (0, 0)


def test_a_function_embeds_and_an_embedder_is_taken_as_it_is() -> None:
    def lengths(texts: list[str]) -> list[list[int]]:
        return [[len(text), 0] for text in texts]

    embedder = embedder_of(lengths)
    assert embedder.model.endswith("lengths")
    assert embedder.embed(["brake", "door"]).tolist() == [[1, 0], [1, 0]]
    assert embedder.embed_queries(["brake"]).tolist() == [[1, 0]]
    assert embedder_of(embedder) is embedder
    named = embedder_of(Path("models") / "mine")
    assert isinstance(named, Embedder)
    assert named.model == str(Path("models") / "mine")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([[1.0, 2.0]], "gave 1 x 2 for 2 texts; it must give one vector a text"),
        ([1.0, 2.0], "gave 2 for 2 texts"),
        ([[], []], "gave 2 x 0 for 2 texts"),
        (None, "float() argument"),
        ([[1.0], [1.0, 2.0]], "no rows of equally many numbers"),
        ([["a"], ["b"]], "no rows of equally many numbers"),
        ([[1.0], [float("nan")]], "not of finite numbers"),
        ([[1.0], [1e300]], "not of finite numbers"),
        ([[1.0], [0.0]], "zeros only"),
    ],
)
def test_vectors_that_are_none_are_refused_in_one_line(given: Any, said: str) -> None:
    if given is None:
        given = [object(), object()]
    with pytest.raises(UserError) as refused:
        embedder_of(lambda texts: given).embed(["a", "b"])
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_model_must_embed_chunks_and_queries() -> None:
    embedder = embedder_of(lambda texts: [[1.0] * len(text) for text in texts])
    embedder.embed(["abc"])
    with pytest.raises(UserError, match="vectors of 2 numbers after such of 3"):
        embedder.embed_queries(["ab"])


def test_a_host_embedding_that_fails_is_named_with_its_reason() -> None:
    def out_of_order(texts: list[str]) -> list[list[float]]:
        raise ConnectionError("no route to the embedding server")

    with pytest.raises(UserError, match=r"out_of_order.*ConnectionError: no route"):
        embedder_of(out_of_order).embed(["a"])


def test_what_embeds_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="type int embeds nothing; give a model's name"):
        embedder_of(7)


def test_a_model_with_a_prompt_for_queries_puts_it_before_them(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["[UNK]", "brake", "find"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32)
    module = StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[module], prompts={"query": "find "}).save(str(tmp_path / "m"))
    embedder = embedder_of(tmp_path / "m")
    half = pytest.approx(2**-0.5)
    assert embedder.embed(["brake"]).tolist() == [[1, 0, 0]]
    assert embedder.embed_queries(["brake"]).tolist() == [[half, half, 0]]

    module = StaticEmbedding(tokenizer, embedding_weights=weights * np.nan)
    SentenceTransformer(modules=[module]).save(str(tmp_path / "nan"))
    with pytest.raises(UserError, match="not of finite numbers"):
        embedder_of(tmp_path / "nan").embed(["brake"])


def test_a_model_without_such_a_prompt_embeds_queries_like_texts() -> None:
    embedder = embedder_of("all-MiniLM-L6-v2")
    asked = ["worn brake pads"]
    assert np.array_equal(embedder.embed(asked), embedder.embed_queries(asked))
