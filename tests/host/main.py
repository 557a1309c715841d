"""Both stages in one process: ingest, then the questions; and what came of it, as JSON."""

import asyncio
import hashlib
import json
import sys
import time

import data_processor
import llm_services
import prompts
import schema
from llama_index.core.schema import MetadataMode
from llm_services import LLMClientConfig, LLMDispatcher
from question_generator import QuestionGenerator, choose_appropriate_character
from vector_store import client, index, store

import config
import optimized_question_generator

CANCEL_AFTER = 150  # questions


class Heartbeat:
    """How long the loop's own thread computed at worst between two beats."""

    def __init__(self):
        self.worst_cpu = 0.0

    async def beat(self):
        while True:
            cpu = time.thread_time()
            await asyncio.sleep(0.005)
            self.worst_cpu = max(self.worst_cpu, time.thread_time() - cpu)


def snapshot():
    """{id: (vector, everything in the payload but what a question adds, both texts)} digested."""
    points, _ = client.scroll(config.COLLECTION, limit=10_000, with_vectors=True)
    texts = {
        node.node_id: [node.get_content(mode) for mode in (MetadataMode.EMBED, MetadataMode.LLM)]
        for node in store.get_nodes(limit=10_000)
    }
    ours = {"generated_query", "generated_query_provenance", "_node_content"}
    return {
        str(point.id): hashlib.sha256(
            repr(
                (
                    point.vector,
                    sorted((k, str(v)) for k, v in point.payload.items() if k not in ours),
                    texts[str(point.id)],
                )
            ).encode("utf-8", "surrogatepass")
        ).hexdigest()
        for point in points
    }


def told(summary):
    return {
        name: getattr(summary, name)
        for name in ("generated", "written", "failed", "exit_code", "stopped", "points", "resumed")
    }


async def cancelled_after(q_gen, questions) -> bool:
    running = asyncio.create_task(q_gen.generate())
    while q_gen.summary.generated < questions and not running.done():
        await asyncio.sleep(0.01)
    running.cancel()
    try:
        await running
    except asyncio.CancelledError:
        return True
    return False


async def set_patience(seconds) -> None:
    """How long a dispatcher that has nothing free is asked: 15 minutes, for a real one. Ours is
    imported by its own first use, as in the real host."""
    while "custom_lm" not in sys.modules:
        await asyncio.sleep(0.01)
    while not hasattr(sys.modules["custom_lm"], "DispatcherLM"):
        await asyncio.sleep(0.01)
    sys.modules["custom_lm"]._FOREIGN_PATIENCE_SECONDS = seconds


async def main() -> None:
    out = {"config": config.HOST, "prompt": prompts.GENERATE, "schema": schema.__doc__}
    out["ingested"] = data_processor.ingest(index)
    before = snapshot()
    accounts = [
        LLMClientConfig(
            "free", "host-small", config.LLM_URL, "sk-host-1", rpm_limit=6000, daily_limit=50
        ),
        LLMClientConfig(
            "paid", "host-large", config.LLM_URL, "sk-host-2", daily_limit=70, concurrency=4
        ),
    ]
    dispatcher = LLMDispatcher(accounts, config.DAILY_LOG)
    heart = Heartbeat()
    beating = asyncio.create_task(heart.beat())
    q_gen = QuestionGenerator(
        vector_store=store,
        dispatcher=dispatcher,
        persona_function=choose_appropriate_character,
        pipeline=None,
        data_dir=config.DATA_DIR,
        concurrency=8,
    )
    day_one, _ = await asyncio.gather(q_gen.generate(), set_patience(1.0))
    out["day_one"] = told(day_one)
    out["calls_day_one"] = dict(dispatcher.log[llm_services.today()])
    await set_patience(120.0)
    llm_services.today = lambda: "the next day"
    for account in accounts:
        account.daily_limit = None
    out["cancelled"] = await cancelled_after(q_gen, CANCEL_AFTER)
    out["rest"] = told(await q_gen.generate())
    out["again"] = told(await q_gen.generate())
    beating.cancel()
    out["worst_cpu"] = heart.worst_cpu
    after = snapshot()
    out["nodes"] = len(before)
    out["changed"] = [node_id for node_id in before if before[node_id] != after.get(node_id)]
    out["new_or_gone"] = len(before.keys() ^ after.keys())
    nodes = store.get_nodes(limit=10_000)
    out["queries"] = sum(bool(n.metadata.get("generated_query")) for n in nodes)
    found = index.as_retriever(similarity_top_k=1).retrieve("spindle drive belt door leaf closes")
    out["retrieved"] = found[0].node.metadata["generated_query"]
    out["nothing_free"], out["failures"] = dispatcher.nothing_free, dispatcher.failures
    out["alias"] = QuestionGenerator is optimized_question_generator.OptimizedQuestionGenerator
    out["client_still_open"] = client.count(config.COLLECTION).count
    print(json.dumps(out))


if __name__ == "__main__":
    asyncio.run(main())
    client.close()
