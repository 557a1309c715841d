"""The rehearsal: a rule-based stand-in for a language model, to try the toolkit without a key.

It answers in process, below the real SDK, dispatcher and adapter (an httpx transport under
`AsyncOpenAI`), and is a pure function of the prompt. It writes questions from the chunk's own
terms, well or badly by rules that its instructions and demonstrations sway, and judges them by
rules of its own: enough that optimisation visibly moves the score, and no more. It is a rehearsal
of the process. What it says of a prompt's quality says nothing about any real model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from question_optimizer.records import QueryFormat, QueryType

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STOPWORDS = frozenset(
    "a about above after again all also am an and any are as at be because been before being "
    "below between both but by can cannot could did do does doing done down during each either "
    "every few for from further had has have having he her here hers him his how however i if "
    "in into is it its itself just like made make many may means might more most much must my "
    "name named no nor not now of off on once one only or other our out over own same section "
    "set shall she should since so some such text than that the their them then there these "
    "they this those through thus to too two under until up upon use used user uses using very "
    "was we well were what when where whether which while who whom why will with within without "
    "would you your document chunk passage happen happens matter depend depends concern points "
    "main serve compared involved active failed say says give given get new first second "
    "following example note see ".split()
)
_SELF_REFERENCE = re.compile(
    r"\b(this|the|above|given|following) (section|text|document|passage|chunk|excerpt|page)\b", re.I
)


# ---------------------------------------------------------------------- reading a prompt


@dataclass(frozen=True)
class _Field:
    name: str
    type: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class _Prompt:
    """What DSPy's chat and JSON adapters put into messages, read back."""

    instructions: str
    outputs: tuple[_Field, ...]
    inputs: dict[str, str]
    demos: tuple[dict[str, str], ...]  # inputs and outputs of each demonstration together
    wants_json: bool


_OUTPUTS = re.compile(r"Your output fields are:\n(.*?)\nAll interactions will be structured", re.S)
_FIELD_LINE = re.compile(r"^\d+\. `(\w+)` \((.*?)\):", re.M)
_OBJECTIVE = re.compile(r"your objective is:\s*(.*)\Z", re.S)
_SECTION = re.compile(r"^\[\[ ## (\w+) ## \]\]\s*$", re.M)


def _read_prompt(messages: Sequence[dict[str, Any]]) -> _Prompt | None:
    """The structured prompt in `messages`, None where it is free text."""
    system = "\n".join(str(m["content"]) for m in messages if m["role"] == "system")
    listed = _OUTPUTS.search(system)
    turns = [m for m in messages if m["role"] != "system"]
    if listed is None or not turns:
        return None
    outputs = tuple(
        _Field(name, kind, _choices(name, kind, system))
        for name, kind in _FIELD_LINE.findall(listed[1])
    )
    demos = []
    for asked, answered in zip(turns[:-1:2], turns[1:-1:2], strict=False):
        demos.append(_sections(str(asked["content"])) | _sections(str(answered["content"])))
    objective = _OBJECTIVE.search(system)
    return _Prompt(
        instructions=objective[1] if objective else "",
        outputs=outputs,
        inputs=_sections(str(turns[-1]["content"])),
        demos=tuple(demos),
        wants_json="Outputs will be a JSON object" in system,
    )


def _choices(name: str, kind: str, system: str) -> tuple[str, ...]:
    for closed in (QueryType, QueryFormat):
        if kind == closed.__name__:
            return closed.members
    if kind.startswith("Literal["):
        return tuple(part.strip().strip("'\"") for part in kind[8:-1].split(","))
    schema = re.search(rf'\{{{name}\}} +# note:.*?"enum": (\[.*?\])', system)
    return tuple(json.loads(schema[1])) if schema else ()


def _sections(content: str) -> dict[str, str]:
    """{field: value}; a JSON adapter's answer is one JSON object instead."""
    parts = _SECTION.split(content)
    found = {name: value.strip() for name, value in zip(parts[1::2], parts[2::2], strict=True)}
    if not found:
        try:
            parsed = json.loads(content)
            return {k: str(v) for k, v in parsed.items()} if isinstance(parsed, dict) else {}
        except ValueError:
            return {}
    last = list(found)[-1]
    found[last] = re.split(r"\n+Respond with ", found[last])[0].strip()
    return found


# ---------------------------------------------------------------------- writing and judging


def _chance(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` alone."""
    data = "\0".join(str(part) for part in parts).encode("utf-8", "replace")
    return int.from_bytes(hashlib.sha256(data).digest()[:6], "big") / 2**48


def _terms(text: str) -> list[str]:
    """The text's distinctive words, most telling first: identifiers, then by frequency."""
    words = [w for w in _WORD.findall(text) if len(w) > 2 and w.lower() not in _STOPWORDS]
    counts = Counter(word.lower() for word in words)
    spelling: dict[str, str] = {}
    for word in words:
        spelling.setdefault(word.lower(), word)

    def weight(term: str) -> float:
        word = spelling[term]
        identifier = "_" in word or (word != word.lower() and word != word.capitalize())
        return counts[term] * (1 + min(len(term), 12) / 12) * (3 if identifier else 1)

    order = list(spelling)
    return [spelling[t] for t in sorted(order, key=lambda t: (-weight(t), order.index(t)))]


_TEMPLATES = {
    "fact retrieval": "What does {0} do to {1} when {2} is involved?",
    "analytical": "How do {0} and {1} depend on {2}?",
    "reasoning": "Why does {0} matter for {1} and {2}?",
    "hypothetical": "What would happen to {0} if {1} failed while {2} was active?",
    "summarisation": "Which main points about {0} concern {1} and {2}?",
    "evaluative": "How well does {0} serve {1} compared with {2}?",
}


def _write_query(prompt: _Prompt, salt: str = "") -> str:
    """A question whose faults grow rarer with good instructions and good demonstrations."""
    chunk = prompt.inputs.get("chunk_text", "")
    kind = _as_member(QueryType, prompt.inputs.get("query_type"), "fact retrieval")
    form = _as_member(QueryFormat, prompt.inputs.get("query_format"), "formal question")
    refused = _REFUSED.findall(prompt.instructions)
    faults = _faults(chunk, _skill(prompt), salt) - {
        fault for gate in refused for fault in _AVOIDED.get(gate, ("specific",))
    }
    shift = int(_chance(chunk, "shift", salt) * 2)  # so that not every question opens alike
    if planned := _PLANNED.search(prompt.instructions):
        low, high = int(planned[1]), int(planned[2])
        words = low + int(_chance(chunk, "words", salt, len(refused)) * (max(low, high) - low + 1))
        terms = _others(_terms(chunk), shift + 3 * len(refused))
        return _in_words(kind, form, faults, terms, words)
    picked = _others([*_terms(chunk), *_HOLLOW[:4]], 3 * len(refused))[:6][shift : shift + 4]
    if "specific" in faults:
        picked = picked[:1]
    if form == "keywords":
        return f"Tell me about {' '.join(picked)}?" if "format" in faults else " ".join(picked)
    if "self-contained" in faults:
        return f"What does this section say about {' and '.join(picked[:2])}?"
    if len(picked) < 3:
        return f"What is {picked[0]}?"
    return _TEMPLATES[kind].format(*picked)


def _faults(chunk: str, skill: float, salt: str) -> set[str]:
    """What is wrong with a question: the less skill, the more of it."""
    bars = {"specific": skill, "format": skill + 0.2, "self-contained": skill}
    return {fault for fault, bar in bars.items() if _chance(chunk, fault, salt) >= bar}


# ---------------------------------------------------------------------- following advice

_PLANNED = re.compile(r"Write it in (\d+) to (\d+) words")
_REFUSED = re.compile(r"An earlier query was refused for: (\w+)")
# What a refusal teaches, by gate; any other gate's asks for terms that tell more.
_AVOIDED = {
    "refers_outside": ("self-contained",),
    "format": ("format",),
    "length": ("format", "specific"),
}
_HOLLOW = ("contents", "purpose", "limits", "scope", "meaning", "history", "basics", "reasons")
_OPENINGS = {  # each is followed by one term or several
    "fact retrieval": "What does {} do to",
    "analytical": "How does {} depend on",
    "reasoning": "Why does {} matter for",
    "hypothetical": "What would happen to {} without",
    "summarisation": "Which main points about {} concern",
    "evaluative": "How well does {} serve",
}
_CLAUSES = (
    "when {} is involved",
    "for somebody who relies on {}",
    "as long as {} stays in place",
    "in a program that knows nothing of {}",
)
_LISTED = 5  # words of a list of terms, at most, before another clause is begun


def _others(terms: list[str], first: int) -> list[str]:
    """The terms from the `first` on, and then those before it; each round begins one later."""
    first = (first + first // max(1, len(terms))) % max(1, len(terms))
    return [*terms[first:], *terms[:first]]


def _in_words(kind: str, form: str, faults: set[str], terms: list[str], words: int) -> str:
    """A question of so many words, wherever that leaves room for one (3 words) or keywords (1)."""
    terms = [*(terms[:1] if "specific" in faults else terms), *_HOLLOW]
    terms += terms * (words // len(terms))
    if form == "keywords":
        if "format" not in faults:
            return " ".join(terms[:words])
        return " ".join((["Tell", "me", "about"] * (words > 3) + terms)[:words]) + "?"
    opening = _OPENINGS[kind]
    if "self-contained" in faults:
        opening = "What does this section say about"
    if words <= len(opening.split()):
        opening = "What is"
    rest = iter(terms)
    begun = opening.format(next(rest)) if "{}" in opening else opening
    return f"{_filled(begun, rest, words - len(begun.split()))}?"


def _filled(begun: str, terms: Iterator[str], words: int) -> str:
    """A sentence taken on by a list of terms and by clauses, of one term each."""
    clauses: list[str] = []
    while words > _LISTED:
        fitting = [c for c in _CLAUSES if len(c.split()) < words]
        clauses.append(fitting[len(clauses) % len(fitting)])
        words -= len(clauses[-1].split())
    listed = [next(terms) for _ in range(max(1, words - 1))]
    if words == 2:
        listed = [f"the {listed[0]}"]
    elif words > 2:
        listed[-2:] = [f"{listed[-2]} and {listed[-1]}"]
    return " ".join([begun, ", ".join(listed), *(c.format(next(terms)) for c in clauses)])


def _skill(prompt: _Prompt) -> float:
    """In [0.3, 1]: what instructions ask for counts, what good demonstrations show counts more."""
    asked = prompt.instructions.lower()
    cues = int(any(cue in asked for cue in ("self-contained", "stand alone", "on its own")))
    cues += any(cue in asked for cue in ("specific", "distinctive", "precise"))
    advised = "at least three distinctive terms" in asked  # how to do it says more than that
    shown = [
        _criteria(demo.get("chunk_text", ""), "", demo["query"])
        for demo in prompt.demos
        if demo.get("query")
    ]
    good = sum(min(scores.values()) >= 3 for scores in shown)
    earned = 0.15 * cues + 0.2 * advised + 0.2 * min(good, 3) - 0.1 * (len(shown) - good)
    return min(1.0, 0.3 + earned)


def _criteria(chunk: str, persona: str, question: str, *, strict: bool = False) -> dict[str, int]:
    """The rubric's scores, 1 to 5, by rule; `strict` wants other words than the chunk's as well."""
    asked = [w.lower() for w in _WORD.findall(question) if w.lower() not in _STOPWORDS]
    there = {w.lower() for w in _WORD.findall(chunk)}
    found = sum(word in there for word in set(asked))
    words = question.split()
    keywords = "?" not in question and 2 <= len(words) <= 8
    sentence = question.rstrip().endswith("?") and question.count("?") == 1 and len(words) >= 5
    parroted = strict and found == len(set(asked))
    voice = {w.lower() for w in _WORD.findall(persona)} & set(asked)
    return {
        "answerable": 1 + round(4 * found / max(1, len(set(asked)))) if asked else 1,
        "self_contained": 1 if _SELF_REFERENCE.search(question) else 5,
        "specific": (1, 2, 3, 5)[min(3, found)],
        "fits_persona": 1 if parroted else 5 if voice or found >= 3 else 4 if found else 2,
        "well_formed": 5 if keywords or (sentence and not question.startswith("Tell me")) else 2,
    }


def _as_member(
    closed: type[QueryType] | type[QueryFormat], answer: str | None, default: str
) -> str:
    try:
        return closed.read(answer or default)
    except ValueError:
        return default


# ---------------------------------------------------------------------- answering


def _suggestions(prompt: _Prompt) -> str:
    kinds = list(QueryType.members)
    found: list[str] = []
    already = prompt.inputs.get("already_suggested", "")
    for number in range(24 if already else 8):
        form = "keywords" if number % 4 == 3 else "formal question"
        inputs = {**prompt.inputs, "query_type": kinds[number % len(kinds)], "query_format": form}
        one = _Prompt(prompt.instructions, (), inputs, prompt.demos, False)
        text = _write_query(one, salt=str(number))
        if text not in found and json.dumps(text)[1:-1] not in already and text not in already:
            found.append(text)
    return json.dumps(found[:4])


def _persona_choice(prompt: _Prompt) -> str:
    """The listed persona who shares most words with the chunk; none where nobody shares any."""
    words = set(re.findall(r"[a-z]{4,}", prompt.inputs.get("chunk_text", "").lower()))
    listed = re.findall(r"([\w-]+): ([^\n]*)", prompt.inputs.get("personas", ""))
    shared = {i: len(words & set(re.findall(r"[a-z]{4,}", text.lower()))) for i, text in listed}
    return max(shared, key=lambda i: shared[i]) if any(shared.values()) else "none"


def _scores(prompt: _Prompt, question: str) -> dict[str, int]:
    """What the rules give a question; instructions that ask to be strict are followed."""
    chunk, persona = (prompt.inputs.get(name, "") for name in ("chunk_text", "persona_description"))
    return _criteria(chunk, persona, question, strict=_STRICT in prompt.instructions)


def _judged(prompt: _Prompt, criterion: str) -> str:
    return str(_scores(prompt, prompt.inputs.get("question", ""))[criterion])


def _reason(prompt: _Prompt) -> str:
    if "query_a" in prompt.inputs:
        return _compared(prompt)
    faults = [
        name.replace("_", " ")
        for name, score in _scores(prompt, prompt.inputs.get("question", "")).items()
        if score < 4
    ]
    return f"Weak: {', '.join(faults)}." if faults else "No weakness by the rehearsal's rules."


def _preferred(prompt: _Prompt) -> str:
    """A, B or tie, by the sum of the same rules; which comes first counts for nothing."""
    a, b = (
        sum(_scores(prompt, prompt.inputs.get(name, "")).values())
        for name in ("query_a", "query_b")
    )
    return "tie" if a == b else "A" if a > b else "B"


def _compared(prompt: _Prompt) -> str:
    better = _preferred(prompt)
    if better == "tie":
        return "Neither is better by the rehearsal's rules."
    a, b = (_scores(prompt, prompt.inputs.get(name, "")) for name in ("query_a", "query_b"))
    ahead, behind = (a, b) if better == "A" else (b, a)
    points = [name.replace("_", " ") for name in ahead if ahead[name] > behind[name]]
    return f"Query {better} is ahead by the rehearsal's rules: {', '.join(points)}."


_STRICT = "Be strict on fits_persona"


def _better_instruction(current: str) -> str:
    advice = (
        "Make every question self-contained: name its subject, never 'this section'. "
        "Be specific: use at least three distinctive terms of the chunk."
    )
    if re.match(r"\W*(?:judge|decide which)\b", current, re.I):
        advice = f"{_STRICT}: give 1 to a query that only strings the chunk's own words together."
    return f"{' '.join(current.split())} {advice}".strip() if advice not in current else current


def _instruction(prompt: _Prompt) -> str:
    for name in ("basic_instruction", "current_instruction", "instruction"):
        if name in prompt.inputs:
            return _better_instruction(prompt.inputs[name])
    return _better_instruction("Write the question that the persona would ask about the chunk.")


_WRITERS: dict[str, Callable[[_Prompt], str]] = {
    "query": _write_query,
    "suggestions": _suggestions,
    "persona_choice": _persona_choice,
    "reason": _reason,
    "better": _preferred,
    "module_advice": lambda p: json.dumps(
        {
            name: _better_instruction("")
            for name in re.findall(r"\w+", p.inputs.get("module_names", ""))
        }
    ),
    **{
        name: partial(_judged, criterion=name)
        for name in ("answerable", "self_contained", "specific", "fits_persona", "well_formed")
    },
}


def _value(field: _Field, prompt: _Prompt) -> str:
    if field.name in _WRITERS:
        return _WRITERS[field.name](prompt)
    if "instruction" in field.name:
        return _instruction(prompt)
    if field.choices:
        chance = _chance(*sorted(prompt.inputs.items()), field.name)
        # a search box sees fewer keywords than sentences: the first choice is twice as likely
        ranked = (field.choices[0], *field.choices) if len(field.choices) == 2 else field.choices
        return ranked[int(chance * len(ranked))]
    base = field.type.split("[")[0]
    simple = {"int": "4", "float": "0.8", "bool": "True", "dict": "{}"}
    if base in simple:
        return simple[base]
    terms = ", ".join(_terms(" ".join(prompt.inputs.values()))[:3]) or "the task"
    return (
        json.dumps([f"about {terms}"]) if base == "list" else f"A rehearsed answer about {terms}."
    )


def answer(messages: Sequence[dict[str, Any]]) -> str:
    """The rehearsal's answer to OpenAI-style messages. A pure function."""
    prompt = _read_prompt(messages)
    if prompt is None:
        return _free_answer(str(messages[-1]["content"]) if messages else "")
    values = {field.name: _value(field, prompt) for field in prompt.outputs}
    if prompt.wants_json:
        return json.dumps({name: _jsonable(value) for name, value in values.items()})
    sections = "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in values.items())
    return f"{sections}[[ ## completed ## ]]"


def _jsonable(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _free_answer(text: str) -> str:
    """Prompts without fields: GEPA's reflection wants a fenced instruction, a person a reply."""
    if "```" in text and "instruction" in text.lower():
        fenced = re.search(r"```(.*?)```", text, re.S)
        return f"```\n{_better_instruction(fenced[1] if fenced else '')}\n```"
    sum_ = re.search(r"(-?\d+)\s*([+\-*])\s*(-?\d+)", text)
    if sum_:
        a, b = int(sum_[1]), int(sum_[3])
        return str({"+": a + b, "-": a - b, "*": a * b}[sum_[2]])
    return f"This is the rehearsal, not a language model. You wrote {len(text.split())} words."


class RehearsalTransport(httpx.AsyncBaseTransport):
    """Answers OpenAI chat completions in process, in place of a network."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(await request.aread())
        text = answer(body["messages"])
        return httpx.Response(200, json=completion(body, text))


def completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    """OpenAI's chat-completion object for `text`; tokens are a quarter of its characters."""
    asked = sum(len(str(message["content"])) for message in body["messages"]) // 4
    return {
        "id": "rehearsal-" + hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12],
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model", "rehearsal"),
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        ],
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": len(text) // 4,
            "total_tokens": asked + len(text) // 4,
        },
    }
