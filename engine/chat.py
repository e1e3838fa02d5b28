"""Chat messages to a prompt, by the model file's own template in a bounded Jinja sandbox.

Messages are hostile: text in them that spells a special token must stay text. `encode` therefore
puts a guard character, one that occurs nowhere else, behind every character that a special token
could start with in what the caller wrote, renders, finds special tokens in what came out (the
guard breaks those that the caller spelled), and takes the guards out again before merging. Where
messages spell no special token the ids equal those of encoding the rendered text as a whole.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError

from engine.errors import InvalidRequest, ModelLoadError
from engine.gguf import GGUFFile
from engine.harmony import CHANNELS, speaks_harmony
from engine.template_sandbox import MAX_TEXT, BoundedEnvironment
from engine.tokenizer import Tokenizer

Message = Mapping[str, Any]

MAX_TEMPLATE_CHARACTERS = 256 << 10
MAX_DEPTH = 16
ROLES = ("system", "developer", "user", "assistant", "tool")
VARIABLES = (
    "tools", "documents", "reasoning_effort", "model_identity", "builtin_tools", "enable_thinking",
)  # fmt: skip
_KEY = "tokenizer.chat_template"
_NONE: Mapping[str, Any] = MappingProxyType({})
_GUARDS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
_WORDS = frozenset(ROLES) | frozenset(
    ("text", "function", "object", "array", "string", "number", "integer", "boolean", "null")
)
"""Values of `role` and `type` that templates compare with their own words."""
_REASONING = ("reasoning_content", "thinking")
_MAX_TIME_FORMAT = 64


class ChatTemplate:
    """One model's chat template."""

    def __init__(self, source: str | None, tokenizer: Tokenizer, place: str = "chat template"):
        self.source = source
        self._tokenizer = tokenizer
        self._environment = BoundedEnvironment()
        self._template = None if source is None else self._compile(source, place)

    @classmethod
    def from_file(cls, file: GGUFFile, tokenizer: Tokenizer) -> "ChatTemplate":
        """The file's template; ModelLoadError where it does not compile."""
        source = file.metadata.get(_KEY)
        place = f"{file.path.name}: metadata key {_KEY!r}"
        if source is not None and not isinstance(source, str):
            raise ModelLoadError(f"{place}: a string wanted, got {type(source).__name__}")
        return cls(source, tokenizer, place)

    @property
    def available(self) -> bool:
        """False where the model has no template: it then takes prompts only."""
        return self._template is not None

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels of the model's answers, none but where it speaks Harmony."""
        return CHANNELS if self.available and speaks_harmony(self._tokenizer) else ()

    def render(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] = _NONE,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt's text; InvalidRequest names what is wrong with `messages`.

        `variables` is what else the template may ask for: `tools`, `reasoning_effort`, ….
        """
        given = {"messages": _checked(messages), **_named(variables)}
        return self._render(given, add_generation_prompt)

    def encode(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] = _NONE,
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The prompt's token ids, in which special tokens come from the template alone."""
        given = {"messages": _checked(messages), **_named(variables)}
        guard = _unused(str(given) + (self.source or ""))
        starts = self._tokenizer.special_first_characters
        guarded = _map_strings(given, lambda text: _guarded(text, starts, guard))
        text = self._render(guarded, add_generation_prompt)
        return self._tokenizer.encode_guarded(text, guard)

    def _compile(self, source: str, place: str) -> Template:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise ModelLoadError(
                f"{place}: at most {MAX_TEMPLATE_CHARACTERS} characters wanted, got {len(source)}"
            )
        try:
            return self._environment.from_string(source)
        except (TemplateError, RecursionError, SyntaxError, MemoryError, ValueError) as exc:
            kind = type(exc).__name__
            raise ModelLoadError(f"{place}: does not compile: {kind}: {str(exc)[:200]}") from exc

    def _render(self, given: dict[str, Any], add_generation_prompt: bool) -> str:
        if self._template is None:
            raise InvalidRequest("messages", "this model has no chat template; send a prompt")
        self._environment.start()
        try:
            return _limited(self._template.generate(self._own(add_generation_prompt) | given))
        except Exception as exc:
            raise InvalidRequest(
                "messages", f"the model's chat template refuses: {str(exc)[:200]}"
            ) from exc

    def _own(self, add_generation_prompt: bool) -> dict[str, Any]:
        """What every template of `transformers` finds beside the caller's variables."""
        return {
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "raise_exception": _refuse,
            "strftime_now": _time_now,
            "bos_token": self._text_of(self._tokenizer.bos_id),
            "eos_token": self._text_of(next(iter(self._tokenizer.eos_ids), None)),
        }

    def _text_of(self, token_id: int | None) -> str:
        return "" if token_id is None else self._tokenizer.vocabulary.texts[token_id]


def _limited(pieces: Iterable[str]) -> str:
    kept: list[str] = []
    size = 0
    for piece in pieces:
        kept.append(piece)
        size += len(piece)
        if size > MAX_TEXT:
            raise TemplateError(f"more than {MAX_TEXT} characters")
    return "".join(kept)


def _refuse(message: object = "") -> str:
    raise TemplateError(str(message))


def _time_now(form: object) -> str:
    if not isinstance(form, str) or len(form) > _MAX_TIME_FORMAT:
        raise TemplateError(f"a time's format of at most {_MAX_TIME_FORMAT} characters wanted")
    return datetime.now().astimezone().strftime(form)


def _named(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in variables:
        if name not in VARIABLES:
            raise InvalidRequest(name, f"{name}: templates know {', '.join(VARIABLES)}")
    return variables


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not isinstance(messages, list | tuple) or not messages:
        raise InvalidRequest("messages", "a non-empty list of messages wanted")
    return [_message(index, message) for index, message in enumerate(messages)]


def _message(index: int, message: Message) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest("messages", f"message {index}: an object wanted")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InvalidRequest(
            "messages", f"message {index}: role: one of {', '.join(ROLES)} wanted, got {role!r:.40}"
        )
    if isinstance(content, list | tuple):
        content = "".join(_part(index, part) for part in content)
    if content is None and role == "assistant" and message.get("tool_calls"):
        return _with_reasoning(message)
    if not isinstance(content, str):
        raise InvalidRequest("messages", f"message {index}: content: a string wanted")
    return _with_reasoning({**message, "content": content})


def _with_reasoning(message: Message) -> dict[str, Any]:
    """What the assistant thought, under both names by which templates ask for it."""
    thought = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    return dict(message) if thought is None else dict.fromkeys(_REASONING, thought) | dict(message)


def _part(index: int, part: Any) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and type(part.get("text")) is str:
        return str(part["text"])
    raise InvalidRequest("messages", f"message {index}: only content parts of type text are known")


def _unused(text: str) -> str:
    for guard in _GUARDS:
        if guard not in text:
            return guard
    raise InvalidRequest("messages", "the text uses every Unicode noncharacter in U+FDD0…U+FDEF")


def _guarded(text: str, starts: frozenset[str], guard: str) -> str:
    return text.translate({ord(character): character + guard for character in starts})


def _map_strings(value: Any, change: Callable[[str], str], depth: int = 0) -> Any:
    """`value` with every string changed, names that are keys or known words excepted."""
    if depth > MAX_DEPTH:
        raise InvalidRequest("messages", f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            key if str(key).isidentifier() else change(str(key)): item
            if key in ("role", "type") and isinstance(item, str) and item in _WORDS
            else _map_strings(item, change, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_map_strings(item, change, depth + 1) for item in value]
    return value
