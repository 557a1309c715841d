"""The host's accounts: None when all are busy or spent; the caller enters semaphore and limiter."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import instructor
from aiolimiter import AsyncLimiter
from openai import AsyncOpenAI

FIRST_PAUSE, LONGEST_PAUSE = 10.0, 200.0


def today() -> str:
    return date.today().isoformat()


@dataclass
class LLMClientConfig:
    name: str
    model: str
    base_url: str
    api_key: str
    rpm_limit: int | None = None
    daily_limit: int | None = None
    concurrency: int = 1
    raw_client: AsyncOpenAI = field(init=False)
    client: Any = field(init=False)
    limiter: AsyncLimiter | None = field(init=False)
    failures: int = 0
    rests_until: float = 0.0
    disabled: bool = False

    def __post_init__(self):
        self.raw_client = AsyncOpenAI(base_url=self.base_url, api_key=self.api_key, max_retries=0)
        self.client = instructor.from_openai(self.raw_client, mode=instructor.Mode.JSON)
        self.limiter = AsyncLimiter(self.rpm_limit, 60) if self.rpm_limit else None


class LLMDispatcher:
    def __init__(self, configs, log_file):
        self.clients = list(configs)
        self.client_semaphores = {c.name: asyncio.Semaphore(c.concurrency) for c in self.clients}
        self.log_file = log_file
        self.log = json.loads(log_file.read_text()) if log_file.exists() else {}
        self.nothing_free = self.successes = self.failures = 0

    def made_today(self, client) -> int:
        return self.log.get(today(), {}).get(client.name, 0)

    def _can_take(self, client) -> bool:
        if client.disabled or time.monotonic() < client.rests_until:
            return False
        if client.daily_limit is not None and self.made_today(client) >= client.daily_limit:
            return False
        return not self.client_semaphores[client.name].locked()

    async def get_available_client(self):
        for client in self.clients:
            if self._can_take(client):
                day = self.log.setdefault(today(), {})
                day[client.name] = day.get(client.name, 0) + 1
                self.log_file.write_text(json.dumps(self.log))
                return client
        self.nothing_free += 1
        return None

    async def release_client_on_success(self, client):
        self.successes += 1
        client.failures = 0

    async def release_client_on_failure(self, client):
        self.failures += 1
        client.failures += 1
        pause = FIRST_PAUSE * 2 ** (client.failures - 1)
        client.disabled = pause > LONGEST_PAUSE
        client.rests_until = time.monotonic() + pause
