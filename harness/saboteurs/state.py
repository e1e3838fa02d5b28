"""Saboteurs that keep what must not be kept, or do not stop what must stop."""

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import ClassVar

from starlette.responses import Content, Response, StreamingResponse

from harness.saboteurs.proxy import Body, Events, Saboteur, ServerEvent
from harness.saboteurs.stream_shape import changed

EVENT_STREAM = {"content-type": "text/event-stream"}


def request_key(body: Body) -> str:
    """What makes two requests the same to a cache: everything but the job's id."""
    return json.dumps({k: v for k, v in body.items() if k != "job_id"}, sort_keys=True)


class ResponseCache(Saboteur):
    """Replays an earlier answer to the same request."""

    name = "response-cache"
    cheat = "replays the stored answer when a request comes again"
    caught_by = "G4-GENUINE-CACHE"

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, list[ServerEvent]] = {}

    async def execute(self, body: Body, headers: dict[str, str]) -> Response:
        """From the store where it can; the engine is asked only once."""
        if request_key(body) not in self.kept:
            checked = await self.upstream.post("/execute", json={**body, "max_tokens": 1})
            if checked.status_code != 200:
                return Response(checked.content, checked.status_code, checked.headers)
        return await super().execute(body, headers)

    async def events(self, body: Body, events: Events) -> Events:
        """Store on the first time, replay afterwards."""
        key = request_key(body)
        if key in self.kept:
            for event in self.kept[key]:
                shown = event.type == "started"
                yield changed(event, job_id=body["job_id"]) if shown else event
            return
        seen = []
        async for event in events:
            seen.append(event)
            yield event
        if seen and seen[-1].type == "end":
            self.kept[key] = seen


class Coalescing(Saboteur):
    """Runs equal concurrent requests once and gives all the same answer."""

    name = "request-coalescing"
    cheat = "runs identical concurrent requests once, seeds ignored, and copies the answer"
    caught_by = "G4-GENUINE-COALESCE"

    def __init__(self) -> None:
        super().__init__()
        self.running: dict[str, asyncio.Future[list[ServerEvent]]] = {}

    async def execute(self, body: Body, headers: dict[str, str]) -> Response:
        """The first of equal requests runs; the others wait for its answer, never passed on."""
        key = _key_without_seed(body)
        if key in self.running:
            return StreamingResponse(_copied(self.running[key], body), 200, EVENT_STREAM)
        self.running[key] = asyncio.get_running_loop().create_future()
        answered = await super().execute(body, headers)
        if answered.status_code != 200:
            self.running.pop(key).set_result([])
        return answered

    async def events(self, body: Body, events: Events) -> Events:
        """Keep the answer for those that wait."""
        seen = []
        try:
            async for event in events:
                seen.append(event)
                yield event
        finally:
            self.running.pop(_key_without_seed(body)).set_result(seen)


def _key_without_seed(body: Body) -> str:
    return request_key({name: value for name, value in body.items() if name != "seed"})


async def _copied(first: "asyncio.Future[list[ServerEvent]]", body: Body) -> AsyncIterator[bytes]:
    """The first one's events under this request's job id."""
    for event in await asyncio.shield(first):
        shown = event.type == "started"
        yield (changed(event, job_id=body["job_id"]) if shown else event).encode()


class Contamination(Saboteur):
    """Lets one request see the one before."""

    name = "cross-request-contamination"
    cheat = "prepends the end of the previous request's prompt to the next one"
    caught_by = "G4-GENUINE-CANARY"

    def __init__(self) -> None:
        super().__init__()
        self.before = ""

    async def request(self, body: Body) -> Body:
        """Carry a piece of the last prompt along."""
        if not isinstance(body.get("prompt"), str):
            return body
        carried, self.before = self.before, body["prompt"][-200:]
        return {**body, "prompt": carried + body["prompt"]}


class IgnoresCancel(Saboteur):
    """Acknowledges a cancel and goes on."""

    name = "ignores-cancel"
    cheat = "answers /cancel with 202 and keeps generating"
    caught_by = "G4-CANCEL-STOPS"

    async def cancel(self, body: Body) -> bool:
        """Drop it."""
        return False


class IgnoresDisconnect(Saboteur):
    """Finishes jobs whose client is gone."""

    name = "ignores-disconnect"
    cheat = "keeps generating for clients that went away"
    caught_by = "G4-CANCEL-DISCONNECT"

    def __init__(self) -> None:
        super().__init__()
        self.pumps: set[asyncio.Task[None]] = set()

    async def execute(self, body: Body, headers: dict[str, str]) -> Response:
        """Read the engine to its end in a task that no client can cancel."""
        answer = await super().execute(body, headers)
        if not isinstance(answer, StreamingResponse):
            return answer
        queue: asyncio.Queue[Content | None] = asyncio.Queue()
        task = asyncio.create_task(_pump(answer.body_iterator, queue))
        self.pumps.add(task)
        task.add_done_callback(self.pumps.discard)
        answer.body_iterator = _drained(queue)
        return answer


async def _pump(chunks: AsyncIterable[Content], queue: asyncio.Queue[Content | None]) -> None:
    async for chunk in chunks:
        queue.put_nowait(chunk)
    queue.put_nowait(None)


async def _drained(queue: asyncio.Queue[Content | None]) -> AsyncIterator[Content]:
    while (chunk := await queue.get()) is not None:
        yield chunk


class LeaksPerCancel(Saboteur):
    """Keeps memory for every cancelled job."""

    name = "leaks-per-cancel"
    cheat = "leaks 8 MiB for every cancelled job"
    caught_by = "G4-CANCEL-MEMORY"
    leaked: ClassVar[list[bytearray]] = []

    async def cancel(self, body: Body) -> bool:
        """Pass it on and forget to free."""
        self.leaked.append(bytearray(b"\xa5") * (8 << 20))
        return True


class RestartsOnOutOfMemory(Saboteur):
    """Dresses a restart as recovery."""

    name = "restarts-on-oom"
    cheat = "kills and restarts its engine on out-of-memory and calls it recovery"
    caught_by = "G4-OOM-ALIVE"

    async def events(self, body: Body, events: Events) -> Events:
        """On VRAM_OOM the engine process is replaced."""
        async for event in events:
            if event.type == "error" and event.body.get("code") == "VRAM_OOM":
                yield event
                await self.restart()
                return
            yield event


class RestartsQuietly(Saboteur):
    """Replaces its engine now and then, so that nothing old can go wrong."""

    name = "restarts-quietly"
    cheat = "replaces its engine's process before every 20th request"
    caught_by = "G4-GENUINE-PROCESS"

    async def execute(self, body: Body, headers: dict[str, str]) -> Response:
        """A new process from time to time."""
        if self.n_jobs % 20 == 19:
            await self.restart()
        return await super().execute(body, headers)
