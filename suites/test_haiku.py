"""Gate 4: the anti-cheat haiku."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from harness import models
from harness.clients.http import answer
from harness.clients.native import NativeClient
from harness.haiku import FIXED_SEED, haiku_challenge, haiku_request, what_is_wrong
from harness.judges.stream import read_or_nothing
from harness.launch import LaunchEngine
from harness.observation import Observe
from harness.reference import client_like, reference_engine

ATTEMPTS = 3
GOLDENS = Path(__file__).parent / "goldens" / "haiku"


@pytest.mark.check("G4-HAIKU")
def test_haiku(launch_engine: LaunchEngine, nonce: str, observe: Observe) -> None:
    write(launch_engine, nonce, observe)


def write(
    launch_engine: LaunchEngine,
    nonce: str,
    observe: Observe,
    *,
    chat: bool = False,
    reference_args: tuple[str, ...] = (),
) -> None:
    """Up to three attempts, each with fresh words; the judge looks at them for itself."""
    for attempt in range(1, ATTEMPTS + 1):
        seen = attempted(launch_engine, nonce, attempt, chat, reference_args)
        observe(**seen)
        if attempt == ATTEMPTS or seen["has_words"]:
            break


def attempted(
    launch_engine: LaunchEngine,
    nonce: str,
    attempt: int,
    chat: bool,
    reference_args: tuple[str, ...],
) -> dict[str, Any]:
    """One attempt: ask, ask again, other seeds, stop the engine, then re-score."""
    engine = launch_engine()
    client = engine.client
    asked_at = time.time()
    asked = haiku_challenge(nonce, attempt, time.gmtime(asked_at).tm_min)
    greedy = haiku_request(asked, chat=chat)
    warm = {**greedy, "temperature": 0.7}
    native = client.kind == NativeClient.kind
    seen: dict[str, Any] = {"health": client.health()} if native else {}
    before = client.metrics() if native else None
    haiku = client.start(**greedy).finish(60.0)
    if native:
        seen |= {"metrics_before": before, "metrics_after": client.metrics()}
    seen |= {
        "haiku": haiku,
        "again": client.execute(**greedy),
        "sampled": client.execute(**warm),
        "sampled_again": client.execute(**warm),
        "other_seeds": [client.execute(**{**warm, "seed": asked.seed + k}) for k in (1, 2, 3)],
        "process": engine.process_facts(),
    }
    engine.stop()
    with reference_engine(engine.model_path, *reference_args) as oracle:
        seen |= {
            "reference_health": oracle.client.health(),
            "engine_alive_at_rescoring": engine.alive(),
        }
        if native and not chat:
            prompt_ids = oracle.client.tokenize(greedy["prompt"], add_special=True)
            ids = read_or_nothing(haiku).ids
            seen["reference_tokenize"] = prompt_ids
            seen["reference_score"] = oracle.client.score(answer(prompt_ids)["ids"], ids)
        else:
            seen["reference_replay"] = client_like(client, oracle).execute(**greedy)
    return seen | {
        "nonce": nonce,
        "asked_at": asked_at,
        "weights_bytes": engine.model_path.stat().st_size,
        "model_sha256": engine.model_sha256,
        "has_words": not what_is_wrong(asked, read_or_nothing(haiku).text, chat=chat),
    }


@pytest.mark.check("G4-HAIKU")
@pytest.mark.parametrize(
    "name", [model.name for model in models.registry().values() if "m0" in model.profiles]
)
def test_fixed_haiku(name: str, launch_engine: LaunchEngine, observe: Observe) -> None:
    """The fixed question, whose answer by transformers is a golden; without it this is an error."""
    engine = launch_engine(model=models.resolve(name))
    golden = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    fixed = engine.client.execute(
        prompt_ids=golden["prompt_ids"],
        max_tokens=len(golden["completion_ids"]),
        temperature=0.0,
        seed=FIXED_SEED,
    )
    observe(golden=golden, fixed=fixed, model_sha256=engine.model_sha256)
