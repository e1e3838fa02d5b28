"""How an observation is written, and read back without loss.

An observation is one JSON line (`N.observation.json`, N the attempt) that names, by path and
SHA-256, the files of its exchanges and of its large facts. An exchange file is newline-delimited
JSON: for each exchange a `request` line, a `head` line if one came, one `[ns since sent, bytes]`
line for each chunk, a `closed` line. Bytes are a JSON string where they are UTF-8, else
`{"base64": …}`.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import BundleError
from harness.observation import Chunk, Exchange, Json, Observation
from harness.strict_json import as_object, dumps_line, loads, loads_lines

INLINE_FACT_BYTES = 2048
"""A fact whose JSON is larger gets its own file, which checks that share it share too."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._=+,@-]")


def slug(name: str) -> str:
    """The name as one path component; altered or long names end in a digest, so none collide."""
    clean = _UNSAFE.sub("_", name).strip(".")[:80]
    if clean == name and clean:
        return clean
    return f"{clean}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def observation_folder(check: str, test: str) -> str:
    """The bundle's folder for what one test saw for one check."""
    return f"transcripts/{slug(check)}/{slug(test)}"


def encode_bytes(content: bytes) -> Json:
    """A JSON string where the bytes are UTF-8, else base64."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


def decode_bytes(value: Json) -> bytes:
    """The inverse of `encode_bytes`; raises ValueError."""
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, dict) or set(value) != {"base64"}:
        raise ValueError("bytes are a string or {base64}")
    return base64.b64decode(value["base64"], validate=True)


def encode_exchange(exchange: Exchange) -> Iterator[Json]:
    """The lines of one exchange."""
    yield {
        "request": {
            "method": exchange.method,
            "path": exchange.path,
            "headers": [list(pair) for pair in exchange.request_headers],
            "body": encode_bytes(exchange.request_body),
            "sent_ns": exchange.sent_ns,
        }
    }
    if exchange.status is not None or exchange.response_headers or exchange.head_ns is not None:
        yield {
            "head": {
                "status": exchange.status,
                "headers": [list(pair) for pair in exchange.response_headers],
                "head_ns": exchange.head_ns,
            }
        }
    for chunk in exchange.chunks:
        yield [chunk.arrival_ns - exchange.sent_ns, encode_bytes(chunk.content)]
    yield {"closed": {"ns": exchange.closed_ns, "by": exchange.closed_by, "error": exchange.error}}


def encode_exchanges(exchanges: Iterable[Exchange]) -> bytes:
    """The file of a sequence of exchanges."""
    lines = (dumps_line(line) for exchange in exchanges for line in encode_exchange(exchange))
    return b"".join(line + b"\n" for line in lines)


class _Decoder:
    """Collects the lines of one exchange after another."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self._members: dict[str, Any] | None = None
        self._chunks: list[Chunk] = []

    def feed(self, line: Json) -> None:
        if isinstance(line, list):
            self._chunk(line)
            return
        if not isinstance(line, dict) or len(line) != 1:
            raise ValueError("a line is a chunk or has one member")
        ((kind, value),) = line.items()
        step: dict[str, Callable[[dict[str, Any]], None]] = {
            "request": self._request,
            "head": self._head,
            "closed": self._closed,
        }
        if kind not in step or not isinstance(value, dict):
            raise ValueError(f"no line of kind {kind[:40]!r}")
        step[kind](value)

    def _open(self) -> dict[str, Any]:
        if self._members is None:
            raise ValueError("a line outside an exchange")
        return self._members

    def _request(self, value: dict[str, Any]) -> None:
        if self._members is not None:
            raise ValueError("a request inside an exchange")
        self._chunks = []
        self._members = {
            "method": _typed(value["method"], str),
            "path": _typed(value["path"], str),
            "request_headers": _headers(value["headers"]),
            "request_body": decode_bytes(value["body"]),
            "sent_ns": _typed(value["sent_ns"], int),
        }

    def _head(self, value: dict[str, Any]) -> None:
        members = self._open()
        if "status" in members or self._chunks:
            raise ValueError("a head in the wrong place")
        members["status"] = _optional(value["status"], int)
        members["response_headers"] = _headers(value["headers"])
        members["head_ns"] = _optional(value["head_ns"], int)

    def _chunk(self, line: list[Any]) -> None:
        sent_ns = self._open()["sent_ns"]
        delta_ns, content = line
        self._chunks.append(Chunk(sent_ns + _typed(delta_ns, int), decode_bytes(content)))

    def _closed(self, value: dict[str, Any]) -> None:
        members = self._open()
        members["chunks"] = tuple(self._chunks)
        members["closed_ns"] = _optional(value["ns"], int)
        members["closed_by"] = _typed(value["by"], str)
        members["error"] = _optional(value["error"], str)
        self.exchanges.append(Exchange(**members))
        self._members = None

    def finish(self) -> tuple[Exchange, ...]:
        if self._members is not None:
            raise ValueError("the last exchange is not closed")
        return tuple(self.exchanges)


def _typed(value: Any, wanted: type) -> Any:
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise ValueError(f"wanted {wanted.__name__}, got {type(value).__name__}")
    return value


def _optional(value: Any, wanted: type) -> Any:
    return None if value is None else _typed(value, wanted)


def _headers(value: Any) -> tuple[tuple[str, str], ...]:
    return tuple((_typed(name, str), _typed(text, str)) for name, text in _typed(value, list))


def decode_exchanges(content: bytes, where: str) -> tuple[Exchange, ...]:
    """Read an exchange file back; raises BundleError naming `where`."""
    decoder = _Decoder()
    try:
        for line in loads_lines(content, where):
            decoder.feed(line)
        return decoder.finish()
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise BundleError(f"{where}: not a transcript: {error}") from error


@dataclass(frozen=True)
class Attachment:
    """A file beside the observation record: its name there and its content."""

    name: str
    content: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()


Store = Callable[[Attachment], str]
"""Writes an attachment (or finds the same bytes already written) and returns its bundle path."""


def encode_observation(observation: Observation, nodeid: str, store: Store) -> bytes:
    """The observation's record line; exchanges and large facts go through `store`."""
    record = {
        "check": observation.check,
        "test": observation.test,
        "attempt": observation.attempt,
        "nodeid": nodeid,
        "exchanges": {
            name: _reference(Attachment(f"{slug(name)}.ndjson", encode_exchanges(exchanges)), store)
            for name, exchanges in observation.exchanges.items()
        },
        "facts": {name: _fact(name, value, store) for name, value in observation.facts.items()},
    }
    return dumps_line(record) + b"\n"


def _reference(attachment: Attachment, store: Store) -> Json:
    return {"path": store(attachment), "sha256": attachment.digest}


def _fact(name: str, value: Json, store: Store) -> Json:
    content = dumps_line(value)
    if len(content) <= INLINE_FACT_BYTES:
        return {"value": value}
    return _reference(Attachment(f"fact.{slug(name)}.json", content + b"\n"), store)


Fetch = Callable[[str], bytes]
"""The content of a bundle file by path; raises BundleError if the manifest does not list it."""


@dataclass(frozen=True)
class Recorded:
    """An observation as the bundle holds it: the record's path, and the test that made it."""

    path: str
    nodeid: str
    observation: Observation


def decode_observation(path: str, fetch: Fetch) -> Recorded:
    """Read an observation back with all it refers to; raises BundleError naming the file."""
    try:
        fields = as_object(loads(fetch(path).removesuffix(b"\n"), path), path)
        observation = Observation(
            check=_typed(fields["check"], str),
            test=_typed(fields["test"], str),
            attempt=_typed(fields["attempt"], int),
            exchanges={
                name: decode_exchanges(_fetch(reference, fetch), reference["path"])
                for name, reference in _members(fields, "exchanges")
            },
            facts={name: _read_fact(fact, fetch) for name, fact in _members(fields, "facts")},
        )
        return Recorded(path, _typed(fields["nodeid"], str), observation)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: not an observation: {error!r}") from error


def _members(fields: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    return sorted(_typed(fields[name], dict).items())


def _fetch(reference: Any, fetch: Fetch) -> bytes:
    path = _typed(_typed(reference, dict)["path"], str)
    content = fetch(path)
    got = hashlib.sha256(content).hexdigest()
    if got != reference["sha256"]:
        raise BundleError(f"{path}: wanted SHA-256 {reference['sha256']}, got {got}")
    return content


def _read_fact(fact: Any, fetch: Fetch) -> Json:
    if "value" in _typed(fact, dict):
        return fact["value"]
    return loads(_fetch(fact, fetch).removesuffix(b"\n"), fact["path"])


def normalized(observation: Observation) -> Observation:
    """The observation as it will be read back: tuples become lists, mapping keys strings.

    Judges at run time see this, so that they see what `verify` sees.
    """
    files: dict[str, bytes] = {}

    def store(attachment: Attachment) -> str:
        files[attachment.name] = attachment.content
        return attachment.name

    files["record"] = encode_observation(observation, "", store)
    return decode_observation("record", files.__getitem__).observation
