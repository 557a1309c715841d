"""DSPy's chat prompts, with the constant part of each rendered once; and calls without detours."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import dspy
from dspy.adapters.chat_adapter import field_header_pattern
from dspy.utils.exceptions import AdapterParseError

from custom_lm import DispatcherLM
from question_optimizer.records import ClosedSet

T = TypeVar("T")
_MOST = 256  # renderings remembered; an optimiser makes a signature for each instruction it tries


class CachedPromptAdapter(dspy.ChatAdapter):
    """`dspy.ChatAdapter` that renders a signature's system message once.

    DSPy renders it for every call, a third of what a call costs the CPU. The prompts are the same
    to the letter. Safe from any thread.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._rendered: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        return self._once(
            signature, lambda: super(CachedPromptAdapter, self).format_system_message(signature)
        )

    def _once(self, key: Any, render: Callable[[], T]) -> T:
        found = self._rendered.get(key)
        if found is None:
            found = render()
            with self._lock:
                if len(self._rendered) >= _MOST:
                    self._rendered.clear()
                self._rendered[key] = found
        return found


class ProductionAdapter(CachedPromptAdapter):
    """For a program that changes no more: demonstrations are rendered once too, values that are
    text are put in as they are, and calls go straight to a `DispatcherLM`.

    The prompts are the same to the letter, and an answer that cannot be read is asked for again in
    JSON, as `dspy.ChatAdapter` does.
    """

    def format_demos(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        if not demos:
            return []
        _, rendered = self._once(  # with the demos themselves, so that no other list gets their id
            (signature, id(demos), len(demos)),
            lambda: (demos, super(ProductionAdapter, self).format_demos(signature, demos)),
        )
        return list(rendered)

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        given = [name for name in signature.input_fields if name in inputs]
        if not all(
            type(inputs[name]) is str or isinstance(inputs[name], ClosedSet) for name in given
        ):
            return super().format_user_message_content(
                signature, inputs, prefix, suffix, main_request
            )
        parts = [prefix, *(f"[[ ## {name} ## ]]\n{inputs[name]!s}" for name in given)]
        if main_request:
            parts.append(
                self._once(
                    (signature, "request"), lambda: self.user_message_output_requirements(signature)
                )
            )
        return "\n\n".join([*parts, suffix]).strip()

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """As DSPy reads it; a closed set reads its own member, without a schema made for it."""
        fields = signature.output_fields
        kinds = {name: field.annotation for name, field in fields.items()}
        if not all(kind is str or issubclass(kind, ClosedSet) for kind in kinds.values()):
            return super().parse(signature, completion)
        found: dict[str, list[str]] = {}
        lines: list[str] = []  # of what no field begins
        for line in completion.splitlines():
            if header := field_header_pattern.match(line.strip()):
                lines = [rest] if (rest := line[header.end() :].strip()) else []
                found.setdefault(header[1], lines)
            else:
                lines.append(line)
        try:
            values = {
                name: text if kind is str else kind.read(text)
                for name, kind in kinds.items()
                for text in ("\n".join(found[name]).strip(),)
            }
        except (KeyError, ValueError):
            return super().parse(signature, completion)  # which says what is wrong
        return values

    async def acall(
        self,
        lm: Any,
        lm_kwargs: dict[str, Any],
        signature: type[dspy.Signature],
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        if not (isinstance(lm, DispatcherLM) and lm.asks_directly):
            return await super().acall(lm, lm_kwargs, signature, demos, inputs)
        messages = self.format(signature, demos, inputs)
        text = await lm.ask_directly(messages, **lm_kwargs)
        try:
            return [self.parse(signature, text)]
        except AdapterParseError:
            again = self._make_json_adapter_fallback()
            return await again.acall(lm, lm_kwargs, signature, demos, inputs)
