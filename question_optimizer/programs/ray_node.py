"""What runs on a node of a Ray cluster: a worker process that makes questions for the driver.

No key travels. A node gets the providers file's text, which names variables, and reads those from
its own environment; the same holds for a password in the address of the limits' server.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from question_optimizer.dispatcher import LLMDispatcher, open_store
from question_optimizer.errors import StopRun, UserError
from question_optimizer.failures import redacted
from question_optimizer.generation.ledger_records import Refusal, Result
from question_optimizer.programs.ray_budget import NO_CEILING, NOTHING, Ceiling, Spent
from question_optimizer.providers import LLMClientConfig, load_providers, rehearsal_account

if TYPE_CHECKING:
    from question_optimizer.programs.question_worker import Job, Keep, QuestionWorker

LIMITS_VARIABLE = "QO_LIMITS_URL"


@dataclass(frozen=True)
class Setup:
    """What a worker is made from. It lies open in Ray's tables, so it holds no secret."""

    providers: str | None  # the providers file's text; None is the rehearsal
    providers_name: str  # for messages
    pipeline: str | None  # `dspy_pipeline.pipeline_state`; None is the original prompts
    limits_url: str | None  # without user and password
    limits_secret: bool  # whether it had any
    policy: str
    refills: int
    ceiling: Ceiling = NO_CEILING  # of a worker that was given nothing yet


@dataclass(frozen=True)
class Outcome:
    """How a job ended, as a value: Ray would wrap an exception, and print where it passed."""

    result: Result | None = None
    refusals: tuple[Refusal, ...] = ()
    ended: StopRun | UserError | None = None  # the run as a whole
    broken: str = ""  # an unexpected exception's traceback
    spent: Spent = NOTHING  # by the worker, since it began


Kept = tuple[Result, tuple[Refusal, ...]]  # a slot on its way, and what was refused last


class NodeWorker:
    """One worker process: an asyncio actor with a dispatcher and a pipeline of its own."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._dispatcher: LLMDispatcher  # both are made by `open`
        self._worker: QuestionWorker

    async def open(self) -> tuple[int, int] | StopRun | UserError:
        """(calls that the accounts allow at once, process id), or why this node cannot work."""
        setup, environ = self._setup, _environment()
        try:
            accounts = _accounts(setup, environ)
            store = open_store(None, url=_limits_url(setup, environ))
            self._dispatcher = LLMDispatcher(
                accounts,
                store=store,
                max_calls=setup.ceiling.calls,
                max_cost=setup.ceiling.cost,
            )
        except (StopRun, UserError) as error:
            return error
        # Only now: DSPy takes seconds, and a missing key should be told at once.
        from question_optimizer.programs.question_worker import QuestionWorker

        self._worker = QuestionWorker(
            _program(setup.pipeline), self._dispatcher, policy=setup.policy, refills=setup.refills
        )
        return self._dispatcher.slots("student"), os.getpid()

    async def do(self, job: Job, ceiling: Ceiling = NO_CEILING) -> AsyncIterator[Kept | Outcome]:
        """What is to be kept of the job as soon as it is paid for, and at last its outcome.

        `ceiling` is what this worker may have spent by now, from jobs before and beside this one.
        """
        self._allow(ceiling)
        steps: asyncio.Queue[Kept | Outcome] = asyncio.Queue()

        async def keep(result: Result, refused: Sequence[Refusal]) -> None:
            await steps.put((result, tuple(refused)))

        async def work() -> None:
            outcome = await self._outcome(job, keep)
            steps.put_nowait(replace(outcome, spent=self.spent()))

        working = asyncio.create_task(work())
        while not isinstance(step := await steps.get(), Outcome):
            yield step
        await working
        yield step

    async def _outcome(self, job: Job, keep: Keep) -> Outcome:
        try:
            result, refusals = await self._worker.do(job, keep)
        except (StopRun, UserError) as error:
            return Outcome(ended=error)
        except Exception as error:
            keys = [account.api_key for account in self._dispatcher.clients]
            return Outcome(broken=redacted("".join(traceback.format_exception(error)), keys))
        return Outcome(result, tuple(refusals))

    def spent(self) -> Spent:
        """By this worker, since it began."""
        return Spent(self._dispatcher.calls, self._dispatcher.spend)

    def _allow(self, ceiling: Ceiling) -> None:
        """Ceilings only rise, and one may overtake another on its way here."""
        dispatcher = self._dispatcher
        if ceiling.calls is not None:
            dispatcher.max_calls = max(dispatcher.max_calls or 0, ceiling.calls)
        if ceiling.cost is not None:
            dispatcher.max_cost = max(dispatcher.max_cost or 0.0, ceiling.cost)
        dispatcher.wake()

    async def seen(self) -> list[dict[str, Any]]:
        """`LLMDispatcher.snapshot`."""
        return self._dispatcher.snapshot()

    async def stop(self, reason: StopRun) -> None:
        """No further call starts here."""
        self._dispatcher.stop(reason)

    async def close(self) -> list[dict[str, Any]]:
        """Give back what was reserved and not used; the last snapshot."""
        await asyncio.to_thread(self._dispatcher.close)
        await self._dispatcher.aclose()
        return self._dispatcher.snapshot()


def without_password(url: str) -> str:
    """`url` without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _environment() -> dict[str, str]:
    """The node's, and a `.env` where its Ray was started."""
    from dotenv import dotenv_values

    written = {name: value for name, value in dotenv_values(Path(".env")).items() if value}
    return {**written, **os.environ}


def _accounts(setup: Setup, environ: Mapping[str, str]) -> list[LLMClientConfig]:
    if setup.providers is None:
        return [rehearsal_account()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "llm_providers.toml"
        path.write_text(setup.providers, encoding="utf-8")
        try:
            return load_providers(path, environ)
        except UserError as error:
            raise UserError(str(error).replace(str(path), setup.providers_name)) from None


def _limits_url(setup: Setup, environ: Mapping[str, str]) -> str | None:
    """The limits' server, with the password that only the node's own environment knows."""
    if not setup.limits_secret:
        return setup.limits_url
    own = environ.get(LIMITS_VARIABLE, "")
    if without_password(own) != setup.limits_url:
        raise UserError(
            f"{LIMITS_VARIABLE} is not set to {setup.limits_url} with its password, which is "
            "never sent; set it where `ray start` is called"
        )
    return own


def _program(state: str | None) -> Any:
    from dspy_pipeline import SyntheticQuestionPipeline, fingerprint

    program = SyntheticQuestionPipeline()
    if state is not None:
        saved = json.loads(state)
        program.load_state({name: saved[name] for name in fingerprint(program)})
    return program
