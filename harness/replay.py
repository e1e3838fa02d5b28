"""`verify --replay`: the reference engine answers the recorded requests again, token for token.

Sampling draws from a counter keyed by seed and position, so on one kind of device greedy and
sampled requests replay alike. Another device rounds otherwise. Where a greedy stream parts from its
replay, the reference scores every token of it: none may lie further below its choice than honest
runs showed. Where a sampled one parts between two kinds of devices, an edge of the distribution may
lie between the two draws; how often that is grows with the temperature and is not calibrated. Such
a stream is told as not compared, and never as held.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.bundle_reader import BundleReader
from harness.calibration import Evidence, Pairing, Replay, shipped_calibration
from harness.clients import EngineClient
from harness.clients.http import answer
from harness.errors import BundleError, CalibrationError, ModelFileError
from harness.judges.stream import Stream, read_stream
from harness.models import known_by_digest, verify_file
from harness.recordings import Recording, distinct, evenly, other_names, recordings
from harness.rescore import Score, first_difference, read_scores
from harness.verification import NotChecked

ALTERNATIVES: Final = 20
KINDS: Final = {"cpu": "cpu", "gpu": "cuda", "m0": "cuda"}
"""The kind of device that a profile certifies."""


@dataclass(frozen=True)
class Compared:
    """A recording beside its replay: where they part (None: nowhere), and the tokens' scores.

    `settled`: nothing in it was left uncompared.
    """

    recorded: Recording
    parts_at: int | None
    scores: Sequence[Score] = ()
    settled: bool = True


def pairing_of(bundle: BundleReader, device: str) -> Pairing:
    """Honest runs on the bundle's kind of device, replayed on this one; NotChecked without any."""
    profile = str((bundle.metadata.get("judging") or {}).get("profile"))
    made_on = KINDS.get(profile)
    if made_on is None:
        raise BundleError(f"metadata.json: no profile {profile!a:.40}")
    try:
        return shipped_calibration().pairing(f"{made_on}/{device.partition(':')[0]}")
    except CalibrationError as error:
        raise NotChecked(str(error)) from None


def margin_bound(pairing: Pairing) -> float:
    """Logits below the reference's choice; two devices of one kind may be of other makes."""
    return shipped_calibration().widest_margin if pairing.same_kind else pairing.margin_bound


def compare(recorded: Recording, client: EngineClient, pairing: Pairing) -> Compared:
    """The recording beside the reference's answer.

    Raises BundleError naming transcript and token where no honest engine says what was recorded.
    """
    emitted = recorded.stream.ids
    replayed = read_stream(client.execute(**recorded.again)).ids
    at = first_difference(emitted, replayed)
    if at is None:
        own = [Score(id_, 0, id_, 0.0) for id_ in emitted] if recorded.greedy else []
        return Compared(recorded, None, own)
    if at < min(len(emitted), len(replayed)):
        if recorded.greedy:
            return _near_ties(recorded, at, client, margin_bound(pairing))
        if not pairing.same_kind:
            return Compared(recorded, at, settled=False)
    raise _other_token(recorded, at)


def _other_token(recorded: Recording, at: int) -> BundleError:
    return BundleError(f"{recorded.path}: token {at} is not what the reference engine says")


def _near_ties(recorded: Recording, at: int, client: EngineClient, bound: float) -> Compared:
    """A greedy stream that parts: every token must be the reference's choice, or near it."""
    asked, emitted = recorded.again, recorded.stream.ids
    if "messages" in asked:  # whose ids no route tells: only the token at which they part is judged
        again = read_stream(client.execute(**{**asked, "logprobs": ALTERNATIVES}))
        if not _margin(again, at, emitted[at]) <= bound:
            raise _other_token(recorded, at)
        return Compared(recorded, at, settled=False)
    scores = read_scores(answer(client.score(_prompt_ids(asked, client), emitted)), len(emitted))
    far = next((i for i, score in enumerate(scores) if not score.margin <= bound), None)
    if far is not None:
        raise _other_token(recorded, far)
    return Compared(recorded, at, scores)


def _prompt_ids(asked: dict[str, Any], client: EngineClient) -> list[int]:
    if "prompt_ids" in asked:
        return list(asked["prompt_ids"])
    return list(answer(client.tokenize(asked["prompt"], add_special=True))["ids"])


def _margin(again: Stream, position: int, token_id: int) -> float:
    """How far below its own choice the reference holds a token, in logits."""
    if position >= len(again.tokens):
        return float("inf")
    top = {row["id"]: row["logprob"] for row in again.tokens[position].raw.get("top", ())}
    return max(top.values()) - top[token_id] if token_id in top else float("inf")


def judged(compared: Sequence[Compared], pairing: Pairing) -> str:
    """What held of all.

    Raises BundleError where greedy streams part too often between two kinds of devices, NotChecked
    where streams were not compared whole.
    """
    greedy = [one for one in compared if one.recorded.greedy]
    scores = [score for one in greedy for score in one.scores]
    objections = pairing.objections(Evidence(scores, [_replay(one) for one in greedy], ()))
    if said := [] if pairing.same_kind else list(objections):
        raise BundleError(f"{pairing.name}: {'; '.join(said)}")
    tokens = sum(len(one.recorded.stream.ids) for one in compared)
    left = [one for one in compared if not one.settled]
    ties = sum(one.parts_at is not None for one in compared if one.settled)
    if not left:
        return f"{tokens} tokens of {len(compared)} streams, {ties} parted at a near-tie"
    same = len(compared) - len(left) - ties
    made_on, _, here = pairing.name.partition("/")
    hint = "" if pairing.same_kind else f" (--replay-device {made_on} would)"
    raise NotChecked(
        f"made on {made_on}, replayed on {here}: of {len(compared)} streams {same} are the same,"
        f" {ties} parted at a near-tie, {len(left)} parted where rounding may decide and were not"
        f" compared beyond{hint}"
    )


def _replay(one: Compared) -> Replay:
    tokens = len(one.recorded.stream.ids) if one.parts_at is None else one.parts_at
    return Replay("greedy", tokens, one.parts_at is not None)


def model_file(bundle: BundleReader) -> tuple[str, Path]:
    """The bundle's model by the name streams give it, and its verified file on this machine."""
    models = bundle.metadata.get("models") or [{}]
    known = known_by_digest(str(models[0].get("sha256")))
    if known is None or not known.path.is_file():
        name = known.name if known else models[0].get("name")
        raise ModelFileError(
            f"the model {name} is not on this machine; run: haikugate models fetch {name}"
        )
    verify_file(known.path, known)
    return Path(str(models[0].get("file"))).stem, known.path


def replay(bundle: BundleReader, device: str = "cpu") -> str:
    """Ask the reference engine again, on a device; returns what held, raises HaikugateError."""
    from harness.reference import reference_engine

    pairing = pairing_of(bundle, device)
    model, path = model_file(bundle)
    files = [str(row.get("file")) for row in bundle.metadata["models"]]
    names = {Path(file).stem for file in files}
    for odd in other_names(bundle, names):
        raise BundleError(f"{odd}, wanted {', '.join(sorted(names))}")
    found = distinct(list(recordings(bundle, model)))
    if not found:
        raise BundleError("no finished stream of the default model was recorded: nothing to replay")
    with reference_engine(path, "--device", device) as engine:
        compared = [compare(recorded, engine.client, pairing) for recorded in evenly(found)]
    return f"{judged(compared, pairing)}; {len(found)} distinct ones were recorded"
