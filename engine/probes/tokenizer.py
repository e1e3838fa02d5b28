"""Token ids of given texts by a model file's tokenizer, and the text of those ids."""

import json
from pathlib import Path

from engine.errors import InvalidRequest
from engine.gguf import GGUFFile
from engine.probe import Case, ProbeOptions
from engine.tokenizer import Tokenizer


def cases(options: ProbeOptions) -> list[Case]:
    """For each text of the JSON list in `texts`: its ids, and what they decode to."""
    if options.model is None or options.texts is None:
        raise InvalidRequest("model", "probe tokenizer needs --model and --texts")
    with GGUFFile.open(options.model) as file:
        tokenizer = Tokenizer.from_file(file)
    return [_case(tokenizer, text) for text in _texts(options.texts)]


def _case(tokenizer: Tokenizer, text: str) -> Case:
    ids = tokenizer.encode(text)
    decoded, dropped_bytes = tokenizer.decode(ids)
    return {
        "text": text,
        "ids": list(ids),
        "decoded": decoded,
        "dropped_bytes": dropped_bytes,
        "kind": tokenizer.kind,
    }


def _texts(path: Path) -> list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest("texts", f"{path}: wanted a JSON list of strings") from error
    if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
        raise InvalidRequest("texts", f"{path}: wanted a JSON list of strings")
    return content
