"""A replay accepts what the reference says again, excuses near-ties, and names what differs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.bundle_reader import BundleReader
from harness.errors import BundleError, ModelFileError
from harness.observation import Chunk, Exchange
from harness.replay import (
    check_recording,
    evenly,
    model_file,
    other_names,
    recordings,
    replay,
)
from tests.unit.bundles import JUDGES, exchange, observation, sealed


def event(kind: str, **members: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(members)}\n\n".encode()


def answered(ids: list[int], top: dict[int, float] | None = None, **asked: object) -> Exchange:
    request = {"job_id": "j", "prompt": "Once", "max_tokens": 3, "temperature": 0.0, **asked}
    started = {"job_id": "j", "model": "tiny", "started_at": "now", "seed": 7}
    alternatives = [{"id": id_, "logprob": value} for id_, value in (top or {}).items()]
    pieces = [
        event("started", **started, prompt_tokens=1, cached_tokens=0),
        *(event("token", t="x", i=i, id=t, top=alternatives) for i, t in enumerate(ids)),
        event(
            "end", tokens_out=len(ids), decode_time_ms=1, finish_reason="length", dropped_bytes=0
        ),
    ]
    chunks = tuple(Chunk(2_000 + n, piece) for n, piece in enumerate(pieces))
    return exchange(request_body=json.dumps(request).encode(), chunks=chunks)


class Reference:
    """Answers with given ids; remembers what it was asked."""

    def __init__(self, ids: list[int], top: dict[int, float] | None = None) -> None:
        self.ids, self.top, self.asked = ids, top, []

    def execute(self, **fields: object) -> Exchange:
        self.asked.append(fields)
        return answered(self.ids, self.top if "logprobs" in fields else None, **fields)


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch) -> BundleReader:
    monkeypatch.setattr("harness.gates.JUDGES", JUDGES)
    broken = exchange(status=500)
    sampled = answered([4, 5, 6], temperature=0.7)
    seen = observation(exchanges={"jobs": (answered([1, 2, 3]), broken, sampled)})
    return BundleReader(sealed(tmp_path, observations=(seen,)))


def test_finished_streams_of_the_model_are_found(bundle: BundleReader) -> None:
    assert [found.stream.ids for found in recordings(bundle, "tiny")] == [[1, 2, 3], [4, 5, 6]]
    assert list(recordings(bundle, "other")) == []


def test_an_engine_cannot_choose_what_is_replayed(tmp_path: Path) -> None:
    """A stream of a check of the certified model under another name would be left out."""
    seen = observation("G4-GENUINE-SEED", exchanges={"jobs": (answered([1, 2, 3]),)})
    found = BundleReader(sealed(tmp_path, observations=(seen,)))
    assert list(other_names(found, {"tiny"})) == []
    (odd,) = other_names(found, {"larger"})
    assert "1.observation.json: a stream of model 'tiny'" in odd


def test_the_same_tokens_hold_and_the_reported_seed_is_asked(bundle: BundleReader) -> None:
    greedy, sampled = recordings(bundle, "tiny")
    reference = Reference([1, 2, 3])
    assert check_recording(greedy, reference)
    assert check_recording(sampled, Reference([4, 5, 6]))
    assert reference.asked == [{"prompt": "Once", "max_tokens": 3, "temperature": 0.0, "seed": 7}]


@pytest.mark.parametrize(("below", "holds"), [(0.04, True), (0.06, False), (None, False)])
def test_only_a_near_tie_is_excused(bundle: BundleReader, below: float | None, holds) -> None:
    greedy = next(recordings(bundle, "tiny"))
    top = {9: -0.5} if below is None else {9: -0.5, 2: -0.5 - below}
    reference = Reference([1, 9, 3], top)
    if holds:
        assert check_recording(greedy, reference) is False
    else:
        with pytest.raises(BundleError, match=r"jobs\.ndjson: token 1 is not what the reference"):
            check_recording(greedy, reference)


def test_a_sampled_stream_must_be_the_same(bundle: BundleReader) -> None:
    _, sampled = recordings(bundle, "tiny")
    with pytest.raises(BundleError, match="token 2"):
        check_recording(sampled, Reference([4, 5, 7], {7: -0.5, 6: -0.5}))
    with pytest.raises(BundleError, match="token 2"):
        check_recording(sampled, Reference([4, 5]))


def test_many_streams_are_taken_evenly() -> None:
    assert len(evenly(list(range(1000)))) == 200
    assert evenly([1, 2, 3]) == [1, 2, 3]


def test_a_model_that_is_not_here_is_named(bundle: BundleReader) -> None:
    with pytest.raises(ModelFileError, match="is not on this machine"):
        model_file(bundle)


def test_a_bundle_without_streams_cannot_be_replayed(bundle: BundleReader, monkeypatch) -> None:
    monkeypatch.setattr("harness.replay.model_file", lambda _: ("no such model", Path("x")))
    with pytest.raises(BundleError, match="nothing to replay"):
        replay(bundle)


def test_the_sentence_counts_tokens_and_streams(bundle: BundleReader, monkeypatch) -> None:
    class Engine:
        client = SimpleNamespace(execute=lambda **f: answered(REPLIES[f["temperature"]], **f))

        def __init__(self, _: Path) -> None:
            pass

        def __enter__(self) -> "Engine":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("harness.replay.model_file", lambda _: ("tiny", Path("x")))
    monkeypatch.setattr("harness.reference.reference_engine", Engine)
    assert replay(bundle) == "6 tokens of 2 of 2 streams, 0 parted at a near-tie"


REPLIES = {0.0: [1, 2, 3], 0.7: [4, 5, 6]}
