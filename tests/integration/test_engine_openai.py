"""The OpenAI routes, asked by the official client."""

from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.integration.engine_process import MODEL, WAIT_S, EngineProcess, text_of

NAME = MODEL.stem
PROMPT = "The capital of France is"
CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture
def client(engine: EngineProcess) -> Iterator[openai.OpenAI]:
    url = f"http://127.0.0.1:{engine.port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=WAIT_S) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another/model")


def test_a_completion_says_what_the_native_api_says(
    client: openai.OpenAI, engine: EngineProcess
) -> None:
    whole = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=8, temperature=0)
    native = engine.execute(prompt=PROMPT, max_tokens=8)
    assert whole.choices[0].text == text_of(native)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == native[0][1]["prompt_tokens"]
    assert (whole.usage.completion_tokens, whole.usage.total_tokens) == (
        8,
        8 + whole.usage.prompt_tokens,
    )
    ids = engine.client.post("/tokenize", json={"text": PROMPT, "add_special": True}).json()["ids"]
    by_ids = client.completions.create(model=NAME, prompt=ids, max_tokens=8, temperature=0)
    assert by_ids.choices[0].text == whole.choices[0].text


def test_a_stream_is_the_same_text_with_usage_at_the_end(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=8, temperature=0)
    chunks = list(
        client.completions.create(
            model=NAME, prompt=PROMPT, max_tokens=8, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage
    assert not chunks[-1].choices
    plain = list(
        client.completions.create(
            model=NAME, prompt=PROMPT, max_tokens=2, temperature=0, stream=True
        )
    )
    assert all(chunk.usage is None for chunk in plain)


def test_a_chat_uses_the_models_own_template(client: openai.OpenAI, engine: EngineProcess) -> None:
    whole = client.chat.completions.create(
        model=NAME, messages=CHAT, max_completion_tokens=12, temperature=0
    )
    native = engine.execute(messages=CHAT, max_tokens=12)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content == text_of(native)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == native[0][1]["prompt_tokens"]
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=CHAT, max_completion_tokens=12, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    said = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(said) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage


def test_no_text_of_a_user_spells_a_special_token(
    client: openai.OpenAI, engine: EngineProcess
) -> None:
    spelled = engine.client.post("/tokenize", json={"text": "<|im_end|>"}).json()["ids"]
    assert len(spelled) > 1
    plain = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "<|im_end|>"}], max_tokens=1
    )
    word = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "x"}], max_tokens=1
    )
    assert plain.usage is not None
    assert word.usage is not None
    assert plain.usage.prompt_tokens - word.usage.prompt_tokens == len(spelled) - 1


def test_logprobs_stop_and_seed(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model=NAME, messages=CHAT, max_tokens=5, temperature=0, logprobs=True, top_logprobs=4
    )
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert "".join(token.token for token in content) == chat.choices[0].message.content
    for token in content:
        assert len(token.top_logprobs) == 4
        assert token.top_logprobs[0].logprob == token.logprob == max(
            one.logprob for one in token.top_logprobs
        )  # fmt: skip
    legacy = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=3, logprobs=2)
    assert legacy.choices[0].logprobs is not None
    assert len(legacy.choices[0].logprobs.token_logprobs or ()) == 3
    whole = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=8, temperature=0)
    stop = whole.choices[0].text[4:7]
    cut = client.completions.create(
        model=NAME, prompt=PROMPT, max_tokens=8, temperature=0, stop=[stop]
    )
    assert cut.choices[0].text == whole.choices[0].text.partition(stop)[0]
    assert cut.choices[0].finish_reason == "stop"
    drawn = [
        client.completions.create(model=NAME, prompt=PROMPT, max_tokens=8, seed=seed)
        .choices[0]
        .text
        for seed in (7, 7, 8)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_errors_have_openais_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="n: only 1 is supported") as several:
        client.completions.create(model=NAME, prompt="x", n=2)
    assert several.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="n: only 1 is supported"):
        client.chat.completions.create(model=NAME, messages=CHAT, n=2)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="other", prompt="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        client.completions.create(model=NAME, prompt="x", temperature=3)
    assert hot.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model=NAME,
            messages=CHAT,
            tools=[{"type": "function", "function": {"name": "f"}}],
        )
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.completions.create(model=NAME, prompt=[5] * 8000, max_tokens=500)
