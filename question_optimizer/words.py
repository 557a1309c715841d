"""What of a text is looked at, and what counts in it as a word, a sign, a name or a citation.

In any script: where spaces do not part words, characters stand for them.
"""

from __future__ import annotations

import math
import re

LOOKED_AT = 2000  # characters of a question; what is longer is no question
CHUNK_LOOKED_AT = 100_000  # characters of a chunk
UNPARTED = "\u3040-\u30ff\u3400-\u9fff"  # scripts that do not part words by spaces
THAI = "\u0e00-\u0e7f"
_EACH = f"{THAI}{UNPARTED}\uac00-\ud7af"
# A word, or a character of a script that does not part words.
ONE_WORD_EACH = re.compile(f"[{_EACH}]|[^\\W{_EACH}]+")
WORD = re.compile(r"[^\W\d_]+")
# A number, an identifier with a digit or "_", an operator.
SIGN = re.compile(r"(?<!\w)[^\W\d_]*[\d_]\w*|[^\w\s.,;:!?？؟'\"()\-–—…/&’‘“”„«»*]+")
ACRONYM = re.compile(r"[A-Z]\w*[A-Z]|[a-z][A-Z]")
# What stands in quotes or backticks: code, a message, a word that is spoken of.
CITED = re.compile(
    r"`[^`]{1,200}`|\"[^\"]{1,200}\"|“[^”]{1,200}”|«[^»]{1,200}»|„[^“”]{1,200}[“”]|"
    r"(?<!\w)'[^']{1,200}'(?!\w)"
)


def words_of(text: str) -> list[str]:
    """Its words in lower case, without a sign between them."""
    return re.findall(r"\w+", text.casefold())


def word_count(text: str) -> int:
    """How many words the first 2,000 characters hold, judged by spaces.

    Two Chinese or Japanese characters, or four Thai ones, count as a word.
    """
    text = text[:LOOKED_AT]
    if text.isascii():
        return len(text.split())
    unparted = len(re.findall(f"[{UNPARTED}]", text)) / 2 + len(re.findall(f"[{THAI}]", text)) / 4
    return len(re.sub(f"[{UNPARTED}{THAI}]+", " ", text).split()) + math.ceil(unparted)
