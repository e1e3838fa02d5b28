"""Judges of the models in sequence: load, answer, repeat, adapter, tokenizer, nothing left."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from harness.judges.adapters import ADAPTERS
from harness.judges.http import healthy, narration
from harness.judges.rule import (
    Unseen,
    body,
    exchange,
    exchanges,
    fact,
    judge,
    limit,
    need,
    passed,
    request,
)
from harness.judges.stream import finished, identical
from harness.models import registry
from harness.observation import Finding, Json, Judge, Limits, Observation


@dataclass(frozen=True)
class ExpectedModel:
    """What a model of the sequence is."""

    architecture: str
    tokenizer: str
    vocab_size: int


MODELS: Final[Mapping[str, ExpectedModel]] = {
    "default": ExpectedModel("llama", "gguf-bpe", 49152),
    "tiny-llama": ExpectedModel("llama", "gguf-bpe", 539),
    "tiny-qwen2": ExpectedModel("qwen2", "gguf-bpe", 539),
    "tiny-phi3": ExpectedModel("phi3", "gguf-spm", 639),
    "tiny-gpt2": ExpectedModel("gpt2", "gguf-bpe", 537),
    "tiny-gpt-oss": ExpectedModel("gpt-oss", "gguf-bpe", 545),
    "qwen2.5-0.5b-instruct": ExpectedModel("qwen2", "gguf-bpe", 151936),
    "phi-3-mini-4k-instruct": ExpectedModel("phi3", "gguf-spm", 32064),
    "gpt-oss-20b": ExpectedModel("gpt-oss", "gguf-bpe", 201088),
}
COUNT: Final = {"prompt": "Count to three", "max_tokens": 20, "temperature": 0.0}
MIN_ANSWERS: Final = 2
MIN_CHARACTERS: Final = 20


def _name(observation: Observation) -> str:
    return observation.test.partition("[")[2].removesuffix("]")


def _model(observation: Observation) -> ExpectedModel:
    name = _name(observation)
    if name not in MODELS:
        raise Unseen(f"no model named {name!r} is in the sequence")
    return MODELS[name]


def _require_published(observation: Observation) -> None:
    """A test that names a reference model is about its published weights and no others."""
    pinned = registry().get(_name(observation))
    got = fact(observation, "model_sha256")
    if pinned is not None:
        said = f"{pinned.name}: SHA-256 {got}, wanted the published {pinned.sha256}"
        need(got == pinned.sha256, said)


def _health(observation: Observation) -> Mapping[str, Json]:
    return healthy(exchange(observation, "health"), fact(observation, "model_sha256"))


@judge
def judge_load(observation: Observation, limits: Limits) -> Finding:
    """The model was loaded once, and is the file that was given."""
    events = [line.get("event") for line in narration(fact(observation, "log_lines"))]
    for event in ("model_load_start", "model_load_complete"):
        got = events.count(event)
        need(got == 1, f"narration: {got} {event} events, wanted one")
    table = _health(observation)
    _require_published(observation)
    return passed(f"{table['model']} loaded", bytes=table["vram_bytes_used"])


@judge
def judge_generate(observation: Observation, limits: Limits) -> Finding:
    """Asked to count to three, the model says something."""
    _model(observation)
    answer = exchanges(observation, "answers")[0]
    sent = request(answer)
    need(all(sent.get(k) == v for k, v in COUNT.items()), f"asked {sent}, wanted {COUNT}")
    stream = finished(answer)
    need(bool(stream.tokens), "no token came")
    need(bool(stream.text), f"{len(stream.tokens)} tokens without any text")
    return passed(f"{len(stream.tokens)} tokens: {stream.text!r:.60}", tokens=len(stream.tokens))


@judge
def judge_determinism(observation: Observation, limits: Limits) -> Finding:
    """The same greedy request, again and again: the same tokens."""
    answers = exchanges(observation, "answers")
    need(len(answers) >= MIN_ANSWERS, f"{len(answers)} answers, wanted {MIN_ANSWERS}")
    need(request(answers[0])["temperature"] == 0.0, "the request is not greedy")
    ids = identical(answers, "the same greedy request")
    return passed(f"{len(answers)} times the same {len(ids)} tokens")


def _adapter(observation: Observation) -> str:
    wanted, table = _model(observation).architecture, _health(observation)
    need(table["architecture"] == wanted, f"{table['architecture']!r}, wanted {wanted!r}")
    adapter = ADAPTERS[wanted]
    need(table["adapter"] == adapter, f"{wanted}: {table['adapter']!r}, wanted {adapter!r}")
    return adapter


@judge
def judge_adapter(observation: Observation, limits: Limits) -> Finding:
    """/health names the architecture of the file and the adapter that serves it."""
    adapter = _adapter(observation)
    return passed(f"{_model(observation).architecture} is served by {adapter}")


@judge
def judge_factory(observation: Observation, limits: Limits) -> Finding:
    """The right adapter was chosen where only the file's content tells the architecture."""
    name = fact(observation, "model_file").lower()
    telling = [word for word in (*ADAPTERS, "phi", "qwen", "gpt") if word in name]
    if telling:
        raise Unseen(f"the file's name {name!r} tells {telling[0]}")
    return passed(f"{name} has got its {_adapter(observation)}")


@judge
def judge_family(observation: Observation, limits: Limits) -> Finding:
    """The adapter is the check's own, and both of the APIs answer."""
    adapter, wanted = _adapter(observation), _FAMILIES[observation.check]
    need(adapter == wanted, f"served by {adapter}, the check is of {wanted}")
    text = finished(exchanges(observation, "answers")[0]).text
    answer = body(exchange(observation, "completed"))
    choices = answer.get("choices")
    need(isinstance(choices, list) and len(choices) == 1, "/v1/completions: wanted one choice")
    assert isinstance(choices, list)
    start = choices[0].get("text")
    need(isinstance(start, str) and bool(start), "/v1/completions: no text")
    need(text.startswith(start), f"/v1/completions says {start!r}, /execute {text!r:.40}")
    return passed(f"{adapter}: both APIs give the same text")


_FAMILIES: Final = {"G3-LLAMA": "LlamaAdapter", "G3-GPT": "GPTAdapter"}


@judge
def judge_tokenizer(observation: Observation, limits: Limits) -> Finding:
    """The tokenizer's kind and size are the model's; text survives it there and back."""
    wanted, table = _model(observation), _health(observation)
    got = (table["tokenizer_kind"], table["vocab_size"])
    need(got == (wanted.tokenizer, wanted.vocab_size), f"{got}, wanted {wanted}")
    there, back = exchange(observation, "tokenized"), exchange(observation, "detokenized")
    text, ids = request(there)["text"], body(there).get("ids")
    need(len(text) >= MIN_CHARACTERS, f"a text of {len(text)} characters")
    need(isinstance(ids, list) and len(ids) > 1, f"/tokenize: ids are {ids!r:.60}")
    assert isinstance(ids, list)
    outside = [one for one in ids if not 0 <= one < wanted.vocab_size]
    need(not outside, f"/tokenize: id {outside[:1]} is outside the vocabulary")
    need(request(back).get("ids") == ids, "other ids were decoded")
    need(body(back).get("text") == text, f"{text!r} comes back as {body(back).get('text')!r}")
    return passed(f"{wanted.tokenizer}, {wanted.vocab_size} tokens", ids=ids)


@judge
def judge_cleanup(observation: Observation, limits: Limits) -> Finding:
    """Memory was flat over the requests; after the stop nothing runs, listens or lies about."""
    done = [finished(one) for one in exchanges(observation, "requests")]
    need(len(done) >= limit(limits, "min_requests"), f"only {len(done)} requests")
    sha256 = fact(observation, "model_sha256")
    memory = [healthy(exchange(observation, f"memory_{at}"), sha256) for at in ("before", "after")]
    used = [table["vram_bytes_used"] for table in memory]
    most = max(limit(limits, "device_ratio") * used[0], limit(limits, "device_bytes"))
    need(used[1] - used[0] <= most, f"{used[1] - used[0]} bytes more in use, at most {most:g}")
    if memory[0]["device"] != "cpu":
        baseline, left = fact(observation, "device_bytes")
        need(left - baseline <= most, f"{left - baseline} device bytes left, at most {most:g}")
    before, after = fact(observation, "anonymous_bytes")
    if before is None or after is None:
        raise Unseen("the engine's anonymous memory was not seen")
    grown, most = after - before, limit(limits, "rss_growth_bytes")
    need(grown <= most, f"{grown} anonymous bytes more after {len(done)} requests, at most {most}")
    _gone(observation)
    return passed(f"{grown} bytes grown in {len(done)} requests; nothing left", grown_bytes=grown)


def _gone(observation: Observation) -> None:
    if not fact(observation, "processes"):
        raise Unseen("no process of the engine was seen")
    need(fact(observation, "exit_code") == 0, f"exit code {fact(observation, 'exit_code')}")
    left = fact(observation, "still_running")
    need(not left, f"processes {left} still run after the stop")
    answer = exchange(observation, "answer_after_stop")
    need(answer.status is None, f"the socket still answers: status {answer.status}")
    files = fact(observation, "temporary_files")
    need(not files, f"temporary files are left: {', '.join(files[:3])}")


JUDGES: Final[Mapping[str, Judge]] = {
    "G3-FACTORY": judge_factory,
    "G3-LLAMA": judge_family,
    "G3-GPT": judge_family,
    "G4-MODELS-LOAD": judge_load,
    "G4-MODELS-GENERATE": judge_generate,
    "G4-MODELS-DETERMINISM": judge_determinism,
    "G4-MODELS-ADAPTER": judge_adapter,
    "G4-MODELS-TOKENIZER": judge_tokenizer,
    "G4-MODELS-CLEANUP": judge_cleanup,
}
