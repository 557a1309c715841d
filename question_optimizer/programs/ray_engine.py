"""The generator's jobs on a Ray cluster (extra `ray`), with one set of limits for all nodes.

    driver   reads the corpus, keeps the ledger (its only writer) and hands out jobs
    nodes    a worker process each (`ray_node`), with a dispatcher and a pipeline of its own

A job goes to the worker with least to do and comes back as a value, so that exactly once is a
matter of the driver alone. What a worker had in work when it died is asked again elsewhere, from
the last step that came back. All nodes share the limits on a Redis or Valkey server, and a run's
ceilings are the driver's to give out (`ray_budget`).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from question_optimizer.errors import BUDGET, StopRun, UserError, reason_of
from question_optimizer.generation.ledger_records import Refusal, Result
from question_optimizer.programs.question_worker import Job, Keep
from question_optimizer.programs.ray_budget import Budget, Ceiling
from question_optimizer.programs.ray_cluster import RayCluster, Worker, merged, said
from question_optimizer.programs.ray_node import Outcome, Setup, without_password

log = logging.getLogger(__name__)
_MOST_LOSSES = 3  # workers that may die of one job


class RayEngine:
    """Does jobs on a Ray cluster; the local engine's interface, and the dispatcher's `stop`.

    address      of a cluster, "auto" or host:port, from one of its machines; None starts Ray here
    providers    the accounts' file; None is the rehearsal
    pipeline     `dspy_pipeline.pipeline_state` of the program; None is the original prompts
    limits_url   the Redis or Valkey server that all nodes share; only the rehearsal does without
    workers      how many worker processes; None is one on every node, those that join included
    max_calls    over all workers, retries included: never passed
    max_cost     over all workers: passed at most by what answers in flight cost more than was
                 reckoned, as on one machine; up to a call's price for each worker may be left

    `slots` is known after `open`, and stays.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        providers: Path | None,
        pipeline: str | None,
        limits_url: str | None,
        policy: str,
        refills: int,
        workers: int | None = None,
        max_calls: int | None = None,
        max_cost: float | None = None,
    ):
        _check(address, providers, limits_url)
        plain = without_password(limits_url) if limits_url else None
        self.setup = Setup(
            providers=_uncommented(providers) if providers is not None else None,
            providers_name=str(providers),
            pipeline=pipeline,
            limits_url=plain,
            limits_secret=plain != limits_url,
            policy=policy,
            refills=refills,
            ceiling=Ceiling(
                None if max_calls is None else 0,
                None if max_cost is None else 0.0,
            ),
        )
        self._budget = Budget(max_calls, max_cost)
        self.slots = 1  # jobs that can usefully be in work at once
        self.spend = 0.0  # what all that came back has cost; a dead worker's last calls did not
        self._cluster = RayCluster(self.setup, address, workers)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Join or start Ray, and begin the workers.

        UserError where a node cannot work, naming node and reason.
        """
        self._loop = asyncio.get_running_loop()
        try:
            await self._cluster.open()
        except BaseException:
            await self.close()
            raise
        slots = [worker.slots for worker in self._cluster.workers]
        self.slots = max(slots) if self.setup.limits_url else sum(slots)

    async def do(self, job: Job, keep: Keep | None = None) -> tuple[Result, list[Refusal]]:
        """`QuestionWorker.do` on some node, and on another if that one dies or may spend no more.

        Raises StopRun also where no node is left, or none that may spend anything.
        """
        losses = 0
        while losses < _MOST_LOSSES:
            worker = await self._cluster.idlest(self._budget.has_more_for)
            if worker is None:
                raise self._budget.reached()
            ceiling = self._budget.ceiling(worker, len(self._cluster.workers))
            job, outcome = await self._do_on(worker, job, ceiling, keep)
            if outcome is None:
                losses += 1
                self._cluster.lose(worker)
            elif outcome.ended is not None and outcome.ended.exit_code == BUDGET:
                self._budget.refused(worker, ceiling, len(self._cluster.workers))
            else:
                result, refusals = _unwrapped(outcome)
                self.spend += result.cost - job.so_far.cost
                return result, refusals
        reason = f"{_MOST_LOSSES} workers died while they had this chunk in work"
        attempts = job.so_far.attempts + 1
        return replace(job.so_far, state="failed", reason=reason, attempts=attempts), []

    async def _do_on(
        self, worker: Worker, job: Job, ceiling: Ceiling, keep: Keep | None
    ) -> tuple[Job, Outcome | None]:
        """(the job as far as it came there, how it ended; None if the worker is gone)."""
        from ray.exceptions import RayError, RayTaskError

        worker.in_flight += 1
        try:
            async for step in _values(worker.handle.do.remote(job, ceiling)):
                if isinstance(step, Outcome):
                    self._budget.tell(worker, step.spent)
                    return job, step
                slot, refused = step
                self.spend += slot.cost - job.so_far.cost
                # is paid for, whatever happens
                job = replace(job, so_far=slot, refusals=(*job.refusals, *refused))
                if keep is not None:
                    await keep(slot, refused)
        except RayTaskError as error:  # not even the worker could tell what it was
            raise RuntimeError(f"worker at {worker.where}: {said(error)}") from None
        except RayError as error:
            log.info("worker at %s is gone: %s", worker.where, said(error))
        finally:
            worker.in_flight -= 1
        return job, None

    def stop(self, reason: StopRun) -> None:
        """No job and no call starts any more: whoever asks gets `reason`. From any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cluster.end, reason)

    async def close(self) -> None:
        """End the workers, and this process's part in Ray if `open` began it."""
        await self._cluster.close()

    # ------------------------------------------------------------------ what can be seen

    def snapshot(self) -> list[dict[str, Any]]:
        """`LLMDispatcher.snapshot` over all workers: counts are sums, the rest is the latest.

        As of a second ago; of a worker that died, as of a second before. From any thread.
        """
        seen = [account for worker in self._cluster.workers for account in worker.accounts]
        return merged([*self._cluster.gone, *seen])

    def workers(self) -> list[Worker]:
        """Those that are ready."""
        return [worker for worker in self._cluster.workers if worker.ready]

    @property
    def died(self) -> int:
        """Workers that died so far."""
        return self._cluster.died

    def live_line(self) -> str:
        """For a progress bar: nodes, workers, jobs in work, workers lost, accounts in trouble."""
        parts = [
            f"{len(self._cluster.nodes)} nodes",
            f"{len(self.workers())} workers",
            f"{sum(worker.in_flight for worker in self.workers())} in flight",
        ]
        if self.died:
            parts.append(f"{self.died} workers died")
        parts += [str(error) for error in list(self._cluster.refused.values())]
        parts += map(_trouble, self.snapshot())
        return " · ".join(filter(None, parts))


def _check(address: str | None, providers: Path | None, limits_url: str | None) -> None:
    if providers is not None and not limits_url:
        raise UserError(
            "--engine ray needs --limits-url redis://…: without one set of limits every node "
            "would use every account's limits anew"
        )
    if (address or "").startswith("ray://"):
        raise UserError(
            f"--ray-address {address}: Ray Client is not supported; start the generator on a "
            "machine of the cluster, with --ray-address auto"
        )


def _trouble(account: Mapping[str, Any]) -> str:
    """An account that is out, spent, rests or does not answer, and why; '' if it is well."""
    name, because = account["name"], f": {account['why']}" if account["why"] else ""
    if account["out"]:
        return f"{name} is out{because}"
    if account["spent_today"]:
        return f"{name} spent today"
    if account["rests"] >= 1:
        return f"{name} rests {account['rests']:.0f} s{because}"
    return f"{name}{because}" if because else ""


def _unwrapped(outcome: Outcome) -> tuple[Result, list[Refusal]]:
    if outcome.ended is not None:
        raise outcome.ended
    if outcome.result is None:
        raise RuntimeError(f"a worker of the Ray cluster failed:\n{outcome.broken}")
    return outcome.result, list(outcome.refusals)


def _uncommented(path: Path) -> str:
    """The providers file without its comments: people leave keys in them."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)})") from error
    return re.sub(r"(?m)^[ \t]*#.*$", "", text)


async def _values(references: Any) -> AsyncIterator[Any]:
    async for reference in references:
        yield await reference
