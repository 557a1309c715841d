"""Runs the installed generator with everything the host already has open."""

import asyncio
import json
import os

import prompts
from llm_services import LLMClientConfig, LLMDispatcher
from vector_store import client, store

import config
from optimized_question_generator import OptimizedQuestionGenerator, QuestionGenerator


def choose_appropriate_character(text: str) -> str:
    return "A depot technician who works on trains at night."


async def main() -> None:
    dispatcher = LLMDispatcher(
        [LLMClientConfig("one", "host-model", os.environ["HOST_LLM"], "sk-host", concurrency=2)]
    )
    generator = QuestionGenerator(
        vector_store=store,
        dispatcher=dispatcher,
        persona_function=choose_appropriate_character,
        pipeline=None,
        data_dir=os.environ["HOST_DATA"],
        concurrency=6,
        limit=30,
    )
    ticks = 0

    async def heartbeat() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    beating = asyncio.create_task(heartbeat())
    first = await generator.generate()
    second = await generator.generate()
    beating.cancel()
    nodes = store.get_nodes(limit=1000)
    print(
        json.dumps(
            {
                "config": config.HOST,
                "prompt": prompts.GENERATE,
                "generated": first.generated,
                "written": first.written,
                "again": second.generated,
                "refused": dispatcher.refused,
                "successes": dispatcher.successes,
                "ticks": ticks,
                "alias": QuestionGenerator is OptimizedQuestionGenerator,
                "queries": sum(bool(n.metadata.get("generated_query")) for n in nodes),
                "client_still_open": client.count(config.COLLECTION).count,
            }
        )
    )


asyncio.run(main())
client.close()
