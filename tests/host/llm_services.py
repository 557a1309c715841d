"""The host's dispatcher: None when all are busy, the caller enters semaphore and limiter."""

import asyncio
from dataclasses import dataclass, field

from openai import AsyncOpenAI


@dataclass
class LLMClientConfig:
    name: str
    model: str
    base_url: str
    api_key: str
    concurrency: int = 1
    limiter: object = None
    client: AsyncOpenAI = field(init=False)

    def __post_init__(self):
        self.client = AsyncOpenAI(base_url=self.base_url, api_key=self.api_key, max_retries=0)


class LLMDispatcher:
    def __init__(self, configs):
        self.clients = list(configs)
        self.client_semaphores = {c.name: asyncio.Semaphore(c.concurrency) for c in self.clients}
        self.successes = self.failures = self.refused = 0

    async def get_available_client(self):
        for client in self.clients:
            if not self.client_semaphores[client.name].locked():
                return client
        self.refused += 1
        return None

    async def release_client_on_success(self, client):
        self.successes += 1

    async def release_client_on_failure(self, client):
        self.failures += 1
