"""Gate 4: the anti-cheat haiku."""

import json
import time
from dataclasses import dataclass
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
from harness.profiles import Profile
from harness.reference import client_like, reference_engine

ATTEMPTS = 3
GOLDENS = Path(__file__).parent / "goldens" / "haiku"


@pytest.mark.check("G4-HAIKU")
def test_haiku(
    launch_engine: LaunchEngine,
    profile: Profile,
    nonce: str,
    calibration: str | None,
    observe: Observe,
) -> None:
    write(Asked(launch_engine, profile, nonce, calibration), observe)


@dataclass(frozen=True)
class Asked:
    """Who is asked for a haiku, and what its judging needs; `chat`: in conversation."""

    launch_engine: LaunchEngine
    profile: Profile
    nonce: str
    calibration: str | None
    chat: bool = False


def write(asked: Asked, observe: Observe) -> None:
    """Up to three attempts, each with fresh words; the judge looks at them for itself."""
    given = {"calibration": asked.calibration} if asked.calibration else {}
    for attempt in range(1, ATTEMPTS + 1):
        seen = attempted(asked, attempt)
        observe(**seen, **given)
        if attempt == ATTEMPTS or seen["has_words"]:
            break


def attempted(asked: Asked, attempt: int) -> dict[str, Any]:
    """One attempt: ask, ask again, other seeds, stop the engine, then re-score."""
    engine, chat = asked.launch_engine(), asked.chat
    client = engine.client
    asked_at = time.time()
    words = haiku_challenge(asked.nonce, attempt, time.gmtime(asked_at).tm_min)
    greedy = haiku_request(words, chat=chat)
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
        "other_seeds": [client.execute(**{**warm, "seed": words.seed + k}) for k in (1, 2, 3)],
        "process": engine.process_facts(),
    }
    engine.stop()
    with reference_engine(engine.model_path, *asked.profile.device_args) as oracle:
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
        "nonce": asked.nonce,
        "asked_at": asked_at,
        "weights_bytes": engine.model_path.stat().st_size,
        "model_sha256": engine.model_sha256,
        "has_words": not what_is_wrong(words, read_or_nothing(haiku).text, chat=chat),
    }


@pytest.mark.check("G4-HAIKU")
@pytest.mark.parametrize(
    "name", [model.name for model in models.registry().values() if "m0" in model.profiles]
)
def test_fixed_haiku(
    name: str, launch_engine: LaunchEngine, calibration: str | None, observe: Observe
) -> None:
    """The fixed question, whose answer by transformers is a golden; without it this is an error."""
    engine = launch_engine(model=models.resolve(name))
    golden = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    fixed = engine.client.execute(
        prompt_ids=golden["prompt_ids"],
        max_tokens=len(golden["completion_ids"]),
        temperature=0.0,
        seed=FIXED_SEED,
    )
    given = {"calibration": calibration} if calibration else {}
    observe(golden=golden, fixed=fixed, model_sha256=engine.model_sha256, **given)
