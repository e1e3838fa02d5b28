"""Saboteurs that are honest only at the right moment, and cheat at all others."""

import os
import tempfile
import time
from pathlib import Path

from harness.saboteurs.proxy import Body, Saboteur

HONEST_S = 30.0
HONEST_JOBS = 12
KNOWN_PROMPT_WORDS = ("haiku", "GPU computing", "Count to three", "canary")


class CheatsLater(Saboteur):
    """Cheats, when it does, by running with another seed and a cut distribution."""

    def honest(self, body: Body) -> bool:
        """Whether this request is answered honestly."""
        return True

    async def request(self, body: Body) -> Body:
        """Honest requests pass; the others are answered from a cut-down prompt."""
        if self.honest(body):
            return body
        if isinstance(body.get("prompt"), str) and len(body["prompt"]) > 8:
            return {**body, "prompt": body["prompt"][len(body["prompt"]) // 4 :]}
        if len(ids := body.get("prompt_ids") or []) > 4:
            return {**body, "prompt_ids": ids[len(ids) // 4 :]}
        return body


class HonestFirstJobs(CheatsLater):
    """Honest for the first requests of a run."""

    name = "honest-first-requests"
    cheat = f"honest for its first {HONEST_JOBS} requests, then drops a quarter of each prompt"
    caught_by = "G4-GENUINE-LATE"

    def honest(self, body: Body) -> bool:
        """By count."""
        return self.n_jobs <= HONEST_JOBS


class HonestFirstSeconds(CheatsLater):
    """Honest in the first half minute."""

    name = "honest-first-30-s"
    cheat = f"honest for its first {HONEST_S:.0f} seconds, then drops a quarter of each prompt"
    caught_by = "G4-GENUINE-LATE"

    def __init__(self) -> None:
        super().__init__()
        self.asked_s = float("inf")

    def honest(self, body: Body) -> bool:
        """By clock, from its first request on: on a slow machine its start takes long."""
        self.asked_s = min(self.asked_s, time.monotonic())
        return time.monotonic() - self.asked_s < HONEST_S


class HonestWhileScoring(CheatsLater):
    """Honest only while somebody uses /score."""

    name = "honest-while-scoring"
    cheat = "honest only within 5 seconds of a /score request"
    caught_by = "G4-GENUINE-RESCORE"

    def __init__(self) -> None:
        super().__init__()
        self.scored_s = float("-inf")

    async def answer(self, path: str, asked: Body, answer: Body) -> Body:
        """Notice that somebody scores."""
        if path == "/score":
            self.scored_s = time.monotonic()
        return answer

    def honest(self, body: Body) -> bool:
        """Near a scoring request."""
        return time.monotonic() - self.scored_s < 5


class HonestEveryOtherProcess(CheatsLater):
    """Counts its processes, so that the one launched to be re-scored may be an honest one."""

    name = "honest-every-other-process"
    cheat = "honest in every other process that is launched; the rest drop a quarter of each prompt"
    caught_by = "G4-GENUINE-PROCESS"

    def __init__(self) -> None:
        super().__init__()
        count = Path(tempfile.gettempdir()) / f"haikugate-processes-of-{os.getppid()}"
        with count.open("a") as file:
            file.write(".")
        self.is_honest = count.stat().st_size % 2 == 1

    def honest(self, body: Body) -> bool:
        """By the number of its process."""
        return self.is_honest


class ProbeDetection(CheatsLater):
    """Honest only on prompts that look like a known test."""

    name = "probe-detection"
    cheat = "honest only on prompts that contain the words of known probes"
    caught_by = "G4-GENUINE-RESCORE"

    def honest(self, body: Body) -> bool:
        """By the words of the prompt."""
        prompt = str(body.get("prompt") or body.get("messages") or "")
        return any(word in prompt for word in KNOWN_PROMPT_WORDS)
