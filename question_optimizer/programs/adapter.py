"""DSPy's chat prompts, with the constant part of each rendered once."""

from __future__ import annotations

import threading
from typing import Any

import dspy

_MOST = 256  # signatures remembered; an optimiser makes a new one for each instruction it tries


class CachedPromptAdapter(dspy.ChatAdapter):
    """`dspy.ChatAdapter` that renders a signature's system message once.

    DSPy renders it for every call, a third of what a call costs the CPU. The prompts are the same
    to the letter. Safe from any thread.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._rendered: dict[type[dspy.Signature], str] = {}
        self._lock = threading.Lock()

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        found = self._rendered.get(signature)
        if found is None:
            found = super().format_system_message(signature)
            with self._lock:
                if len(self._rendered) >= _MOST:
                    self._rendered.clear()
                self._rendered[signature] = found
        return found
