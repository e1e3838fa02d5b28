"""Makes tests/goldens/chats/*.json: what libraries that are not ours make of conversations.

NAME.json holds `transformers`' rendering of each conversation by the vendor's template NAME, or
null where it refuses; harmony-ids.json the token ids that OpenAI's own `openai-harmony` gives.
"""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import openai_harmony as harmony
from jinja2.exceptions import TemplateError
from transformers.utils import chat_template_utils

from tests.default_model import DEFAULT_MODEL
from tests.goldens.chat_conversations import CONVERSATIONS, Conversation
from tests.goldens.vocabularies import TEMPLATES, kept

HERE = Path(__file__).parent / "chats"
MODEL = DEFAULT_MODEL
DAY = datetime(2025, 6, 28, 12)
ENDS = {
    "smollm2": "<|im_start|> <|im_end|>",
    "phi3": "<s> <|endoftext|>",
    "llama3": "<|begin_of_text|> <|eot_id|>",
    "qwen": " <|im_end|>",
}
EFFORTS = {effort.value.lower(): effort for effort in harmony.ReasoningEffort}


def template(name: str) -> str:
    """The text of a vendor's template: the default model's own, or fetched once."""
    if name == "smollm2":
        return str(gguf.GGUFReader(MODEL).fields["tokenizer.chat_template"].contents())
    return kept(f"{name}.jinja").read_text()


class StoppedClock(datetime):
    """A clock that shows DAY."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return DAY


def rendered(source: str, case: Conversation, bos: str, eos: str) -> str | None:
    """The text that `transformers` renders on DAY; None where the template refuses."""
    given = case.variables | {"bos_token": bos, "eos_token": eos}
    try:
        with patch.object(chat_template_utils, "datetime", StoppedClock):
            texts, _ = chat_template_utils.render_jinja_template(
                [case.messages],
                chat_template=source,
                add_generation_prompt=case.add_generation_prompt,
                **given,
            )
    except TemplateError:
        return None
    return str(texts[0])


def ends(name: str) -> tuple[str, str]:
    """The texts of the vendor's BOS and EOS tokens."""
    found = next((pair for prefix, pair in ENDS.items() if name.startswith(prefix)), " ")
    bos, eos = found.split(" ")
    return bos, eos


def harmony_ids(case: Conversation) -> list[int]:
    """The prompt by OpenAI's library; its template ends instructions with two newlines."""
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(kept("o200k_base.tiktoken").parent)
    encoding = harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
    messages = list(case.messages)
    instructions = messages.pop(0)["content"] if _is_developer(messages[0]) else ""
    conversation = [_message("system", _system(case.variables))]
    tools = case.variables.get("tools") or []
    if instructions or tools:
        conversation.append(_message("developer", _developer(instructions, tools)))
    for message in messages:
        conversation += _spoken(message)
    whole = harmony.Conversation.from_messages(conversation)
    return list(encoding.render_conversation_for_completion(whole, harmony.Role.ASSISTANT))


def _is_developer(message: dict[str, Any]) -> bool:
    return message["role"] in ("system", "developer")


def _message(role: str, content: Any) -> Any:
    return harmony.Message.from_role_and_content(harmony.Role(role), content)


def _system(variables: dict[str, Any]) -> Any:
    content = harmony.SystemContent.new().with_conversation_start_date(f"{DAY:%Y-%m-%d}")
    content = content.with_reasoning_effort(EFFORTS[variables.get("reasoning_effort", "medium")])
    identity = variables.get("model_identity")
    return content.with_model_identity(identity) if identity else content


def _developer(instructions: str, tools: list[dict[str, Any]]) -> Any:
    content = harmony.DeveloperContent.new()
    if instructions:
        content = content.with_instructions(instructions + ("" if tools else "\n\n"))
    functions = [each["function"] for each in tools]
    described = [
        harmony.ToolDescription.new(f["name"], f["description"], f.get("parameters"))
        for f in functions
    ]
    return content.with_function_tools(described) if tools else content


def _spoken(message: dict[str, Any]) -> list[Any]:
    if message["role"] == "user":
        return [_message("user", message["content"])]
    thought = message.get("thinking")
    before = [_message("assistant", thought).with_channel("analysis")] if thought else []
    return [*before, _message("assistant", message["content"]).with_channel("final")]


def harmony_speaks(case: Conversation) -> bool:
    """False where vendor's template and library differ: calls of tools, defaults, dropped roles."""
    later = case.messages[1:]
    plain = all(m["role"] in ("user", "assistant") and "tool_calls" not in m for m in later)
    quoted = any("<|channel|>" in m["content"] for m in later if plain)
    odd = any(
        "default" in str(each) or "grid" in str(each) for each in case.variables.get("tools", ())
    )
    builtin = "builtin_tools" in case.variables
    return plain and case.add_generation_prompt and not (quoted or odd or builtin)


def write(name: str, cases: list[dict[str, Any]]) -> None:
    lines = ",\n".join(
        json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases
    )
    (HERE / f"{name}.json").write_text(f"[\n{lines}\n]\n")


def main() -> None:
    """Write every golden."""
    for name in (*TEMPLATES, "smollm2"):
        source, (bos, eos) = template(name), ends(name)
        write(name, [vars(c) | {"text": rendered(source, c, bos, eos)} for c in CONVERSATIONS])
    spoken = [case for case in CONVERSATIONS if harmony_speaks(case)]
    write("harmony-ids", [vars(case) | {"ids": harmony_ids(case)} for case in spoken])


if __name__ == "__main__":
    main()
