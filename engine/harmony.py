"""Harmony, GPT-OSS's answer format: messages in channels, of which the client sees `final`.

An answer reads `<|channel|>analysis<|message|>…<|end|>`, then
`<|start|>assistant<|channel|>final<|message|>…`, and ends with `<|return|>` or `<|call|>`.
"""

from typing import Protocol

CHANNELS = ("analysis", "final")
_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>")
_ENDS = ("<|end|>", "<|return|>", "<|call|>")


class Decoder(Protocol):
    """Token ids in, complete UTF-8 text out."""

    @property
    def dropped_bytes(self) -> int: ...

    def push(self, token_id: int) -> str: ...


class MarkedTokenizer(Protocol):
    """What the decoder needs of a tokenizer."""

    def id_of(self, special: str) -> int | None: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def stream(self) -> Decoder: ...


def speaks_harmony(tokenizer: MarkedTokenizer) -> bool:
    """True where the vocabulary has all of Harmony's marks."""
    return all(tokenizer.id_of(mark) is not None for mark in _MARKS)


class HarmonyDecoder:
    """Decodes an answer token by token, keeping only the messages of `channels`.

    It starts as the model does, after `<|start|>assistant`. `channel` is that of the message being
    read, "" before the first.
    """

    def __init__(self, tokenizer: MarkedTokenizer, channels: tuple[str, ...] = ("final",)) -> None:
        self._tokenizer = tokenizer
        self._marks = {tokenizer.id_of(mark): mark for mark in (*_MARKS, *_ENDS)}
        self._shown = channels
        self._in_header, self._field, self._header = True, "", ""
        self._decoder = tokenizer.stream()
        self._dropped = 0
        self.channel = ""

    def push(self, token_id: int) -> str:
        """The client's text that this token completes; "" for headers and other channels."""
        mark = self._marks.get(token_id)
        if mark is not None:
            self._turn(mark)
            return ""
        if self._in_header:
            if self._field == "<|channel|>":
                self._header += self._tokenizer.token_bytes(token_id).decode(errors="ignore")
            return ""
        text = self._decoder.push(token_id)
        return text if self.channel in self._shown else ""

    @property
    def dropped_bytes(self) -> int:
        """Bytes of shown messages that are in no character."""
        return self._dropped + (self._decoder.dropped_bytes if self.channel in self._shown else 0)

    def _turn(self, mark: str) -> None:
        if mark == "<|message|>" and self._in_header:
            self.channel = (self._header.split() or [""])[0]
            self._in_header, self._decoder = False, self._tokenizer.stream()
        elif mark != "<|message|>" and not self._in_header:
            self._dropped = self.dropped_bytes
            self._in_header, self.channel, self._header = True, "", ""
            self._decoder = self._tokenizer.stream()
        self._field = mark
