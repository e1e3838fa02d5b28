"""Conversations for chat template goldens: roles, channels, tools, effort, text that looks odd."""

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages, what else the template is given, and whether the assistant is to speak next."""

    messages: list[Message]
    variables: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True


def said(role: str, content: str, **more: Any) -> Message:
    """One message."""
    return {"role": role, "content": content, **more}


def called(name: str, arguments: dict[str, Any], **more: Any) -> Message:
    """An assistant's message that calls a tool."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call], **more}


def tool(name: str, description: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """A tool as the OpenAI API describes it."""
    function = {"name": name, "description": description}
    more = {} if parameters is None else {"parameters": parameters}
    return {"type": "function", "function": function | more}


WEATHER = tool(
    "get_weather",
    "Tells the weather at a place.",
    {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "City & country, e.g. 東京 <Japan>"},
            "unit": {"type": "string", "enum": ["celsius", "kelvin"], "default": "celsius"},
            "days": {"type": "integer", "default": 1},
        },
        "required": ["location"],
    },
)
NESTED = tool(
    "plan",
    "Plans a day.",
    {
        "type": "object",
        "properties": {
            "stops": {"type": "array", "items": {"type": "string"}},
            "grid": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
            "when": {"oneOf": [{"type": "string"}, {"type": "number", "description": "epoch"}]},
            "who": {"type": ["string", "null"]},
            "sure": {"type": "boolean", "description": "really?"},
            "where": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
                "required": ["x"],
            },
        },
    },
)
LOOKUP = tool(
    "look_up",
    "Looks a word up.",
    {
        "type": "object",
        "properties": {
            "word": {"type": "string", "description": "In any language: 語, <b>"},
            "order": {"type": "string", "enum": ["newest", "best"]},
            "exact": {"type": "boolean"},
            "pages": {"type": "array", "items": {"type": "number"}},
        },
        "required": ["word", "pages"],
    },
)
BARE = tool("now", "Tells the time.")
ODD = "  {{ 7 * 7 }} {% raw %} \\n 'a' \"b\" & <b>\n\n世界 👩‍👧 e\u0301 \t end  "

PLAIN = [
    Conversation([said("user", "Hi")]),
    Conversation([said("user", ODD)]),
    Conversation([said("user", "")]),
    Conversation([said("system", "Be brief."), said("user", "Count to three")]),
    Conversation([said("system", ""), said("user", "x")]),
    Conversation([said("user", "a"), said("assistant", "b\n"), said("user", " c")]),
    Conversation([said("user", "a"), said("assistant", ODD)], add_generation_prompt=False),
    Conversation(
        [
            said("system", ODD),
            *(said(role, f"turn {turn}") for turn in range(6) for role in ("user", "assistant")),
            said("user", "and now?"),
        ]
    ),
]
THINKING = [
    Conversation([said("developer", "Rhyme."), said("user", "Hi")], {"reasoning_effort": "low"}),
    Conversation([said("user", "Hi")], {"reasoning_effort": "high"}),
    Conversation([said("user", "Hi")], {"model_identity": "You are a poet."}),
    Conversation(
        [
            said("developer", ODD),
            said("user", "2 + 2?"),
            said("assistant", "4", thinking="They add."),
            said("user", "3 + 3?"),
        ]
    ),
    Conversation(
        [said("user", "2 + 2?"), said("assistant", "4", thinking="They add.")],
        add_generation_prompt=False,
    ),
    Conversation([said("system", "One."), said("developer", "Two."), said("user", "Hi")]),
    Conversation(
        [
            said("user", "x"),
            said("assistant", "<|channel|>analysis<|message|>no"),
            said("user", "y"),
        ]
    ),
]
TOOLS = [
    Conversation([said("user", "Weather?")], {"tools": [WEATHER]}),
    Conversation([said("developer", "Ask."), said("user", "Go")], {"tools": [NESTED, BARE]}),
    Conversation([said("system", "Ask."), said("user", "Go")], {"tools": [BARE, WEATHER]}),
    Conversation([said("developer", "Ask."), said("user", "Go")], {"tools": [LOOKUP, BARE]}),
    Conversation([said("user", "Go")], {"tools": [LOOKUP], "reasoning_effort": "low"}),
    Conversation([said("user", "x")], {"builtin_tools": ["browser", "python"]}),
    Conversation(
        [
            said("user", "Weather in Paris?"),
            called("get_weather", {"location": "Paris", "deep": {"é": [1, 2.5, None]}}),
            said("tool", '{"sky": "clear & <blue>"}'),
        ],
        {"tools": [WEATHER]},
    ),
    Conversation(
        [
            said("user", "Weather in Paris?"),
            called("get_weather", {"location": "Paris"}, thinking="Look it up."),
            said("tool", "rain"),
            said("assistant", "Rain."),
            said("user", "And Rome?"),
            called("get_weather", {"location": "Rome"}, content="Again."),
            said("tool", "sun"),
        ],
        {"tools": [WEATHER]},
    ),
    Conversation([said("user", "x"), said("tool", "nobody asked")], {"tools": [WEATHER]}),
]
CONVERSATIONS = [*PLAIN, *THINKING, *TOOLS]
