"""A replay accepts what the reference says again, excuses near-ties, and names what differs.

Between two kinds of devices it never lets a sampled stream hold that parts, and judges greedy ones
by the margins of honest runs there.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.bundle_reader import BundleReader
from harness.calibration import Pairing, shipped_calibration
from harness.errors import BundleError, LaunchError, ModelFileError
from harness.judges.stream import read_stream
from harness.observation import Chunk, Exchange
from harness.recordings import Recording, distinct, evenly, other_names, recordings
from harness.replay import Compared, compare, judged, margin_bound, model_file, pairing_of, replay
from harness.verification import NotChecked, VerifyOptions
from harness.verify import verify_bundle
from tests.unit.bundles import CHECKLISTS, JUDGES, exchange, observation, sealed

SAME, ACROSS = (shipped_calibration().pairing(name) for name in ("cpu/cpu", "cuda/cpu"))


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
    """Answers with given ids, and its best token at each place `margin` above another's."""

    def __init__(
        self,
        ids: list[int],
        top: dict[int, float] | None = None,
        margins: dict[int, float] | None = None,
    ) -> None:
        self.ids, self.top, self.asked = ids, top, []
        self.margins = margins or {}

    def execute(self, **fields: object) -> Exchange:
        self.asked.append(fields)
        return answered(self.ids, self.top if "logprobs" in fields else None, **fields)

    def tokenize(self, text: str, *, add_special: bool) -> Exchange:
        assert add_special
        return told(ids=[len(text)])

    def score(self, prompt_ids: list[int], ids: list[int]) -> Exchange:
        assert prompt_ids == [4], "the prompt is Once"
        rows = [
            {
                "token_id": id_,
                "rank": int(at in self.margins),
                "argmax_id": 99 if at in self.margins else id_,
                "margin": self.margins.get(at, 0.0),
            }
            for at, id_ in enumerate(ids)
        ]
        return told(scores=rows)


def told(**members: object) -> Exchange:
    return exchange(path="/other", chunks=(Chunk(2_000, json.dumps(members).encode()),))


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
    assert compare(greedy, reference, SAME).parts_at is None
    assert compare(sampled, Reference([4, 5, 6]), SAME).parts_at is None
    assert reference.asked == [{"prompt": "Once", "max_tokens": 3, "temperature": 0.0, "seed": 7}]


def bounds_of(pairing: Pairing) -> list[tuple[dict[int, float], int | None]]:
    """Margins by place, and the place that is refused."""
    bound = margin_bound(pairing)
    within, beyond = 0.9 * bound, 1.1 * bound
    return [({1: within}, None), ({1: beyond}, 1), ({1: within, 2: beyond}, 2)]


@pytest.mark.parametrize("pairing", [SAME, ACROSS], ids=lambda pairing: pairing.name)
def test_every_token_of_a_greedy_stream_that_parts_must_be_near(
    bundle: BundleReader, pairing: Pairing
) -> None:
    greedy = next(recordings(bundle, "tiny"))
    for margins, refused in bounds_of(pairing):
        reference = Reference([1, 9, 3], margins=margins)
        if refused is None:
            found = compare(greedy, reference, pairing)
            assert (found.parts_at, found.settled) == (1, True)
        else:
            with pytest.raises(BundleError, match=rf"jobs\.ndjson: token {refused} is not what"):
                compare(greedy, reference, pairing)


def test_between_two_devices_the_margin_is_that_of_honest_runs_there() -> None:
    assert margin_bound(ACROSS) == ACROSS.margin_bound < margin_bound(SAME)


def chat(ids: list[int]) -> Recording:
    seen = answered(ids, messages=[{"role": "user", "content": "Hi"}])
    asked = json.loads(seen.request_body)
    del asked["prompt"]
    return Recording("chat.ndjson", asked, read_stream(seen))


@pytest.mark.parametrize(("below", "near"), [(0.9, True), (1.1, False), (None, False)])
def test_a_chat_is_judged_where_it_parts_and_no_further(below: float | None, near: bool) -> None:
    bound = margin_bound(SAME)
    top = {9: -0.5} if below is None else {9: -0.5, 2: -0.5 - below * bound}
    reference = Reference([1, 9, 3], top)
    if near:
        found = compare(chat([1, 2, 3]), reference, SAME)
        assert (found.parts_at, found.settled) == (1, False)
        with pytest.raises(NotChecked, match="1 parted where rounding may decide"):
            judged([found], SAME)
    else:
        with pytest.raises(BundleError, match=r"chat\.ndjson: token 1"):
            compare(chat([1, 2, 3]), reference, SAME)


def test_a_sampled_stream_must_be_the_same_on_one_kind_of_device(bundle: BundleReader) -> None:
    _, sampled = recordings(bundle, "tiny")
    with pytest.raises(BundleError, match="token 2"):
        compare(sampled, Reference([4, 5, 7]), SAME)
    penalized = replace(sampled, asked={"temperature": 0.0, "repetition_penalty": 1.2})
    with pytest.raises(BundleError, match="token 2"):
        compare(penalized, Reference([4, 5, 7]), SAME)


@pytest.mark.parametrize("pairing", [SAME, ACROSS], ids=lambda pairing: pairing.name)
@pytest.mark.parametrize("ids", [[4, 5], [4, 5, 6, 7]])
def test_no_device_ends_the_same_text_elsewhere(
    bundle: BundleReader, pairing: Pairing, ids: list[int]
) -> None:
    for recorded, said in zip(recordings(bundle, "tiny"), ([1, 2], ids), strict=True):
        with pytest.raises(BundleError, match="is not what the reference engine says"):
            compare(recorded, Reference(said), pairing)


def test_a_sampled_stream_that_parts_between_two_devices_never_holds(bundle: BundleReader) -> None:
    greedy, sampled = recordings(bundle, "tiny")
    same = compare(greedy, Reference([1, 2, 3]), ACROSS)
    parted = compare(sampled, Reference([4, 5, 7]), ACROSS)
    assert judged([same], ACROSS) == "3 tokens of 1 streams, 0 parted at a near-tie"
    with pytest.raises(NotChecked) as left:
        judged([same, parted], ACROSS)
    assert str(left.value) == (
        "made on cuda, replayed on cpu: of 2 streams 1 are the same, 0 parted at a near-tie,"
        " 1 parted where rounding may decide and were not compared beyond"
        " (--replay-device cuda would)"
    )


def test_near_ties_must_be_as_rare_as_in_honest_runs(bundle: BundleReader) -> None:
    """Other weights whose every choice lies near the reference's: each token alone would pass."""
    greedy = next(recordings(bundle, "tiny"))
    near = dict.fromkeys(range(3), ACROSS.margin_bound / 2)
    odd = compare(greedy, Reference([9, 2, 3], margins=near), ACROSS)
    with pytest.raises(BundleError, match=r"cuda/cpu: greedy tokens miss .* too often"):
        judged([odd] * 20, ACROSS)
    plain = Compared(greedy, None, compare(greedy, Reference([1, 2, 3]), ACROSS).scores)
    assert "20 parted" not in judged([plain] * 20, ACROSS)


def test_equal_answers_to_equal_requests_are_replayed_once(bundle: BundleReader) -> None:
    greedy, sampled = recordings(bundle, "tiny")
    other = replace(sampled, asked={**sampled.asked, "prompt": "Twice"})
    assert distinct([greedy, sampled, greedy, other, sampled]) == [greedy, sampled, other]


@pytest.mark.parametrize(
    ("profile", "device", "name"),
    [("cpu", "cpu", "cpu/cpu"), ("gpu", "cpu", "cuda/cpu"), ("m0", "cuda:1", "cuda/cuda")],
)
def test_the_pairing_follows_profile_and_device(profile: str, device: str, name: str) -> None:
    bundle = SimpleNamespace(metadata={"judging": {"profile": profile}})
    assert pairing_of(bundle, device).name == name


def test_devices_without_honest_runs_cannot_be_compared() -> None:
    with pytest.raises(NotChecked, match="no honest runs of cpu/cuda"):
        pairing_of(SimpleNamespace(metadata={"judging": {"profile": "cpu"}}), "cuda:0")
    with pytest.raises(BundleError, match="no profile 'moon'"):
        pairing_of(SimpleNamespace(metadata={"judging": {"profile": "moon"}}), "cpu")


@pytest.mark.parametrize("error", [LaunchError("no GPU"), ModelFileError("no model"), None])
def test_a_replay_asked_for_that_is_not_whole_leaves_the_bundle_whole_and_no_more(
    tmp_path: Path, monkeypatch, error: Exception | None
) -> None:
    def cannot(_: BundleReader) -> str:
        raise error or NotChecked("made on cuda, replayed on cpu")

    monkeypatch.setattr("harness.gates.JUDGES", JUDGES)
    found = verify_bundle(sealed(tmp_path), VerifyOptions(replay=cannot, checklists=CHECKLISTS))
    assert found.whole
    assert "replay" in found.unchecked
    assert not found.holds


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

        def __init__(self, _: Path, *args: str) -> None:
            assert args == ("--device", "cpu")

        def __enter__(self) -> "Engine":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("harness.replay.model_file", lambda _: ("tiny", Path("x")))
    monkeypatch.setattr("harness.reference.reference_engine", Engine)
    wanted = "6 tokens of 2 streams, 0 parted at a near-tie; 2 distinct ones were recorded"
    assert replay(bundle) == wanted


REPLIES = {0.0: [1, 2, 3], 0.7: [4, 5, 6]}
