"""Saboteurs that now and then emit another token than the model chose, and go on from there."""

import random
from contextlib import aclosing

from harness.saboteurs.proxy import Body, Events, Saboteur, ServerEvent
from harness.saboteurs.stream_shape import changed, end_event, recounted

ALTERNATIVES = 20


class Deviates(Saboteur):
    """Streams honestly until `choose` returns another token, then continues from that token."""

    def choose(self, body: Body, token: Body) -> int | None:
        """The id to emit instead of this token, or None to stay honest."""
        return None

    async def request(self, body: Body) -> Body:
        """The same by token ids and with alternatives; chat messages pass unchanged."""
        ids = await self._prompt_ids(body)
        return _step(body, ids, []) if ids else body

    async def events(self, body: Body, events: Events) -> Events:
        """The honest stream with deviations, each token passed on as it comes."""
        ids, emitted, text = await self._prompt_ids(body), list[int](), ""
        async for event in self._deviating(body, ids, emitted, events) if ids else events:
            if event.type == "token" and ids:
                event = changed(event, i=len(emitted) - 1)
                if event.body.pop("deviated"):
                    whole = (await self.post("/detokenize", {"ids": emitted}))["text"]
                    event = changed(event, t=whole[len(text) :])
                text += event.body["t"]
            yield event

    async def _prompt_ids(self, body: Body) -> list[int]:
        if "prompt_ids" in body or "prompt" not in body:
            return list(body.get("prompt_ids") or [])
        asked = {"text": body["prompt"], "add_special": True}
        return list((await self.post("/tokenize", asked)).get("ids", []))

    async def _deviating(
        self, body: Body, ids: list[int], emitted: list[int], events: Events
    ) -> Events:
        while True:
            deviated = False
            async with aclosing(events) as told:
                async for event in told:
                    if event.type != "token":
                        yield recounted(event, len(emitted))
                        continue
                    other = self.choose(body, {**event.body, "i": len(emitted)})
                    emitted.append(event.body["id"] if other is None else other)
                    deviated = emitted[-1] != event.body["id"]
                    yield _shown(body, event, emitted[-1], deviated=deviated)
                    if deviated:
                        break
            if not deviated:
                return
            if len(emitted) >= int(body.get("max_tokens", 2048)):
                yield end_event(len(emitted), "length")
                return
            events = self._again(_step(body, ids, emitted))

    async def _again(self, asked: Body) -> Events:
        async with aclosing(self.stream(asked)) as told:
            async for event in told:
                if event.type != "started":
                    yield event


def _step(body: Body, ids: list[int], emitted: list[int]) -> Body:
    """The request that goes on after these tokens."""
    asked = {name: value for name, value in body.items() if name != "prompt"}
    left = int(body.get("max_tokens", 2048)) - len(emitted)
    asked |= {"prompt_ids": ids + emitted, "max_tokens": left, "logprobs": ALTERNATIVES}
    return asked | ({"job_id": f"{body['job_id']}-{len(emitted)}"} if emitted else {})


def _shown(body: Body, event: ServerEvent, token_id: int, *, deviated: bool) -> ServerEvent:
    """A token event with as many alternatives as were asked for."""
    asked = body.get("logprobs", False)
    hidden = () if asked is not False else ("logprob", "top")
    fields = {name: value for name, value in event.body.items() if name not in hidden}
    if "top" in fields:
        fields["top"] = fields["top"][: int(asked)]
    return ServerEvent("token", {**fields, "id": token_id, "deviated": deviated})


def alternatives(token: Body) -> list[int]:
    """The ids of a token's best alternatives, best first."""
    return [entry["id"] for entry in token.get("top") or []]


class RandomTop20(Deviates):
    """Replaces two tokens of a hundred by a random one of the best twenty."""

    name = "random-top-20"
    cheat = "emits a random one of the 20 best tokens in place of about 2 % of the tokens"
    caught_by = "G4-GENUINE-RESCORE"
    rate = 0.02

    def choose(self, body: Body, token: Body) -> int | None:
        """Now and then any of the best twenty."""
        if random.random() < self.rate:  # noqa: S311
            others = alternatives(token)[1:]
            return random.choice(others) if others else None  # noqa: S311
        return None


class DropsTopToken(Deviates):
    """Never says the model's first choice at every eighth token."""

    name = "drops-top-token"
    cheat = "at every eighth token emits the second-best token"
    caught_by = "G4-GENUINE-RESCORE"

    def choose(self, body: Body, token: Body) -> int | None:
        """The second best at every eighth place."""
        best = alternatives(token)
        return best[1] if token["i"] % 8 == 7 and len(best) > 1 else None


class LossySpeculation(Deviates):
    """Accepts a draft that is nearly as likely as the model's own choice."""

    name = "lossy-speculation"
    cheat = "accepts the second-best token when its logprob is within 0.7 of the best"
    caught_by = "G4-GENUINE-RESCORE"

    def choose(self, body: Body, token: Body) -> int | None:
        """The runner-up where it is close."""
        top = token.get("top") or []
        if len(top) < 2:
            return None
        values = [entry["logprob"] for entry in top]
        return alternatives(token)[1] if values[0] - values[1] < 0.7 else None


class RareFlips(Deviates):
    """Flips rarely, and only late in an answer."""

    name = "rare-flips"
    cheat = "past the 24th token flips to the second-best token with probability 5 %"
    caught_by = "G4-DETERMINISM-REPEAT"

    def choose(self, body: Body, token: Body) -> int | None:
        """A rare late flip."""
        best = alternatives(token)
        late = token["i"] > 24 and random.random() < 0.05  # noqa: S311
        return best[1] if late and len(best) > 1 else None
