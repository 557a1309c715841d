"""The generator's jobs on a Ray cluster of two nodes, one of which is killed while it works.

Real Ray, a real Redis server for the limits, and benchmarks/limit_server.py as the provider, whose
own counts are the judge. At a larger scale:

    PYTHONPATH=. python tests/test_ray_engine.py --chunks 648 --per-minute 3000 --latency 0.2
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pickle
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from conftest import COLLECTION, ROOT, SAMPLE
from question_optimizer.chunk_store import chunk_of, open_store
from question_optimizer.dispatcher import LLMDispatcher
from question_optimizer.errors import BUDGET, TRY_LATER, StopRun, UserError
from question_optimizer.generation.ledger import Ledger
from question_optimizer.generation.ledger_records import Configuration, Refusal, Result
from question_optimizer.programs.question_worker import Job
from question_optimizer.programs.ray_budget import Budget, Ceiling, Spent
from question_optimizer.programs.ray_cluster import Worker, merged
from question_optimizer.programs.ray_engine import RayEngine
from question_optimizer.programs.ray_node import NodeWorker
from question_optimizer.providers import rehearsal_account
from test_limit_redis import Server as LimitsServer

sys.path.insert(0, str(ROOT / "benchmarks"))

from limit_server import Server, running

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytest.importorskip("redis", reason="the extra `redis` is not installed")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


KEY = "key-that-stays-on-its-node-51c7"
KEY_VARIABLE = "RAY_NODE_KEY"
PERSONA = "A database administrator who wants to know what to do."
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}
# A dead node is noticed within a second instead of half a minute.
HEALTH = {
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 500,
}
NODE: dict[str, Any] = {
    "num_cpus": 1,
    "object_store_memory": 80 * 2**20,
    "include_dashboard": False,
}
IN_FLIGHT = 16


@contextlib.contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes on this machine; none of its processes outlives the block."""
    os.environ.update(QUIET | {KEY_VARIABLE: KEY})
    from ray.cluster_utils import Cluster

    before = set(tree_of(os.getpid()))
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"_system_config": HEALTH})
    begun = set(tree_of(os.getpid())) - before
    try:
        cluster.add_node(**NODE)
        yield cluster
    finally:
        begun |= set(tree_of(os.getpid())) - before
        cluster.shutdown()
        for name in (*QUIET, KEY_VARIABLE):
            os.environ.pop(name, None)
    deadline = time.monotonic() + 10
    while any(map(is_alive, begun)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, begun)), "a process of Ray's was left"


@contextlib.contextmanager
def limits_server(folder: Path) -> Iterator[LimitsServer]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = LimitsServer(folder, free.getsockname()[1])
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with two_nodes() as made:
        yield made


@pytest.fixture
def limits(tmp_path: Path) -> Iterator[LimitsServer]:
    with limits_server(tmp_path) as server:
        yield server


def providers_file(folder: Path, base_url: str, per_minute: int, variable: str) -> Path:
    path = folder / "llm_providers.toml"
    path.write_text(
        f"# {KEY}\n"
        f'[[accounts]]\nname = "shared"\nmodel = "m"\nbase_url = "{base_url}"\n'
        f'api_key_env = "{variable}"\nrpm_limit = {per_minute}\nconcurrency = {IN_FLIGHT}\n'
        "timeout = 20\ninput_price = 1.0\noutput_price = 2.0\n",
        encoding="utf-8",
    )
    return path


def provider(per_minute: int, latency: float) -> dict[str, Any]:
    """A key's limit, enforced, but so that nodes which do not share it would be seen at once: two
    seconds' worth may be taken as fast as it is asked for."""
    requests = {"limit": per_minute, "window": 60, "kind": "bucket", "burst": per_minute / 30}
    key = {"requests": requests, "reply": "rehearsal", "latency": latency, "tokens_used": None}
    return {"keys": {KEY: key}, "default": {"refuse": 401}}


def jobs_of(count: int) -> list[Job]:
    store = open_store(path=SAMPLE / "small_sqlite", collection=COLLECTION)
    try:
        ids = list(store.point_ids())[:count]
        chunks = [chunk_of(point_id, payload)[0] for point_id, payload in store.payloads(ids)]
    finally:
        store.close()
    return [
        Job(chunk.chunk_id, chunk.chunk_text, PERSONA, Result(chunk.chunk_id))
        for chunk in chunks
        if chunk is not None
    ]


async def all_done(engine: RayEngine, jobs: Sequence[Job], ledger: Ledger) -> None:
    """As the generator does it: as many consumers as slots, the ledger written here alone."""
    queue = list(reversed(jobs))

    async def keep(result: Result, refused: Sequence[Refusal]) -> None:
        ledger.record([result])

    async def consume() -> None:
        while queue:
            result, _ = await engine.do(queue.pop(), keep)
            ledger.record([result])

    await asyncio.gather(*(consume() for _ in range(engine.slots)))


def tree_of(pid: int) -> list[int]:
    """A process and all its descendants."""
    tree = [pid]
    for parent in tree:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                tree += map(int, (task / "children").read_text().split())
    return tree


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants, without a word to any of them."""
    for process in tree_of(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@dataclass(frozen=True)
class Figures:
    chunks: int
    done: int
    different_calls: int
    accepted: int
    refused_429: int
    busiest_second: float  # share of the limit
    in_flight_on_the_dead: int
    workers_died: int
    seconds: float
    share_of_the_limit: float
    spend: float
    paid_in_the_ledger: float
    live_line: str


async def killed_midway(
    cluster: Any,
    limits: LimitsServer,
    server: Server,
    folder: Path,
    *,
    chunks: int,
    per_minute: int,
    latency: float,
) -> Figures:
    """All chunks through both nodes; the second dies when half are done."""
    server.configure(provider(per_minute, latency))
    jobs = jobs_of(chunks)
    ledger = Ledger(folder / "generation.sqlite", Configuration("c", "p", "p", ("m",)))
    path = providers_file(folder, server.base_url, per_minute, KEY_VARIABLE)
    engine = engine_of(cluster.address, providers=path, limits_url=limits.url)
    await engine.open()
    began = time.monotonic()
    working = asyncio.create_task(all_done(engine, jobs, ledger))
    victim = next(iter(cluster.worker_nodes))
    while ledger.counts()["done"] < 0.5 * chunks and not working.done():
        await asyncio.sleep(0.02)
    assert not working.done()
    assert len(engine.workers()) == 2
    in_flight = next(w.in_flight for w in engine.workers() if w.node == victim.node_id)
    kill_tree(victim.all_processes["raylet"][0].process.pid)
    await asyncio.wait_for(working, 300)
    seconds = time.monotonic() - began
    line = engine.live_line()
    await engine.close()
    with contextlib.closing(ledger):
        results = list(ledger.results("done"))
    stats = server.stats()
    key = stats["keys"][KEY]
    accepted = key["ok"] + key["abandoned"]
    return Figures(
        chunks=len(jobs),
        done=len({result.chunk_id for result in results}),
        different_calls=stats["requests"],
        accepted=accepted,
        refused_429=sum(key["refused_429"].values()),
        busiest_second=round(max(key["ok_by_second"].values()) / (per_minute / 60), 2),
        in_flight_on_the_dead=in_flight,
        workers_died=engine.died,
        seconds=round(seconds, 2),
        share_of_the_limit=round(accepted / seconds / (per_minute / 60), 3),
        spend=round(engine.spend, 6),
        paid_in_the_ledger=round(sum(result.cost for result in results), 6),
        live_line=line,
    )


def engine_of(address: str | None = None, **options: Any) -> RayEngine:
    usual: dict[str, Any] = {"providers": None, "pipeline": None, "limits_url": None}
    return RayEngine(address, **{**usual, "policy": "record", "refills": 0, **options})


@pytest.mark.parametrize(
    ("address", "options", "said"),
    [
        (None, {"providers": Path("llm_providers.toml")}, "needs --limits-url redis://"),
        ("ray://head:10001", {}, "start the generator on a machine of the cluster"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    address: str | None, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        engine_of(address, **options)


async def test_an_address_at_which_nobody_listens_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=f"--ray-address {address}: no cluster to be joined"):
        await engine_of(address).open()


async def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"pip install 'question-optimizer\[ray\]'"):
        await engine_of().open()


async def test_a_password_stays_where_it_is_and_a_node_without_it_says_what_to_set(
    tmp_path: Path,
) -> None:
    commented = tmp_path / "llm_providers.toml"
    commented.write_text(f'# {KEY}\n  #api_key = "{KEY}"\n[[accounts]]\n', encoding="utf-8")
    url = "redis://user:very-secret-word@10.0.0.1:6379/0"
    setup = engine_of(providers=commented, limits_url=url).setup
    assert setup.limits_url == "redis://10.0.0.1:6379/0"
    assert "[[accounts]]" in (setup.providers or "")
    assert b"very-secret" not in pickle.dumps(setup) and KEY.encode() not in pickle.dumps(setup)
    answer = await NodeWorker(replace(setup, providers=None)).open()
    assert isinstance(answer, UserError)
    assert "QO_LIMITS_URL is not set to redis://10.0.0.1:6379/0 with its password" in str(answer)


async def test_the_end_of_a_run_comes_back_as_a_value_after_the_step_that_was_paid_for(
    llm_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    path = providers_file(tmp_path, f"{llm_server().url}/v1", 6000, KEY_VARIABLE)
    path.write_text(path.read_text() + "daily_limit = 1\n")
    setup = engine_of(providers=path, limits_url="redis://127.0.0.1:1").setup
    worker = NodeWorker(replace(setup, limits_url=None))
    opened = await worker.open()
    assert opened == (IN_FLIGHT, os.getpid())
    steps = [pickle.loads(pickle.dumps(step)) async for step in worker.do(jobs_of(1)[0])]
    await worker.close()
    kept, outcome = steps
    slot, refused = kept
    assert (slot.state, slot.analysed, slot.calls) == ("pending", True, 1)
    assert refused == ()
    assert isinstance(outcome.ended, StopRun)
    assert outcome.ended.exit_code == TRY_LATER
    assert "daily quota of every account" in str(outcome.ended)
    assert KEY not in repr(steps)


def test_counts_of_one_account_are_added_up_over_the_nodes() -> None:
    with LLMDispatcher([rehearsal_account()]) as dispatcher:
        one = dispatcher.snapshot()[0]
    seen = merged([one | {"ok": 2, "spend": 0.5, "rests": 9.0}, one | {"ok": 3, "spend": 0.25}])
    assert seen == [one | {"ok": 5, "spend": 0.75}]


# ---------------------------------------------------------------------- ceilings


def spend_all(budget: Budget, *, workers: int, price: float, seed: int) -> list[float]:
    """What workers spend of `budget` whose calls cost up to `price`, told late and out of order."""
    chance = random.Random(seed)
    calls, costs, reports = [0] * workers, [0.0] * workers, []
    while able := [n for n in range(workers) if budget.has_more_for(n)]:
        worker = chance.choice(able)
        ceiling = budget.ceiling(worker, workers)
        for _ in range(chance.randrange(1, 5)):
            cost = price * chance.random()
            dear = ceiling.cost is not None and costs[worker] + cost > ceiling.cost
            if dear or (ceiling.calls is not None and calls[worker] >= ceiling.calls):
                budget.tell(worker, Spent(calls[worker], costs[worker]))
                budget.refused(worker, ceiling, workers)
                break
            calls[worker] += 1
            costs[worker] += cost
        reports.append((worker, Spent(calls[worker], costs[worker])))
        if chance.random() < 0.5:
            budget.tell(*reports.pop(chance.randrange(len(reports))))
    return [sum(calls), sum(costs)]


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("seed", range(5))
def test_workers_spend_a_ceiling_to_the_end_and_never_pass_it(workers: int, seed: int) -> None:
    for most in (1, 5, 300):
        calls, _ = spend_all(Budget(most, None), workers=workers, price=1.0, seed=seed)
        assert calls == most
    _, cost = spend_all(Budget(None, 20.0), workers=workers, price=0.1, seed=seed)
    assert 20.0 - 0.1 * workers <= cost <= 20.0
    calls, cost = spend_all(Budget(100, 20.0), workers=workers, price=0.1, seed=seed)
    assert calls == 100 and cost <= 20.0


def test_what_a_worker_that_died_was_given_is_given_to_nobody_else() -> None:
    budget = Budget(40, None)
    dead = budget.ceiling("dead", 2)
    budget.tell("dead", Spent(2, 0.0))
    assert dead == Ceiling(calls=5)
    given = 0
    while budget.has_more_for("alive"):
        ceiling = budget.ceiling("alive", 2)
        given = ceiling.calls or 0
        budget.tell("alive", Spent(given, 0.0))
        budget.refused("alive", ceiling, 2)
    assert given == 35
    reached = budget.reached()
    assert reached.exit_code == BUDGET
    assert str(reached).startswith("37 calls made and up to 3 by workers that died, as many as")


def test_a_call_that_was_dearer_than_reckoned_comes_off_what_is_left() -> None:
    budget = Budget(None, 1.0)
    assert budget.ceiling("a", 1) == Ceiling(cost=0.25)
    budget.tell("a", Spent(1, 0.95))
    while budget.has_more_for("a"):
        ceiling = budget.ceiling("a", 1)
        budget.refused("a", ceiling, 1)
    assert ceiling == Ceiling(cost=pytest.approx(1.0))
    assert "budget reached: 0.9500 of 1 spent over all workers" in str(budget.reached())


def test_a_run_without_ceilings_gives_none_and_one_of_nothing_allows_nothing() -> None:
    assert Budget(None, None).ceiling("a", 1) == Ceiling(None, None)
    nothing = Budget(None, 0.0)
    assert nothing.ceiling("a", 1) == Ceiling(None, 0.0)
    nothing.refused("a", Ceiling(None, 0.0), 1)
    assert not nothing.has_more_for("a")


class Remote:
    """An actor's generator method, called in this process; what passes is pickled as by Ray."""

    def __init__(self, method: Callable[..., AsyncIterator[Any]]):
        self._method = method

    async def remote(self, *sent: Any) -> AsyncIterator[Any]:
        async for step in self._method(*pickle.loads(pickle.dumps(sent))):
            arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            arrived.set_result(pickle.loads(pickle.dumps(step)))
            yield arrived


class Handle:
    def __init__(self, node: NodeWorker):
        self.node = node
        self.do = Remote(node.do)


class EngineHere(RayEngine):
    """A Ray engine whose workers live in this process: no cluster, and all else is real."""

    nodes: Sequence[NodeWorker] = ()

    async def open_here(self, workers: int) -> None:
        self.nodes = [NodeWorker(replace(self.setup, limits_url=None)) for _ in range(workers)]
        for number, node in enumerate(self.nodes):
            opened = await node.open()
            assert isinstance(opened, tuple), opened
            worker = Worker(Handle(node), str(number), "here", ready=True)
            self._cluster.workers.append(worker)
            self.slots = opened[0]

    async def close(self) -> None:
        for node in self.nodes:
            await node.close()


async def until_reached(
    path: Path, jobs: Sequence[Job], ledger: Ledger, **ceilings: Any
) -> tuple[set[str], set[int], int]:
    """Do what `ledger` lacks on two workers: (how it ended, with which codes, calls begun)."""
    known = {result.chunk_id: result for result in ledger.results()}
    queue = [replace(job, so_far=known.get(job.chunk_id, job.so_far)) for job in jobs]
    queue = [job for job in queue if job.so_far.state != "done"]
    usual: dict[str, Any] = {"pipeline": None, "policy": "record", "refills": 0}
    engine = EngineHere(None, providers=path, limits_url="redis://nowhere", **usual, **ceilings)
    await engine.open_here(2)

    async def keep(result: Result, refused: Sequence[Refusal]) -> None:
        ledger.record([result])

    async def consume() -> None:
        while queue:
            result, _ = await engine.do(queue.pop(), keep)
            ledger.record([result])

    consumers = (consume() for _ in range(engine.slots))
    ends = [end for end in await asyncio.gather(*consumers, return_exceptions=True) if end]
    await engine.close()
    assert all(isinstance(end, StopRun) for end in ends), ends
    calls = sum(node.spent().calls for node in engine.nodes)
    return {str(end) for end in ends}, {end.exit_code for end in ends}, calls


async def test_two_workers_make_no_more_calls_than_allowed_and_a_higher_ceiling_goes_on(
    llm_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    server, jobs = llm_server(), jobs_of(20)
    path = providers_file(tmp_path, f"{server.url}/v1", 60_000, KEY_VARIABLE)
    ledger = Ledger(tmp_path / "generation.sqlite", Configuration("c", "p", "p", ("m",)))
    with contextlib.closing(ledger):
        said, codes, calls = await until_reached(path, jobs, ledger, max_calls=25)
        assert codes == {BUDGET}
        assert said == {
            "25 calls made, as many as --max-calls allows; everything is saved, run the same "
            "command with a higher number to go on"
        }
        assert calls == len(server.requests) == 25
        assert sum(result.calls for result in ledger.results()) == 25
        assert await until_reached(path, jobs, ledger, max_calls=100) == (set(), set(), 15)
        assert ledger.counts() == {"done": 20}
    assert len(server.requests) == 2 * 20, "nothing was paid for twice"


async def test_two_workers_spend_no_more_than_allowed_and_nearly_all_of_it(
    llm_server: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    jobs = jobs_of(20)
    path = providers_file(tmp_path, f"{llm_server().url}/v1", 60_000, KEY_VARIABLE)
    ledger = Ledger(tmp_path / "generation.sqlite", Configuration("c", "p", "p", ("m",)))
    with contextlib.closing(ledger):
        [said], codes, calls = await until_reached(path, jobs, ledger, max_cost=0.02)
        spent = sum(result.cost for result in ledger.results())
        assert codes == {BUDGET} and calls < 40
        assert f"budget reached: {spent:.4f} of 0.02 spent over all workers" in said
        assert 0.01 < spent <= 0.02
        assert await until_reached(path, jobs, ledger, max_cost=1.0) == (set(), set(), 40 - calls)
        assert ledger.counts() == {"done": 20}


async def test_an_account_without_prices_is_refused_on_the_node_where_a_cost_has_a_ceiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    path = providers_file(tmp_path, "http://127.0.0.1:9", 6000, KEY_VARIABLE)
    path.write_text(path.read_text().partition("input_price")[0])
    engine = engine_of(providers=path, limits_url="redis://127.0.0.1:1", max_cost=1.0)
    refused = await NodeWorker(replace(engine.setup, limits_url=None)).open()
    assert isinstance(refused, UserError)
    assert "--max-cost cannot work: account 'shared' has no input_price" in str(refused)


# ---------------------------------------------------------------------- on a cluster


async def test_a_node_without_the_key_is_named_with_the_variable_and_nothing_is_sent(
    cluster: Any, limits: LimitsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_THE_DRIVER_HAS_IT", KEY)  # after the nodes began
    path = providers_file(tmp_path, "http://127.0.0.1:9", 6000, "ONLY_THE_DRIVER_HAS_IT")
    engine = engine_of(cluster.address, providers=path, limits_url=limits.url)
    with pytest.raises(UserError) as caught:
        await engine.open()
    assert str(caught.value).startswith(f"Ray node {cluster.head_node.node_ip_address}: {path}: ")
    assert "ONLY_THE_DRIVER_HAS_IT is not set" in str(caught.value)
    assert KEY not in str(caught.value)


async def test_a_killed_node_costs_no_chunk_repeats_only_its_calls_and_limits_hold(
    cluster: Any, limits: LimitsServer, tmp_path: Path
) -> None:
    with running() as server:
        seen = await killed_midway(
            cluster, limits, server, tmp_path, chunks=120, per_minute=1800, latency=0.15
        )
    print(json.dumps(asdict(seen)))
    assert seen.done == seen.chunks == 120
    assert seen.spend == seen.paid_in_the_ledger > 0
    assert seen.workers_died == 1
    assert 0 < seen.in_flight_on_the_dead <= IN_FLIGHT
    assert seen.accepted - 2 * seen.chunks <= seen.in_flight_on_the_dead
    assert seen.accepted <= 1800 / 60 * (seen.seconds + 2)
    assert seen.refused_429 == 0
    assert seen.busiest_second < 1.5, "2 is what nodes reach that do not share the limit"
    session = Path(cluster.head_node.get_session_dir_path())
    logs = [path.read_bytes() for path in session.rglob("*") if path.is_file()]
    assert logs and not any(KEY.encode() in text for text in logs)


only_if_asked_for = pytest.mark.skipif(
    os.environ.get("RAY_TESTS") != "all",
    reason="40 s, of a suite that is to take ten minutes; RAY_TESTS=all runs it too",
)


@only_if_asked_for
async def test_a_cluster_makes_no_more_calls_than_allowed_though_a_worker_dies(
    cluster: Any, limits: LimitsServer, tmp_path: Path
) -> None:
    jobs = jobs_of(60)
    ledger = Ledger(tmp_path / "generation.sqlite", Configuration("c", "p", "p", ("m",)))
    with running() as server, contextlib.closing(ledger):
        server.configure(provider(6000, 0.1))
        path = providers_file(tmp_path, server.base_url, 6000, KEY_VARIABLE)
        engine = engine_of(cluster.address, providers=path, limits_url=limits.url, max_calls=50)
        await engine.open()
        working = asyncio.create_task(all_done(engine, jobs, ledger))
        while not ledger.counts()["done"]:
            await asyncio.sleep(0.01)
        os.kill(engine.workers()[0].pid, signal.SIGKILL)
        with pytest.raises(StopRun, match="as many as --max-calls allows") as ended:
            await working
        await engine.close()
        paid = sum(result.calls for result in ledger.results())
        assert ended.value.exit_code == BUDGET
        assert engine.died == 1
        assert paid <= server.stats()["requests"] <= 50


@only_if_asked_for
async def test_a_killed_worker_is_replaced_and_the_others_wait_for_it(
    cluster: Any, tmp_path: Path
) -> None:
    jobs = jobs_of(60)
    ledger = Ledger(tmp_path / "generation.sqlite", Configuration("c", "p", "p", ("m",)))
    engine = engine_of(cluster.address, workers=1)
    await engine.open()
    working = asyncio.create_task(all_done(engine, jobs, ledger))
    while not ledger.counts()["done"]:
        await asyncio.sleep(0.01)
    (killed,) = engine.workers()
    os.kill(killed.pid, signal.SIGKILL)
    await working
    (present,) = engine.workers()
    assert present.pid != killed.pid and engine.died == 1
    assert "1 workers died" in engine.live_line()
    await engine.close()
    assert [result.state for result in ledger.results()] == ["done"] * 60
    assert engine.snapshot()[0]["ok"] > 0
    ledger.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=648)
    parser.add_argument("--per-minute", type=int, default=3000)
    parser.add_argument("--latency", type=float, default=0.15, help="seconds")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        limits_server(Path(folder)) as limits,
        running() as server,
        two_nodes() as cluster,
    ):
        midway = killed_midway(cluster, limits, server, Path(folder), **vars(args))
        print(json.dumps(asdict(asyncio.run(midway)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
