"""One slot of one chunk: job in, question out. The same on this machine and on a cluster's nodes.

A question passes the gates that need nothing but itself and its chunk, or the pipeline is asked
again with the reason told, up to `refills` times. What needs the whole corpus is for later
(`generation.settling`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from custom_lm import DispatcherLM
from question_optimizer.errors import reason_of
from question_optimizer.generation.checks import (
    ENFORCED,
    advice,
    question_findings,
    refusal,
    refused_once,
)
from question_optimizer.generation.ledger_records import Refusal, Result, State
from question_optimizer.programs.adapter import ProductionAdapter
from question_optimizer.records import PointId
from question_optimizer.usage import metered


@dataclass(frozen=True)
class Job:
    """What a worker needs to make one question; no key, nothing that cannot be sent."""

    chunk_id: PointId
    chunk_text: str
    persona_description: str
    so_far: Result  # the slot as the ledger knows it: what was planned, chosen and spent already
    refusals: tuple[Refusal, ...] = ()  # of this slot, oldest first


Keep = Callable[[Result, Sequence[Refusal]], Awaitable[None]]


class QuestionWorker:
    """Asks a pipeline through a dispatcher, under a gate policy.

    `program` is a SyntheticQuestionPipeline, or anything with
    `acall(chunk_text=, persona_description=)` that predicts query, query_type and query_format;
    the latter takes no plan and no advice, so it is asked once and never again.
    """

    def __init__(self, program: Any, dispatcher: Any, *, policy: str, refills: int):
        self._program = program
        self._steps = takes_advice(program)
        self._policy = policy
        self._tries = 1 + (refills if self._steps and policy in ENFORCED else 0)
        # No history and no trace: memory stays flat over any number of chunks.
        self._settings: dict[str, Any] = {
            "lm": DispatcherLM(dispatcher, role="student", cache=False),
            "adapter": ProductionAdapter(),
            "disable_history": True,
            "trace": None,
            "callbacks": [],
            "warn_on_type_mismatch": False,
        }

    async def do(self, job: Job, keep: Keep | None = None) -> tuple[Result, list[Refusal]]:
        """(the slot done, rejected or failed; the questions refused last).

        `keep` is given the slot, and what was refused, whenever something is paid for and more is
        to come, so that a killed run need not pay again; what it got is not returned once more.
        Raises StopRun where no account can go on; all else is the chunk's own failure.
        """
        result, refused = job.so_far, list(job.refusals)
        # A context, not configure(): the host may have DSPy settings of its own.
        with dspy.context(**self._settings):
            while True:
                result = await self._attempt(job, result, refused, keep)
                if result.state == "failed":
                    return result, []
                found = self._findings(job, result)
                if not found or self._policy not in ENFORCED:
                    # Where gates are off nothing is left to check; who refuses later looks anew.
                    passed = "off" if self._policy == "off" else ""
                    return replace(result, findings=tuple(found), checked=passed), []
                one = refusal(result, *found[0])
                result = refused_once(result, *found[0])
                if result.attempts % self._tries == 0:
                    return result, [one]
                refused.append(one)
                if keep is not None:
                    await keep(result, [one])

    async def _attempt(
        self, job: Job, so_far: Result, refused: Sequence[Refusal], keep: Keep | None
    ) -> Result:
        """Ask once: the slot with a query, or failed."""
        made: dict[str, Any] = {"reason": "", "gate": "", "findings": (), "query": None}
        result = so_far
        with metered() as meter:

            def spent() -> dict[str, Any]:
                total = meter.total
                return {
                    "calls": so_far.calls + total.calls,
                    "tokens": so_far.tokens + total.input_tokens + total.output_tokens,
                    "cost": so_far.cost + total.cost,
                    "model": next((c.model for c in reversed(meter.calls.values())), None),
                }

            try:
                if not self._steps:
                    made |= _read(await self._program.acall(**_inputs(job)))
                else:
                    if not (result.query_type and result.query_format):
                        kind, form = await self._program.analyse(**_inputs(job))
                        result = replace(
                            result, query_type=str(kind), query_format=str(form), analysed=True
                        )
                        if keep is not None:
                            await keep(replace(result, state="pending", **spent()), [])
                    written = await self._program.write(
                        **_inputs(job),
                        query_type=result.query_type,
                        query_format=result.query_format,
                        advice=advice(result, refused),
                    )
                    made["query"] = _one_line(written)
                if not made["query"]:
                    made["reason"] = "the model wrote no question"
            except AdapterParseError:
                made["reason"] = "the model's answer could not be read"
            except Exception as error:  # this chunk's failure is data; what stops runs is StopRun
                made["reason"] = reason_of(error)
        state: State = "done" if made["query"] else "failed"
        return replace(
            result, **made, **spent(), state=state, attempts=result.attempts + 1, checked=""
        )

    def _findings(self, job: Job, result: Result) -> list[tuple[str, str]]:
        return [] if self._policy == "off" else question_findings(result, job.chunk_text)


def takes_advice(program: Any) -> bool:
    """Whether a program has the pipeline's two steps, so that it can be told why it was refused."""
    return hasattr(program, "analyse") and hasattr(program, "write")


def _inputs(job: Job) -> dict[str, str]:
    return {"chunk_text": job.chunk_text, "persona_description": job.persona_description}


def _read(prediction: Any) -> dict[str, Any]:
    return {
        "query": _one_line(prediction.query),
        "query_type": str(prediction.query_type),
        "query_format": str(prediction.query_format),
    }


def _one_line(query: object) -> str | None:
    return " ".join(str(query or "").split()) or None
