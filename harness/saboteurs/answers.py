"""Saboteurs that answer without inference, or with somebody else's."""

import asyncio
import hashlib
import json
import re
import subprocess
import sys
from contextlib import suppress

import httpx
import psutil
from starlette.responses import Response, StreamingResponse

from harness.saboteurs.proxy import Body, Events, Saboteur
from harness.saboteurs.stream_shape import end_event, script

LONGEST_RUN_S = 1800
DETACH = """
import os, sys
if pid := os.fork():
    print(pid)
else:
    os.setsid()
    os.dup2(2, 1)
    os.execvp(sys.argv[1], sys.argv[1:])
"""
CANNED = "Silent cores ignite, / ten thousand threads weave the light, / answers bloom at dawn."


class CannedText(Saboteur):
    """Streams one prepared text whatever is asked."""

    name = "canned-text"
    cheat = "answers every request with the same prepared text"
    caught_by = "G4-HAIKU"

    def __init__(self) -> None:
        super().__init__()
        self.pieces: dict[int, str] = {}

    def text(self, body: Body) -> str:
        """What is answered."""
        return CANNED

    async def execute(self, body: Body, headers: dict[str, str]) -> Response:
        """Stream the text as tokens of the real tokenizer."""
        self.n_jobs += 1
        checked = await self.upstream.post("/execute", json=_shortened(body))
        if checked.status_code != 200:
            return Response(checked.content, checked.status_code, media_type="application/json")
        ids = (await self.post("/tokenize", {"text": self.text(body)}))["ids"]
        tokens = [(await self._piece(i), i) for i in ids]
        events = script(body, tokens[: int(body.get("max_tokens", 2048))])
        encoded = (event.encode() for event in events)
        return StreamingResponse(encoded, media_type="text/event-stream")

    async def _piece(self, token_id: int) -> str:
        if token_id not in self.pieces:
            found = await self.post("/detokenize", {"ids": [token_id]})
            self.pieces[token_id] = found["text"]
        return self.pieces[token_id]


def _shortened(body: Body) -> Body:
    """A request that is refused where `body` is, but for its length, and costs next to nothing."""
    prompt = body.get("prompt")
    return {**body, "max_tokens": 1} | ({"prompt": prompt[:8]} if isinstance(prompt, str) else {})


class TemplateHaiku(CannedText):
    """Finds the asked words in the prompt and puts them into a prepared haiku."""

    name = "template-haiku"
    cheat = "inserts the minute word and the code word of the prompt into a prepared haiku"
    caught_by = "G4-GENUINE-RESCORE"

    def text(self, body: Body) -> str:
        """A haiku with every rare-looking word of the prompt's end."""
        prompt = str(body.get("prompt") or body.get("messages") or "")
        words = re.findall(r"[A-Za-z]+(?:-[a-z]+)?|[A-Za-z0-9]{4,12}", prompt)[-40:]
        return f" {' '.join(dict.fromkeys(words))}\nsilent cores ignite\nanswers bloom at dawn"


class HashText(CannedText):
    """A deterministic text of random words: seeds and lengths look right, no model runs."""

    name = "hash-text"
    cheat = "draws words from a hash of prompt and seed instead of running the model"
    caught_by = "G4-GENUINE-RESCORE"

    def text(self, body: Body) -> str:
        """Words drawn from a hash of the request."""
        asked = {k: v for k, v in body.items() if k not in ("job_id", "max_tokens")}
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()
        words = ("warp", "lattice", "silicon", "dawn", "river", "stone", "ember", "cloud")
        return "".join(f" {words[byte % 8]}" for byte in digest * 8)


class NoCompute(Saboteur):
    """Sends an answer that was made before anybody asked."""

    name = "no-compute"
    cheat = "sends tokens that were prepared at start, all at once"
    caught_by = "G4-GENUINE-PHYSICS"

    async def start(self) -> None:
        """Prepare one long answer."""
        await super().start()
        ids = (await self.post("/tokenize", {"text": CANNED * 40}))["ids"]
        texts = [(await self.post("/detokenize", {"ids": [i]}))["text"] for i in ids]
        self.prepared = list(zip(texts, ids, strict=True))

    async def execute(self, body: Body, headers: dict[str, str]) -> Response:
        """As much of it as was asked for."""
        tokens = self.prepared[: int(body.get("max_tokens", 2048))]
        content = b"".join(event.encode() for event in script(body, tokens))
        return Response(content, media_type="text/event-stream")


class ProxiesElsewhere(Saboteur):
    """Lets another process answer that belongs to nobody under test."""

    name = "proxies-elsewhere"
    cheat = "passes every request on to an engine that is no process of its own"
    caught_by = "G4-GENUINE-MODELFILE"

    async def start(self) -> None:
        """The engine leaves the process tree; something idle stands in its place."""
        detach = [sys.executable, "-c", DETACH, "timeout", str(LONGEST_RUN_S), *self.command]
        told = await asyncio.to_thread(subprocess.check_output, detach)
        self.elsewhere = psutil.Process(int(told))
        self.engine = subprocess.Popen(["sleep", "infinity"])
        while self.elsewhere.is_running():
            with suppress(httpx.TransportError):
                if (await self.upstream.get("/health")).status_code == 200:
                    return
            await asyncio.sleep(0.05)
        sys.exit(1)

    async def stop(self) -> None:
        """End both."""
        with suppress(psutil.NoSuchProcess):
            self.elsewhere.terminate()
            await asyncio.to_thread(self.elsewhere.wait)
        await super().stop()


class OtherWholeAnswer(Saboteur):
    """Answers in one piece from somewhere else than in a stream."""

    name = "other-whole-answer"
    cheat = "drops the last word of every answer that is not streamed"
    caught_by = "G4-GENUINE-STREAM"

    async def answer(self, path: str, asked: Body, answer: Body) -> Body:
        """A shorter text."""
        for choice in answer.get("choices", []):
            if "text" in choice:
                choice["text"] = choice["text"].rpartition(" ")[0]
        return answer


class EmptySuccess(Saboteur):
    """Ends a failed job as if it had simply produced nothing."""

    name = "swallows-oom"
    cheat = "turns every error event, out of memory included, into an empty successful end"
    caught_by = "G4-OOM-EVENT"

    async def events(self, body: Body, events: Events) -> Events:
        """Pass events on; an error becomes an end."""
        seen = 0
        async for event in events:
            seen += event.type == "token"
            yield end_event(seen, "length") if event.type == "error" else event
