"""Saboteurs that now and then emit another token than the model chose, and go on from there."""

import random
from typing import Any

from harness.saboteurs.proxy import Body, Events, Saboteur, ServerEvent
from harness.saboteurs.stream_shape import changed, end_event, recounted

ALTERNATIVES = 20


class Deviates(Saboteur):
    """Streams honestly until `choose` returns another token, then continues from that token."""

    def choose(self, body: Body, token: Body) -> int | None:
        """The id to emit instead of this token, or None to stay honest."""
        return None

    async def events(self, body: Body, events: Events) -> Events:
        """The honest stream with deviations; requests without plain text pass unchanged."""
        if "prompt" not in body and "prompt_ids" not in body:
            async for event in events:
                yield event
            return
        ids = await self._prompt_ids(body)
        emitted: list[int] = []
        text = ""
        async for event in self._steps(body, ids, emitted):
            if event.type == "token":
                event = changed(event, i=len(emitted) - 1)
                if event.body.pop("deviated", False):
                    whole = (await self.post("/detokenize", {"ids": emitted}))["text"]
                    event = changed(event, t=whole[len(text) :])
                text += event.body["t"]
            yield event

    async def _prompt_ids(self, body: Body) -> list[int]:
        if "prompt_ids" in body:
            return list(body["prompt_ids"])
        asked = {"text": body["prompt"], "add_special": True}
        return list((await self.post("/tokenize", asked))["ids"])

    async def _steps(self, body: Body, ids: list[int], emitted: list[int]) -> Events:
        left = int(body.get("max_tokens", 2048))
        first = True
        while left > len(emitted):
            asked = {k: v for k, v in body.items() if k not in ("prompt", "prompt_ids")}
            asked |= {"prompt_ids": ids + emitted, "max_tokens": left - len(emitted)}
            asked |= {"logprobs": ALTERNATIVES, "job_id": f"{body['job_id']}-{len(emitted)}"}
            deviated = False
            for event in await self.ask(asked):
                if event.type == "token":
                    other = self.choose(body, event.body)
                    deviated = other is not None and other != event.body["id"]
                    emitted.append(other if deviated and other is not None else event.body["id"])
                    yield self._shown(body, event, emitted[-1], deviated=deviated)
                    if deviated:
                        break
                elif event.type != "started" or first:
                    yield recounted(event, len(emitted))
            first = False
            if not deviated:
                return
        yield end_event(len(emitted), "length")

    def _shown(self, body: Body, event: ServerEvent, token_id: int, *, deviated: bool) -> Any:
        asked = body.get("logprobs", False) is not False
        hidden = () if asked else ("logprob", "top")
        fields = {k: v for k, v in event.body.items() if k not in hidden}
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
