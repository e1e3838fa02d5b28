"""The same request gives the same bits: again, restarted, queued, after others, from a prefix."""

import random
import threading
from pathlib import Path
from typing import Any

from tests.integration.engine_process import EngineProcess, launched

IDS = [random.Random(3).randrange(3, 49_000) for _ in range(150)]
BODIES: list[dict[str, Any]] = [
    {"prompt": "The capital of France is", "temperature": 0.0, "logprobs": 3},
    {"prompt": "Once upon a time", "temperature": 1.0, "seed": 11, "logprobs": 2},
    {"prompt_ids": IDS, "temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 5, "logprobs": 0},
    {"prompt": "x", "temperature": 1.5, "min_p": 0.05, "repetition_penalty": 1.3, "seed": 2**63},
    {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0.7, "seed": 9, "logprobs": 1},
]  # fmt: skip
Tokens = list[dict[str, Any]]


def tokens(engine: EngineProcess, body: dict[str, Any], **more: Any) -> Tokens:
    events = engine.execute(**body, max_tokens=10, **more)
    assert events[-1][0] == "end", events[-1]
    return [fields for name, fields in events if name == "token"]


def cached(engine: EngineProcess, ids: list[int], *, cache_prompt: bool = True) -> int:
    events = engine.execute(prompt_ids=ids, max_tokens=1, cache_prompt=cache_prompt)
    return int(events[0][1]["cached_tokens"])


def test_repeated_and_after_other_requests(engine: EngineProcess) -> None:
    first = [tokens(engine, body) for body in BODIES]
    engine.client.post("/execute", json={"job_id": "bad"})
    engine.execute(prompt="something else", temperature=1.0, seed=4, max_tokens=3)
    engine.client.post("/score", json={"prompt_ids": IDS, "completion_ids": IDS[:3]})
    assert [tokens(engine, body) for body in reversed(BODIES)] == first[::-1]


def test_at_any_place_in_the_queue(engine: EngineProcess) -> None:
    alone = [tokens(engine, body) for body in BODIES]
    for order in ([4, 2, 0, 3, 1], [1, 3, 4, 0, 2]):
        queued: dict[int, Tokens] = {}

        def ask(index: int, queued: dict[int, Tokens] = queued) -> None:
            queued[index] = tokens(engine, BODIES[index])

        clients = [threading.Thread(target=ask, args=(index,)) for index in order]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert [queued[index] for index in range(len(BODIES))] == alone


def test_with_and_without_the_prompt_cache(engine: EngineProcess) -> None:
    for body in BODIES:
        plain = tokens(engine, body)
        assert tokens(engine, body, cache_prompt=True) == plain
        assert tokens(engine, body, cache_prompt=True) == plain
        assert tokens(engine, body) == plain


def test_after_a_restart_and_on_one_thread(engine: EngineProcess, tmp_path: Path) -> None:
    before = [tokens(engine, body) for body in BODIES]
    for options in ((), ("--threads", "1")):
        with launched(tmp_path, *options) as another:
            assert [tokens(another, body) for body in BODIES] == before


def test_whole_chunks_of_a_shared_prefix_are_reused_and_told(tmp_path: Path) -> None:
    with launched(tmp_path) as engine:
        assert cached(engine, IDS, cache_prompt=False) == 0
        assert cached(engine, IDS) == 0, "nobody asked to keep it"
        assert cached(engine, IDS) == 128
        assert cached(engine, IDS, cache_prompt=False) == 0, "nobody asks for it"
        assert cached(engine, [*IDS[:70], 7, 8, 9]) == 64
        assert cached(engine, [*IDS[:63], 7, *IDS[64:]]) == 0
        assert cached(engine, IDS[:128]) == 64, "the last token is always computed"
        assert cached(engine, IDS[:64]) == 0


def test_prefill_judges_what_decode_chose_with_the_same_bits(engine: EngineProcess) -> None:
    for body in (BODIES[0], BODIES[2]):
        chosen = tokens(engine, body)
        ids = body.get("prompt_ids") or _ids(engine, body["prompt"])
        asked = {"prompt_ids": ids, "completion_ids": [token["id"] for token in chosen]}
        scores = engine.client.post("/score", json=asked).json()["scores"]
        assert [s["logprob"] for s in scores] == [token["logprob"] for token in chosen]
        assert [s["token_id"] for s in scores] == asked["completion_ids"]
        for score in scores:
            assert (score["rank"] == 0) == (score["margin"] == 0.0)
            assert (score["rank"] == 0) == (score["argmax_id"] == score["token_id"])


def test_an_omitted_seed_is_drawn_told_and_gives_the_same_again(engine: EngineProcess) -> None:
    seeds = set()
    for _ in range(3):
        told = engine.execute(prompt="Once", max_tokens=6, temperature=1.0)
        seed = told[0][1]["seed"]
        again = engine.execute(prompt="Once", max_tokens=6, temperature=1.0, seed=seed)
        drawn = [[f["id"] for name, f in events if name == "token"] for events in (told, again)]
        assert drawn[0] == drawn[1]
        seeds.add(seed)
    assert len(seeds) == 3


def _ids(engine: EngineProcess, text: str) -> Any:
    return engine.client.post("/tokenize", json={"text": text, "add_special": True}).json()["ids"]
