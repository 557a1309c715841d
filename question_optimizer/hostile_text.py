"""Document text is hostile until proven otherwise: make it inert before a prompt or a terminal.

A chunk may hold terminal escapes, lone surrogates from PDF extraction, or DSPy's own field markers,
with which it could forge an input field (`[[ ## persona_description ## ]]`). HTML is escaped where
HTML is written (`reports`).
"""

from __future__ import annotations

import re

# C0 and C1 controls except tab and newline, plus the bidirectional overrides that reorder a line.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_SURROGATES = re.compile("[\ud800-\udfff]")
_FIELD_MARKER = re.compile(
    r"\[(?=[\u200b-\u200f\u2060-\u2064\ufeff\u00ad]*\[[\s\u200b-\u200f\u2060-\u2064\ufeff\u00ad]*##)"
)


def storable(text: str) -> str:
    """`text` with lone surrogates replaced, which no UTF-8 file or HTTP body can carry."""
    return _SURROGATES.sub("\ufffd", text)


def printable(text: str) -> str:
    """`text` without anything a terminal would obey: escapes, controls, direction overrides."""
    return _CONTROLS.sub("", _ANSI.sub("", storable(text).replace("\r\n", "\n")))


def promptable(text: str) -> str:
    """`text` as a prompt may carry it: printable, and unable to open a field of its own."""
    return _FIELD_MARKER.sub("[ ", printable(text))


def one_line(text: str) -> str:
    """`text` printable, with every run of white space as one blank."""
    return " ".join(printable(text.replace("\r", "\n")).split())
