"""How long prompts really are: rendered by the adapter that will render them, before any call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from dspy_pipeline import SyntheticQuestionPipeline
from question_optimizer.programs.judge import NO_REFERENCE, QuestionJudge

_SAMPLE = 20  # items rendered
_REFLECTED_ON = 3  # items in a prompt that asks for better instructions
_TYPICAL_INSTRUCTIONS = 2000  # characters


def prompt_characters(
    target: str,
    judge: QuestionJudge,
    examples: Sequence[dspy.Example],
    arguments: Mapping[str, Any],
) -> dict[str, float]:
    """{role: characters of a typical prompt}, from the first 20 of `examples`.

    Students carry half of the demonstrations that the optimiser may give them. A prompt that asks
    the teacher for instructions is taken to hold what a run on three items does.
    """
    sample = list(examples[:_SAMPLE])
    judged = _mean([_judge_prompt(judge, example) for example in sample])
    if target == "judge":
        return {"judge": judged, "teacher": _REFLECTED_ON * judged}
    demos = int(arguments.get("max_bootstrapped_demos") or arguments.get("max_demos") or 0)
    pipeline = SyntheticQuestionPipeline()
    written = _mean([_pipeline_prompt(pipeline, example, 0) for example in sample])
    with_demos = _mean([_pipeline_prompt(pipeline, example, demos) for example in sample])
    return {
        "student": (written + with_demos) / 2,
        "teacher": _REFLECTED_ON * written if not demos else written,
        "judge": judged,
    }


def pipeline_characters(program: dspy.Module, examples: Sequence[dspy.Example]) -> float:
    """Characters of a typical prompt of a pipeline as it is, demonstrations included."""
    return _mean([_pipeline_prompt(program, example, 0) for example in examples[:_SAMPLE]])


def production_characters(program: Any, texts: Sequence[str]) -> float:
    """Characters of a typical prompt over these chunks; a guess for a program of the host's own."""
    if not hasattr(program, "named_predictors"):
        return sum(map(len, texts)) / max(1, len(texts)) + _TYPICAL_INSTRUCTIONS
    examples = [
        dspy.Example(
            chunk_text=text,
            persona_description="who searches, and what for" * 5,
            gold_question="",
        ).with_inputs("chunk_text", "persona_description")
        for text in texts
    ]
    return pipeline_characters(program, examples)


def judge_characters(judge: QuestionJudge, examples: Sequence[dspy.Example]) -> float:
    """Characters of a typical prompt of the judge."""
    return _mean([_judge_prompt(judge, example) for example in examples[:_SAMPLE]])


def _pipeline_prompt(program: dspy.Module, example: dspy.Example, demos: int) -> float:
    """Mean over the two steps. `demos` stands for so many more of the example itself."""
    inputs = {
        **example.inputs().toDict(),
        "query_type": "fact retrieval",
        "query_format": "formal question",
    }
    shown = {**inputs, "query": example.gold_question}
    lengths = []
    for _, predictor in program.named_predictors():
        known = {name: inputs[name] for name in predictor.signature.input_fields}
        extra = [dspy.Example(**shown) for _ in range(demos)]
        lengths.append(_length(predictor.signature, [*predictor.demos, *extra], known))
    return _mean(lengths)


def _judge_prompt(judge: QuestionJudge, example: dspy.Example) -> float:
    question = example.get("gold_question") or example.get("better") or ""
    known = {
        "chunk_text": example.chunk_text,
        "persona_description": example.persona_description,
        "reference_question": question or NO_REFERENCE,
        "question": question,
    }
    return _length(judge.judge.signature, judge.judge.demos, known)


def _length(signature: Any, demos: Sequence[Any], inputs: Mapping[str, Any]) -> float:
    messages = dspy.ChatAdapter().format(signature, demos=list(demos), inputs=dict(inputs))
    return float(sum(len(str(message["content"])) for message in messages))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
