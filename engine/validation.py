"""Request bodies as pydantic models, and the one readable error that each bad one gets."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, from_json

from engine.errors import InvalidRequest
from engine.sampling_ranges import RANGES

MAX_PROMPT_CHARS = 32_768
MAX_STOPS = 4
MAX_STOP_TOKENS = 32
MAX_JOB_ID_CHARS = 256
MAX_LOGPROBS = 20
MAX_MESSAGES = 4096


def _within(name: str) -> Any:
    """The pydantic field of a range."""
    range_ = RANGES[name]
    return Field(ge=range_.ge, gt=range_.gt, le=range_.le)


JobId = Annotated[str, Field(min_length=1, max_length=MAX_JOB_ID_CHARS)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
Temperature = Annotated[float, _within("temperature")]
TopP = Annotated[float, _within("top_p")]
TopK = Annotated[int, _within("top_k")]
MinP = Annotated[float, _within("min_p")]
RepetitionPenalty = Annotated[float, _within("repetition_penalty")]
Seed = Annotated[int, _within("seed")]
MaxTokens = Annotated[int, _within("max_tokens")]
Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
StopString = Annotated[str, Field(min_length=1)]
Stops = Annotated[list[StopString], Field(max_length=MAX_STOPS)]


def _only_false(value: bool) -> bool:
    if value:
        raise ValueError("wanted false or a number")
    return value


# No Literal[False]: 0 == False, so that it would take 0 for "no log-probabilities".
Logprobs = (
    Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | Annotated[bool, AfterValidator(_only_false)]
)


class Body(BaseModel):
    """A request body: unknown fields and wrong types are refused, nothing is coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]


class ExecuteBody(Body):
    """POST /execute."""

    job_id: JobId
    prompt: Prompt | None = None
    prompt_ids: TokenIds | None = None
    messages: Messages | None = None
    max_tokens: MaxTokens | None = None
    temperature: Temperature = 1.0
    top_p: TopP = 1.0
    top_k: TopK = 0
    min_p: MinP = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    stop: Stops = []
    seed: Seed | None = None
    logprobs: Logprobs = False
    cache_prompt: bool = False
    analysis: bool = False


class CancelBody(Body):
    """POST /cancel."""

    job_id: JobId


class TokenizeBody(Body):
    """POST /tokenize."""

    text: str
    add_special: bool = False


class DetokenizeBody(Body):
    """POST /detokenize."""

    ids: list[TokenId]


class ScoreBody(Body):
    """POST /score."""

    prompt_ids: TokenIds
    completion_ids: TokenIds


B = TypeVar("B", bound=BaseModel)


def parse_body(model: type[B], raw: bytes) -> B:
    """The body as `model`; InvalidRequest names the first field that is wrong, never its value."""
    try:
        content = from_json(raw, allow_inf_nan=True)  # NaN is refused by field, below
    except ValueError as error:
        raise InvalidRequest("body", f"body: not valid JSON: {str(error)[:120]}") from error
    if not isinstance(content, dict):
        raise InvalidRequest("body", "body: wanted a JSON object")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True, include_input=False)
        raise _readable(model, details) from error


def _readable(model: type[BaseModel], details: list[ErrorDetails]) -> InvalidRequest:
    """The first error; of a union's branches the one that got furthest says most."""
    first = str(details[0]["loc"][0]) if details[0]["loc"] else "body"
    same = [d for d in details if d["loc"] and str(d["loc"][0]) == first]
    detail = max(same or details, key=lambda d: (d["type"] in _BOUNDS, len(d["loc"])))
    if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
        known = ", ".join(sorted(model.model_fields))
        return InvalidRequest(first[:64], f"{_shown(first)}: unknown field; known fields: {known}")
    return InvalidRequest(first[:64], f"{_place(detail['loc'])}: {_wanted(detail)}")


def _place(loc: tuple[int | str, ...]) -> str:
    """Where, as field[index].field; names of union branches say nothing to a client."""
    indices = "".join(f"[{part}]" for part in loc[1:] if isinstance(part, int))
    last = str(loc[-1]) if loc[-1] in Message.model_fields else ""
    return _shown(str(loc[0])) + indices + (f".{last}" if len(loc) > 1 and last else "")


def _shown(name: str) -> str:
    """A field's name as it may appear in a message: short and printable."""
    return "".join(c if c.isprintable() else "?" for c in name[:64])


_BOUNDS = frozenset(
    {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}
    | {"string_too_short", "string_too_long", "too_short", "too_long"}
)


def _wanted(detail: ErrorDetails) -> str:
    context: dict[str, Any] = detail.get("ctx") or {}
    pattern = _WANTED.get(detail["type"])
    if pattern is None:
        return f"wanted {detail['msg'].removeprefix('Input should be ').lower()}"
    return pattern.format(**context)


_WANTED = {
    "missing": "this field is required",
    "extra_forbidden": "unknown field",
    "greater_than": "wanted a number > {gt}",
    "greater_than_equal": "wanted a number >= {ge}",
    "less_than": "wanted a number < {lt}",
    "less_than_equal": "wanted a number <= {le}",
    "string_too_short": "wanted at least {min_length} character",
    "string_too_long": "wanted at most {max_length} characters",
    "too_short": "wanted at least {min_length} item",
    "too_long": "wanted at most {max_length} items",
    "finite_number": "wanted a finite number",
}
