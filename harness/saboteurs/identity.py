"""Saboteurs that lie about what runs: model, counters, health, progress."""

import hashlib
import re

from harness.saboteurs.proxy import Body, Saboteur


class WrongModelReported(Saboteur):
    """Reports the digest of a file it does not run."""

    name = "wrong-model-reported"
    cheat = "reports another model file's digest than that of the file it has open"
    caught_by = "G4-GENUINE-MODELFILE"

    async def answer(self, path: str, asked: Body, answer: Body) -> Body:
        """A digest of something else."""
        if path == "/health":
            answer["model_sha256"] = hashlib.sha256(b"another model").hexdigest()
        return answer


class ForgedMetrics(Saboteur):
    """Counts tokens that it did not generate."""

    name = "forged-metrics"
    cheat = "multiplies the generated-tokens counter by three"
    caught_by = "G4-GENUINE-METRICS"

    async def metrics(self, text: str) -> str:
        """Larger counters."""

        def tripled(match: re.Match[str]) -> str:
            return f"{match[1]}{float(match[2]) * 3}"

        counter = r"(?m)^(worker_tokens_generated_total(?:\{[^}]*\})? )([0-9.e+]+)$"
        return re.sub(counter, tripled, text)


class HidesUnhealthy(Saboteur):
    """Always healthy, whatever happened."""

    name = "hides-unhealthy"
    cheat = "reports healthy, with no last error, after out-of-memory"
    caught_by = "G4-OOM-HEALTH"

    async def answer(self, path: str, asked: Body, answer: Body) -> Body:
        """Polish the health report."""
        if path == "/health":
            answer["status"] = "healthy"
            answer.pop("last_error", None)
        return answer


class ForgedMemory(Saboteur):
    """Claims memory that it does not hold."""

    name = "forged-memory"
    cheat = "reports ten times the memory it holds"
    caught_by = "G4-GENUINE-MEMORY"

    async def answer(self, path: str, asked: Body, answer: Body) -> Body:
        """A larger number."""
        if path == "/health":
            answer["vram_bytes_used"] = answer["vram_bytes_used"] * 10
        return answer


class StaleProgress(Saboteur):
    """Prints its load progress without loading: all steps at once, without bytes."""

    name = "stale-progress"
    cheat = "prints canned load progress: every step reports zero bytes"
    caught_by = "G4-PROGRESS"

    def narrate(self, line: bytes) -> bytes:
        """Bytes that never move."""
        return re.sub(rb'("bytes_loaded": ?)\d+', rb"\g<1>0", line)
