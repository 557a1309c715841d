"""Which item is in work, so that all calls made for it go to the same model.

Accounts may run different models. If chance decided who answers, two prompts would differ by model
as well as by prompt. So the item decides: within `on_item` a language model of ours asks the model
that `models_for` names first, whichever prompt, arm or candidate is at work.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_item: ContextVar[str | None] = ContextVar("item_in_work", default=None)


@contextmanager
def on_item(item: str) -> Iterator[None]:
    """Calls of this thread or task inside the block are made for `item`."""
    token = _item.set(item)
    try:
        yield
    finally:
        _item.reset(token)


def item_in_work() -> str | None:
    """The item of the enclosing `on_item`, None outside of one."""
    return _item.get()


def models_for(item: str, weights: Mapping[str, float]) -> list[str]:
    """The model that serves `item`, then those that would without it, and so on.

    Each is first for a share of the items in proportion to its weight (above 0).

    Weighted rendezvous hashing (Thaler & Ravishankar 1998; weights: Schindelhauer & Schomaker
    2005): a model that comes or goes moves only its own share of the items.
    """

    def draw(model: str) -> float:
        digest = hashlib.sha256(f"{model}\0{item}".encode("utf-8", "replace")).digest()
        uniform = (int.from_bytes(digest[:7], "big") + 0.5) / 2**56
        return -math.log(uniform) / weights[model]

    return sorted(sorted(weights), key=draw)
