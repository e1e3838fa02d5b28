"""Saboteurs that sample otherwise than asked."""

import secrets
from typing import ClassVar

from harness.saboteurs.proxy import Body, Events, Saboteur
from harness.saboteurs.stream_shape import changed


class ReportsAskedSeed(Saboteur):
    """Uses another seed than the one it reports."""

    async def events(self, body: Body, events: Events) -> Events:
        """Report the asked seed."""
        async for event in events:
            shown = event.type == "started" and "seed" in body
            yield changed(event, seed=body["seed"]) if shown else event


class IgnoresSeed(ReportsAskedSeed):
    """Draws its own seed for each request."""

    name = "ignores-seed"
    cheat = "draws a random seed for each request and reports the asked one"
    caught_by = "G4-GENUINE-SEED"

    async def request(self, body: Body) -> Body:
        """A random seed."""
        return {**body, "seed": secrets.randbits(63)}


class ConstantSeed(ReportsAskedSeed):
    """Uses the same seed for every request."""

    name = "constant-seed"
    cheat = "uses one fixed seed for every request and reports the asked one"
    caught_by = "G4-GENUINE-SEED"

    async def request(self, body: Body) -> Body:
        """Always the same seed."""
        return {**body, "seed": 7}


class AlwaysGreedy(Saboteur):
    """Answers every request greedily."""

    name = "ignores-temperature"
    cheat = "decodes greedily whatever the temperature"
    caught_by = "G4-GENUINE-TEMPERATURE"

    async def request(self, body: Body) -> Body:
        """Temperature zero."""
        return {**body, "temperature": 0.0}


class SecretlyChanged(Saboteur):
    """Changes sampling parameters of sampled requests."""

    changes: ClassVar[dict[str, float]] = {}

    async def request(self, body: Body) -> Body:
        """Sharpen what is sampled; greedy requests stay as they are."""
        if body.get("temperature", 1.0) == 0.0:
            return body
        return {**body, **self.changes}


class SharpenedTemperature(Saboteur):
    """Samples at six tenths of the asked temperature."""

    name = "sharpened-temperature"
    cheat = "samples at 0.6 of the asked temperature"
    caught_by = "G4-GENUINE-RESCORE"

    async def request(self, body: Body) -> Body:
        """A lower temperature."""
        return {**body, "temperature": 0.6 * body.get("temperature", 1.0)}


class SharpenedTopP(SecretlyChanged):
    """Cuts the distribution's tail."""

    name = "sharpened-top-p"
    cheat = "secretly samples with top_p 0.5"
    caught_by = "G4-GENUINE-RESCORE"
    changes: ClassVar[dict[str, float]] = {"top_p": 0.5}


class SecretRepetitionPenalty(SecretlyChanged):
    """Penalizes repetition unasked, greedy requests included."""

    name = "secret-repetition-penalty"
    cheat = "applies a repetition penalty of 1.3 to every request"
    caught_by = "G4-GENUINE-RESCORE"

    async def request(self, body: Body) -> Body:
        """Penalty on every request."""
        return {**body, "repetition_penalty": 1.3}


class ForgedLogprobs(Saboteur):
    """Reports a confident distribution that it did not compute."""

    name = "forged-logprobs"
    cheat = "reports possible but invented logprobs: the best token always near certain"
    caught_by = "G4-GENUINE-LOGPROB"

    async def events(self, body: Body, events: Events) -> Events:
        """Replace the numbers, keep the tokens and their order."""
        async for event in events:
            if event.type == "token" and "logprob" in event.body:
                top = [
                    {**entry, "logprob": -0.02 if rank == 0 else -5.5 - rank}
                    for rank, entry in enumerate(event.body.get("top") or [])
                ]
                own = {entry["id"]: entry["logprob"] for entry in top}
                logprob = own.get(event.body["id"], -30.0)
                event = changed(event, logprob=logprob, top=top)
            yield event
