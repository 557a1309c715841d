"""The worker processes of a Ray cluster: begun, watched, replaced, ended.

One on every node, or as many as asked. A node that joins is used, a worker that dies is replaced on
the node that has fewest, and a node on which none can begin is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from question_optimizer.errors import TRY_LATER, USAGE, StopRun, UserError
from question_optimizer.failures import redacted
from question_optimizer.programs.ray_node import NodeWorker, Setup

log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0  # between two looks at the cluster
_OPENING_SECONDS = 300.0  # a cold node may read DSPy from a network disk
_CLOSING_SECONDS = 15.0
_ABANDONED_SECONDS = 120.0  # without any worker: come back later
_KNOCK_SECONDS = 10.0
_MOST_FAILURES = 3  # of workers to begin, on one node
_OWN_STORE_BYTES = 100 * 2**20  # jobs and results are a few kB; Ray would take 30 % of the memory

_COUNTS = (
    "started ok rate_limited retried failed in_flight waiting input_tokens output_tokens spend"
).split()


@dataclass(eq=False)
class Worker:
    """A worker process as the driver knows it."""

    handle: Any
    node: str  # Ray's id
    where: str  # the node's address
    pid: int = 0
    slots: int = 0  # calls that its accounts allow at once
    ready: bool = False
    in_flight: int = 0
    asked: bool = False  # for its accounts
    accounts: list[dict[str, Any]] = field(default_factory=list)  # as last seen


class RayCluster:
    """The workers on the cluster at `address`, or on a Ray of our own where that is None.

    `wanted` is their number, None for one on every node. They reserve no CPU of the cluster's: they
    wait for answers most of the time.
    """

    def __init__(self, setup: Setup, address: str | None, wanted: int | None):
        self.nodes: dict[str, str] = {}  # alive: id -> address
        self.workers: list[Worker] = []
        self.refused: dict[str, UserError] = {}  # nodes of no use, and why
        self.died = 0  # workers
        self.gone: list[dict[str, Any]] = []  # the accounts, as workers that are no more saw them
        self._setup = setup
        self._address = address
        self._wanted = wanted
        self._failures: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: BaseException | None = None
        self._changed = asyncio.Event()  # a worker is ready, or all is over
        self._look = asyncio.Event()  # a worker is gone
        self._alone_since: float | None = None
        self._joined = False
        self._watching = False

    async def open(self) -> None:
        """Join or start Ray, and begin the workers; UserError where a node cannot work."""
        if self._watching:  # a run that goes on after a pause
            return
        # In a thread: on the main one Ray would take the script's signal handlers away.
        self._joined = await asyncio.to_thread(_join, self._address)
        while begun := await self._fill():
            await asyncio.gather(*begun)
        for error in self.refused.values():
            raise error
        if not self.workers:
            raise UserError("no node of the Ray cluster is alive; start one by `ray start`")
        self._watching = True
        self._start(self._watch())

    async def idlest(self, among: Callable[[Worker], bool]) -> Worker | None:
        """The worker with least to do; None where there are some, but none `among` those asked for.

        Waits while there is none at all. Raises what `end` was given.
        """
        while True:
            if self._ended is not None:
                raise self._ended
            if ready := [worker for worker in self.workers if worker.ready]:
                return min(filter(among, ready), key=lambda worker: worker.in_flight, default=None)
            self._changed.clear()
            await self._changed.wait()

    def lose(self, worker: Worker) -> None:
        """A worker has died, or cannot be reached: then it shall not go on by itself."""
        if worker in self.workers:
            self.died += 1
            self._remove(worker)
            self._look.set()

    def end(self, reason: BaseException) -> None:
        """No worker is given out any more; if `reason` is a StopRun, no call starts either."""
        self._ended = self._ended or reason
        self._changed.set()
        for worker in self.workers:
            if worker.ready and isinstance(reason, StopRun):
                worker.handle.stop.remote(reason)

    async def close(self) -> None:
        """End the workers, and this process's part in Ray if `open` began it."""
        self._ended = self._ended or StopRun("the Ray engine is closed", exit_code=USAGE)
        self._changed.set()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        closing = [self._ask(worker, "close") for worker in self.workers if worker.ready]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing), _CLOSING_SECONDS)
        for worker in self.workers[:]:
            self._remove(worker)
        if self._joined:
            import ray

            self._joined = False
            await asyncio.to_thread(ray.shutdown)

    # ------------------------------------------------------------------ in the background

    async def _watch(self) -> None:
        try:
            while self._ended is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._look.wait(), _LOOK_SECONDS)
                self._look.clear()
                await self._fill()
                self._end_if_alone()
                for worker in self.workers:
                    if worker.ready and not worker.asked:
                        self._start(self._ask(worker, "seen"))
        except Exception as error:  # whoever waits for a worker must hear of it
            self.end(error)

    async def _fill(self) -> list[asyncio.Task[None]]:
        """Begin the workers that are missing, each on the node that has fewest."""
        self.nodes = await asyncio.to_thread(_alive)
        for worker in self.workers[:]:
            if worker.node not in self.nodes:
                self.lose(worker)
        usable = [node for node in self.nodes if node not in self.refused]
        missing = (self._wanted or len(usable)) - len(self.workers)
        begun = []
        for _ in range(missing if usable else 0):
            taken = Counter(worker.node for worker in self.workers)
            node = min(usable, key=lambda node: taken[node])
            worker = Worker(_actor(self._setup, node), node, self.nodes[node])
            self.workers.append(worker)
            begun.append(self._start(self._open(worker)))
        return begun

    async def _open(self, worker: Worker) -> None:
        from ray.exceptions import RayError

        try:
            opened = await asyncio.wait_for(worker.handle.open.remote(), _OPENING_SECONDS)
        except (RayError, TimeoutError) as error:
            self._failures[worker.node] += 1
            if self._failures[worker.node] >= _MOST_FAILURES:
                why = f"no worker starts ({said(error)}); is question-optimizer installed there?"
                self._refuse(worker, UserError(why))
            self.lose(worker)
            return
        if isinstance(opened, StopRun | UserError):
            self._refuse(worker, opened)
            self._remove(worker)
            return
        worker.slots, worker.pid = opened
        worker.ready = True
        self._changed.set()

    def _refuse(self, worker: Worker, why: UserError | StopRun) -> None:
        error = UserError(f"Ray node {worker.where}: {why}", exit_code=why.exit_code)
        self.refused[worker.node] = error
        if self._watching:  # else `open` raises it
            log.warning("%s", error)

    async def _ask(self, worker: Worker, method: str) -> None:
        """Keep what a worker's `seen` or `close` says of its accounts, unless it is gone."""
        from ray.exceptions import RayError

        worker.asked = True
        with contextlib.suppress(RayError):
            worker.accounts = await getattr(worker.handle, method).remote()
        worker.asked = False

    def _remove(self, worker: Worker) -> None:
        import ray

        self.workers.remove(worker)
        idle = {"in_flight": 0, "waiting": 0, "why": ""}
        self.gone = merged([*self.gone, *(account | idle for account in worker.accounts)])
        with contextlib.suppress(Exception):  # it is dead, or Ray is
            ray.kill(worker.handle)

    def _end_if_alone(self) -> None:
        now = time.monotonic()
        if self.workers or self._alone_since is None:
            self._alone_since = now
        elif now - self._alone_since > _ABANDONED_SECONDS:
            why = "; ".join(str(error) for error in self.refused.values())
            self.end(
                StopRun(
                    "no node of the Ray cluster is left; everything is saved, run the same "
                    f"command when there are some{f' ({why})' if why else ''}",
                    exit_code=TRY_LATER,
                )
            )

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def merged(accounts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One account each name: counts are added up, of the rest the last word stands; that a node
    gets no answer is not lost where another does."""
    found: dict[str, dict[str, Any]] = {}
    for account in accounts:
        known = found.get(account["name"], {})
        sums = {name: account[name] + known.get(name, 0) for name in _COUNTS}
        why = account["why"] or known.get("why", "")
        found[account["name"]] = {**account, **sums, "why": why}
    return list(found.values())


def _join(address: str | None) -> bool:
    """Join the cluster at `address` or start one here; False if this process had joined one."""
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install 'question-optimizer[ray]'") from None
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"address": address}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home, unasked
        store = {"object_store_memory": _OWN_STORE_BYTES}
        options = {"address": "local", "include_dashboard": False, **store}
    try:
        _knock(address or "")
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if address is None:
            raise UserError(f"--engine ray: Ray does not start here ({said(error)})") from None
        raise UserError(
            f"--ray-address {address}: no cluster to be joined ({said(error)}); start one with "
            "`ray start --head`, and the same Python and Ray on all machines"
        ) from None
    return True


def _knock(address: str) -> None:
    """OSError where nobody listens at host:port: Ray itself takes minutes to say so."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), _KNOCK_SECONDS).close()


def _alive() -> dict[str, str]:
    """{id: address} of the nodes that have CPUs to give."""
    import ray

    alive = (node for node in ray.nodes() if node["Alive"])
    return {
        node["NodeID"]: node["NodeManagerAddress"] for node in alive if node["Resources"].get("CPU")
    }


def _actor(setup: Setup, node: str) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(NodeWorker).options(num_cpus=0, scheduling_strategy=here).remote(setup)


def said(error: BaseException) -> str:
    """Ray's long story in one line: the last, where the exception itself stands."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redacted(lines[-1][:300], ()) if lines else type(error).__name__
