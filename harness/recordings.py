"""The finished streams of a bundle, with the requests that made them: what can be replayed."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from harness.bundle_reader import BundleReader
from harness.errors import HaikugateError
from harness.judges.rule import Broken, Unseen, request
from harness.judges.stream import Stream, read_stream
from harness.observation import Exchange
from harness.strict_json import dumps_line
from harness.timings import exchange_files
from harness.verify_binding import MODEL_CHECKS

MAX_STREAMS: Final = 200
NOT_ASKED_AGAIN: Final = ("job_id", "cache_prompt")


@dataclass(frozen=True)
class Recording:
    """One finished stream of the bundle, with the request that made it."""

    path: str
    asked: Mapping[str, Any]
    stream: Stream

    @property
    def again(self) -> dict[str, Any]:
        """The request that must give the same answer: with the seed that the engine told."""
        kept = {name: value for name, value in self.asked.items() if name not in NOT_ASKED_AGAIN}
        return {**kept, "seed": (self.stream.started or {})["seed"]}

    @property
    def greedy(self) -> bool:
        """Whether each token is the model's own first choice, with no penalty."""
        asked = self.asked
        return asked.get("temperature") == 0 and asked.get("repetition_penalty", 1) == 1


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


def distinct(recorded: Sequence[Recording]) -> list[Recording]:
    """Of equal answers to equal requests the first: each is replayed, and counted, once."""
    kept: dict[bytes, Recording] = {}
    for one in recorded:
        kept.setdefault(dumps_line({"asked": one.again, "ids": one.stream.ids}), one)
    return list(kept.values())


def evenly(recorded: Sequence[Recording], most: int = MAX_STREAMS) -> list[Recording]:
    """At most so many of them, evenly taken."""
    step = max(1, -(-len(recorded) // most))
    return list(recorded[::step])
