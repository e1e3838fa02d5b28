"""Gate 1: every documented bound of a request, at it and past it."""

import json
from uuid import uuid4

import pytest

from harness.clients.http import answer
from harness.judges.validation import CASES, Case, filled
from harness.launch import RunningEngine
from harness.observation import Exchange, Observe


@pytest.mark.check("G1-HTTP-VALIDATION")
@pytest.mark.parametrize("case", CASES)
def test_bound(case: str, engine: RunningEngine, observe: Observe) -> None:
    wanted = CASES[case]
    known: dict[str, Exchange] = {}
    vocab_size, stop = 0, ""
    if wanted.needs == "vocab":
        known["health"] = engine.client.health()
        vocab_size = answer(known["health"])["vocab_size"]
    if wanted.needs == "stop":
        known["tokenize"] = string_of_tokens(engine, wanted.n)
        stop = json.loads(known["tokenize"].request_body)["text"]
    observe(case=case, execute=ask(engine, wanted, vocab_size, stop), **known)


@pytest.mark.check("G1-HTTP-VALIDATION")
def test_context_length(engine: RunningEngine, observe: Observe) -> None:
    health = engine.client.health()
    n_prompt = answer(health)["context_length"] - 5
    execute = engine.client.execute(prompt_ids=[1] * n_prompt, max_tokens=7)
    observe(execute=execute, health=health)


def ask(engine: RunningEngine, case: Case, vocab_size: int, stop: str) -> Exchange:
    """Send the case's request; an accepted one is left as soon as it has started."""
    fields = filled(case, vocab_size, stop)
    if "job_id" not in case.change:
        fields["job_id"] = f"bound-{uuid4()}"
    body = json.dumps(fields).encode()
    live = engine.client.http.open("POST", "/execute", body)
    live.wait_for("started", 60.0)
    if not case.field:
        live.disconnect()
    return live.finish(60.0)


def string_of_tokens(engine: RunningEngine, n: int) -> Exchange:
    """Ask for the tokens of a string until it has exactly `n` of them."""
    words = n
    while True:
        asked = engine.client.tokenize(" ~" * words)
        got = len(answer(asked)["ids"])
        if got == n or words > 4 * n:
            return asked
        words += 1 if got < n else -1
