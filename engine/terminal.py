"""`haikugate-engine generate`: one completion, or a chat, streamed to the terminal."""

import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from engine.backends import LoadOptions
from engine.errors import InvalidRequest
from engine.generate import Event, GenerationRequest, Token, generate
from engine.load_progress import LoadProgress
from engine.loading import LoadedModel, load_model
from engine.sampler import SamplingParams
from engine.sampling_ranges import check_top_k


@dataclass(frozen=True)
class GenerateOptions:
    """The options of `haikugate-engine generate`; `prompt` None means chat."""

    model: Path
    load: LoadOptions
    prompt: str | None
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None


def run(options: GenerateOptions) -> int:
    """Complete the prompt, or chat until the input ends; the exit code."""
    with LoadProgress(lambda *_: None) as progress:
        model = load_model(options.model, options.load, progress)
    try:
        check_top_k(options.top_k, model.runtime.vocab_size)
        if options.prompt is not None:
            ids = model.tokenizer.encode(options.prompt, add_special=True)
            _complete(model, options, ids)
        else:
            _chat(model, options)
    finally:
        model.close()
    return 0


def _chat(model: LoadedModel, options: GenerateOptions) -> None:
    """Read a line, answer it, keep both in the conversation."""
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line})
        ids, channels = model.chat.encode(messages), model.chat.channels[-1:]
        answer = _complete(model, options, ids, channels)
        messages.append({"role": "assistant", "content": answer})


def _complete(
    model: LoadedModel,
    options: GenerateOptions,
    prompt_ids: list[int],
    channels: tuple[str, ...] = (),
) -> str:
    """Stream one completion to stdout and return it."""
    room = model.runtime.context_length - len(prompt_ids)
    if not prompt_ids or room < 1:
        raise InvalidRequest(
            "prompt",
            f"prompt: {len(prompt_ids)} tokens; wanted 1 to {model.runtime.context_length - 1}",
        )
    sampling = SamplingParams(
        seed=secrets.randbits(64) if options.seed is None else options.seed,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
    )
    max_tokens = min(options.max_tokens, room)
    request = GenerationRequest(tuple(prompt_ids), sampling, max_tokens, channels=channels)
    pieces: list[str] = []

    def show(event: Event) -> None:
        if isinstance(event, Token):
            pieces.append(event.text)
            sys.stdout.write(event.text)
            sys.stdout.flush()

    generate(model.runtime, model.tokenizer, request, lambda: None, show)
    sys.stdout.write("\n")
    return "".join(pieces)
