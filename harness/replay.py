"""`verify --replay`: the reference engine answers the recorded requests again, token for token.

Sampling draws from a counter keyed by seed and position, so greedy and sampled requests replay
alike. Where a greedy stream parts at a near-tie (another device rounds otherwise), the reference's
own logprobs tell how far the emitted token lies below its choice.
"""

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from harness.bundle_reader import BundleReader
from harness.calibration import shipped_calibration
from harness.clients import EngineClient
from harness.errors import BundleError, HaikugateError, ModelFileError
from harness.judges.rule import Broken, Unseen, request
from harness.judges.stream import Stream, read_stream
from harness.models import known_by_digest, verify_file
from harness.observation import Exchange
from harness.rescore import first_difference
from harness.timings import exchange_files
from harness.verify_binding import MODEL_CHECKS

MAX_STREAMS = 200
ALTERNATIVES = 20


@dataclass(frozen=True)
class Recording:
    """One finished stream of the bundle, with the request that made it."""

    path: str
    asked: Mapping[str, Any]
    stream: Stream


def recordings(bundle: BundleReader, model: str) -> Iterator[Recording]:
    """Every finished native stream of this model."""
    for path, exchanges in exchange_files(bundle):
        for exchange in exchanges:
            if (found := _recording(path, exchange)) and found[0] == model:
                yield found[1]


def _recording(path: str, exchange: Exchange) -> tuple[str, Recording] | None:
    if (exchange.method, exchange.path, exchange.status) != ("POST", "/execute", 200):
        return None
    try:
        stream, asked = read_stream(exchange), request(exchange)
    except (HaikugateError, Broken, Unseen):
        return None
    if stream.started is None or stream.end is None or not stream.ids:
        return None
    return str(stream.started["model"]), Recording(path, asked, stream)


def other_names(bundle: BundleReader, models: Container[str]) -> Iterator[str]:
    """Where a stream of a check of the certified models says that it is of none of them.

    An engine that names its model otherwise would choose by it what is replayed.
    """
    for seen in bundle.recorded():
        if not seen.observation.check.startswith(MODEL_CHECKS):
            continue
        for exchange in chain.from_iterable(seen.observation.exchanges.values()):
            found = _recording(seen.path, exchange)
            if found is not None and found[0] not in models:
                yield f"{seen.path}: a stream of model {found[0]!a:.80}"


def evenly(recorded: list[Recording], most: int = MAX_STREAMS) -> list[Recording]:
    """At most so many of them, evenly taken."""
    step = max(1, -(-len(recorded) // most))
    return recorded[::step]


def check_recording(recorded: Recording, client: EngineClient) -> bool:
    """Whether the reference says the same, token for token; False at a near-tie of a greedy stream.

    Raises BundleError naming the transcript and the token where it says something else.
    """
    started = recorded.stream.started or {}
    left_out = ("job_id", "cache_prompt")
    asked = {name: value for name, value in recorded.asked.items() if name not in left_out}
    asked["seed"] = started["seed"]
    emitted = recorded.stream.ids
    parts_at = first_difference(emitted, read_stream(client.execute(**asked)).ids)
    if parts_at is None:
        return True
    if asked.get("temperature") == 0 and parts_at < len(emitted):
        again = read_stream(client.execute(**{**asked, "logprobs": ALTERNATIVES}))
        if _margin(again, parts_at, emitted[parts_at]) <= shipped_calibration().widest_margin:
            return False
    raise BundleError(f"{recorded.path}: token {parts_at} is not what the reference engine says")


def _margin(again: Stream, position: int, token_id: int) -> float:
    """How far below its own choice the reference holds a token, in logits."""
    if position >= len(again.tokens):
        return float("inf")
    top = {row["id"]: row["logprob"] for row in again.tokens[position].raw.get("top", ())}
    return max(top.values()) - top[token_id] if token_id in top else float("inf")


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


def replay(bundle: BundleReader) -> str:
    """Ask the reference engine again; returns what held, raises HaikugateError."""
    from harness.reference import reference_engine

    model, path = model_file(bundle)
    files = [str(row.get("file")) for row in bundle.metadata["models"]]
    names = {Path(file).stem for file in files}
    for odd in other_names(bundle, names):
        raise BundleError(f"{odd}, wanted {', '.join(sorted(names))}")
    found = list(recordings(bundle, model))
    if not found:
        raise BundleError("no finished stream of the default model was recorded: nothing to replay")
    chosen = evenly(found)
    with reference_engine(path) as engine:
        same = [check_recording(recorded, engine.client) for recorded in chosen]
    tokens = sum(len(recorded.stream.ids) for recorded in chosen)
    ties = len(same) - sum(same)
    return f"{tokens} tokens of {len(chosen)} of {len(found)} streams, {ties} parted at a near-tie"
