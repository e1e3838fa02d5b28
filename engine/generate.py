"""From a request to a stream of events: prefill, decode, stop sequences, whole characters only."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.backends import Checkpoint, KvSequence, Runtime
from engine.errors import EngineError
from engine.harmony import HarmonyDecoder, MarkedTokenizer
from engine.sampler import SampledToken, SamplingParams, TokenScore
from engine.stop import StopMatcher


class TextCodec(MarkedTokenizer, Protocol):
    """What generation needs of a tokenizer."""

    @property
    def eos_ids(self) -> Sequence[int]: ...


@dataclass(frozen=True)
class GenerationRequest:
    """A validated request; `prompt_ids` plus `max_tokens` fit the context length.

    With `channels` the answer is Harmony's, and only these channels' text is shown.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...] = ()
    cache_prompt: bool = False
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Started:
    """Prefill has begun."""

    seed: int
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Token:
    """One generated token; `text` is "" while bytes of a character or of a stop are pending."""

    index: int
    token_id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] | None = None


@dataclass(frozen=True)
class Metrics:
    """What the job cost; `kv_cache_bytes` while its last token was decoded."""

    prefill_ms: float
    decode_ms: float
    tokens_out: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class End:
    """The job is complete; `dropped_bytes` of an unfinished last character were not emitted."""

    tokens_out: int
    decode_time_ms: float
    finish_reason: str
    dropped_bytes: int


@dataclass(frozen=True)
class Scored:
    """How the model judges given tokens."""

    scores: tuple[TokenScore, ...]


@dataclass(frozen=True)
class Failed:
    """The job ended with an error."""

    error: EngineError


Event = Started | Token | Metrics | End | Scored | Failed
TERMINAL = (End, Scored, Failed)
Emit = Callable[[Event], None]


def generate(
    runtime: Runtime,
    codec: TextCodec,
    request: GenerationRequest,
    checkpoint: Checkpoint,
    emit: Emit,
) -> None:
    """Run one request, emitting Started, Token*, Metrics, End; an EngineError ends it early.

    The token that ends the text (EOS) is emitted like any other, with the text held back till then.
    """
    sequence = runtime.open_sequence(cache_prompt=request.cache_prompt)
    try:
        prefill_ms = _prefill(runtime, sequence, request, checkpoint, emit)
        begun = time.perf_counter()
        text = _Text(codec, request)
        tokens_out = 0
        for token in text.tokens(runtime.tokens(sequence, request.sampling, checkpoint)):
            emit(token)
            tokens_out += 1
        decode_ms = _ms_since(begun)
        emit(Metrics(prefill_ms, decode_ms, tokens_out, runtime.memory().kv_bytes))
    finally:
        sequence.close()
    emit(End(tokens_out, decode_ms, text.finish_reason, text.dropped_bytes))


def _prefill(
    runtime: Runtime,
    sequence: KvSequence,
    request: GenerationRequest,
    checkpoint: Checkpoint,
    emit: Emit,
) -> float:
    """Prefill the prompt; Started goes out at the first checkpoint, when reuse is known."""
    begun = time.perf_counter()
    announced = False

    def announce() -> None:
        nonlocal announced
        if not announced:
            announced = True
            seed, n_prompt = request.sampling.seed, len(request.prompt_ids)
            emit(Started(seed, n_prompt, sequence.cached_tokens))

    def announce_then_check() -> None:
        announce()
        checkpoint()

    try:
        runtime.prefill(sequence, request.prompt_ids, announce_then_check)
    finally:
        announce()
    return _ms_since(begun)


class _Text:
    """The text of one completion, token by token."""

    def __init__(self, codec: TextCodec, request: GenerationRequest) -> None:
        channels = request.channels
        self._decoder = HarmonyDecoder(codec, channels) if channels else codec.stream()
        self._eos_ids = codec.eos_ids
        self._stop = StopMatcher(request.stop)
        self._request = request
        self.finish_reason = "length"

    @property
    def dropped_bytes(self) -> int:
        """Bytes that are in no character."""
        return self._decoder.dropped_bytes

    def tokens(self, sampled: Iterator[SampledToken]) -> Iterator[Token]:
        """Tokens up to and with the one that ends the completion."""
        wants_top = self._request.sampling.logprobs is not None
        for index, choice in enumerate(sampled):
            text, finished = self._advance(choice.token_id, index)
            top = choice.top if wants_top else None
            yield Token(index, choice.token_id, text, choice.logprob, top)
            if finished:
                return

    def _advance(self, token_id: int, index: int) -> tuple[str, bool]:
        text, matched = self._stop.push(self._decoder.push(token_id))
        if matched:
            self.finish_reason = "stop_sequence"
        elif token_id in self._eos_ids:
            self.finish_reason = "stop"
        elif index + 1 < self._request.max_tokens:
            return text, False
        return text + self._stop.flush(), True


def _ms_since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1e3
