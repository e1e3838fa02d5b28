"""Chats with a Harmony model: the client sees `final`, and `analysis` only if it asks."""

from pathlib import Path
from typing import Any

import pytest

from engine.admission import Admission, ModelBounds
from engine.chat import ChatTemplate
from engine.errors import InvalidRequest
from engine.generate import End, Event, GenerationRequest, Token, generate
from engine.gguf import GGUFFile
from engine.openai_schema import ChatBody
from engine.synthetic import write_model
from engine.tokenizer import Tokenizer
from engine.validation import ExecuteBody, Message
from tests.unit.engine_fakes import FakeRuntime

ANSWER = (
    "<|channel|>analysis<|message|>They greet. stop<|end|><|start|>assistant<|channel|>final"
    "<|message|>Good day, 一🌍 stop here<|return|>"
)
HELLO = [Message(role="user", content="hello")]


def loaded(folder: Path, name: str) -> tuple[Tokenizer, ChatTemplate]:
    write_model(folder / "m.gguf", name)
    with GGUFFile.open(folder / "m.gguf") as file:
        tokenizer = Tokenizer.from_file(file)
        return tokenizer, ChatTemplate.from_file(file, tokenizer)


def admitted(parts: tuple[Tokenizer, ChatTemplate], **fields: Any) -> GenerationRequest:
    bounds = ModelBounds(parts[0].vocab_size, 1024, 256)
    body = ExecuteBody(job_id="a", **fields)
    return Admission(*parts, bounds).admit(body).request


def spoken(parts: tuple[Tokenizer, ChatTemplate], request: GenerationRequest) -> tuple[str, End]:
    """What the client reads when the model gives ANSWER."""
    events: list[Event] = []
    ids = parts[0].encode(ANSWER, parse_special=True)
    generate(FakeRuntime(script=ids), parts[0], request, lambda: None, events.append)
    assert isinstance(events[-1], End)
    return "".join(e.text for e in events if isinstance(e, Token)), events[-1]


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: Any) -> tuple[Tokenizer, ChatTemplate]:
    return loaded(tmp_path_factory.mktemp("harmony"), "tiny-gpt-oss")


def test_a_chat_shows_the_final_channel(gpt_oss: tuple[Tokenizer, ChatTemplate]) -> None:
    text, end = spoken(gpt_oss, admitted(gpt_oss, messages=HELLO))
    assert text == "Good day, 一🌍 stop here"
    assert (end.finish_reason, end.dropped_bytes) == ("stop", 0)
    assert end.tokens_out == len(gpt_oss[0].encode(ANSWER, parse_special=True))


def test_a_chat_shows_its_analysis_if_asked(gpt_oss: tuple[Tokenizer, ChatTemplate]) -> None:
    text, _ = spoken(gpt_oss, admitted(gpt_oss, messages=HELLO, analysis=True))
    assert text == "They greet. stopGood day, 一🌍 stop here"


def test_stop_strings_look_at_shown_text_only(gpt_oss: tuple[Tokenizer, ChatTemplate]) -> None:
    text, end = spoken(gpt_oss, admitted(gpt_oss, messages=HELLO, stop=["stop"]))
    assert (text, end.finish_reason) == ("Good day, 一🌍 ", "stop_sequence")


def test_a_prompt_shows_everything(gpt_oss: tuple[Tokenizer, ChatTemplate]) -> None:
    request = admitted(gpt_oss, prompt="hello")
    assert request.channels == ()
    assert "They greet." in spoken(gpt_oss, request)[0]


def test_analysis_is_refused_where_there_is_none(
    tmp_path: Path, gpt_oss: tuple[Tokenizer, ChatTemplate]
) -> None:
    qwen2 = loaded(tmp_path, "tiny-qwen2")
    assert admitted(qwen2, messages=HELLO).channels == ()
    for parts, source in ((qwen2, {"messages": HELLO}), (gpt_oss, {"prompt": "hello"})):
        with pytest.raises(InvalidRequest, match="analysis"):
            admitted(parts, analysis=True, **source)


def test_openai_chats_pass_the_wish_on() -> None:
    body = ChatBody(model="m", messages=[{"role": "user", "content": "hi"}], analysis=True)
    assert body.native("a").analysis
    assert not body.model_copy(update={"analysis": False}).native("a").analysis
