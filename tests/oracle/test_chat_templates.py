"""Vendors' chat templates over random conversations, beside `transformers` and `openai-harmony`."""

from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra oracle")
pytest.importorskip("openai_harmony", reason="needs the extra oracle")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.chat import ChatTemplate
from engine.errors import InvalidRequest
from tests.goldens.chat_conversations import BARE, NESTED, WEATHER, Conversation, called, said
from tests.goldens.make_chat_goldens import StoppedClock, ends, harmony_ids, rendered
from tests.goldens.vocabularies import TEMPLATES
from tests.unit.gguf_files import tokenizer_file
from tests.unit.real_tokenizers import real

TOKENIZERS = {"gptoss": "gpt-oss", "phi": "phi-3", "qwen": "qwen2", "llama": "llama-3"}
WORDS = st.text(alphabet="ab c\n\t'\"{}%#<>&é世🌍\u0301|", max_size=12)
PIECES = st.one_of(
    WORDS, st.sampled_from(["{{ x }}", "{% raw %}", "<|end|>", "null", "</tool_call>"])
)
TEXTS = st.lists(PIECES, max_size=4).map("".join)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), TEXTS)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner)),
    max_leaves=6,
)
TURNS = st.one_of(
    st.builds(said, st.sampled_from(["user", "tool", "system"]), TEXTS),
    st.builds(said, st.just("assistant"), TEXTS),
    st.builds(lambda text, thought: said("assistant", text, thinking=thought), TEXTS, TEXTS),
    st.builds(
        lambda place, data: called("get_weather", {"place": place, "data": data}), TEXTS, JSON
    ),
)
FIRST = st.builds(said, st.sampled_from(["system", "developer", "user"]), TEXTS)
VARIABLES = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.lists(st.sampled_from([WEATHER, NESTED, BARE]), min_size=1, max_size=3),
        "reasoning_effort": st.sampled_from(["low", "medium", "high"]),
        "model_identity": TEXTS,
        "builtin_tools": st.lists(st.sampled_from(["browser", "python"]), max_size=2),
    },
)
CONVERSATIONS = st.builds(
    lambda first, rest, variables, prompt: Conversation([first, *rest], variables, prompt),
    FIRST, st.lists(TURNS, max_size=5), VARIABLES, st.booleans(),
)  # fmt: skip
DIALOGUES = st.lists(st.tuples(TEXTS, TEXTS), max_size=3)


@pytest.fixture(autouse=True)
def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.chat.datetime", StoppedClock)


def template(name: str) -> ChatTemplate:
    tokenizer = next(real(each) for prefix, each in TOKENIZERS.items() if name.startswith(prefix))
    return ChatTemplate(tokenizer_file(f"{name}.jinja").read_text(), tokenizer)


def mine(source: ChatTemplate, case: Conversation) -> str | None:
    try:
        return source.render(
            case.messages, case.variables, add_generation_prompt=case.add_generation_prompt
        )
    except InvalidRequest:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_any_conversation_renders_as_transformers_renders_it(name: str) -> None:
    source, (bos, eos) = template(name), ends(name)

    @settings(
        max_examples=50, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(CONVERSATIONS)
    def check(case: Conversation) -> None:
        assert mine(source, case) == rendered(source.source or "", case, bos, eos)

    check()


def test_any_dialogue_has_the_ids_of_openais_library() -> None:
    source = template("gptoss")

    @settings(
        max_examples=50, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(TEXTS, DIALOGUES, TEXTS, st.sampled_from(["low", "medium", "high"]))
    def check(rule: str, turns: Any, last: str, effort: str) -> None:
        spoken = [
            said(role, text)
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        messages = [said("developer", rule), *spoken, said("user", last)]
        case = Conversation(messages, {"reasoning_effort": effort})
        assert source.encode(messages, case.variables) == harmony_ids(case)

    check()
