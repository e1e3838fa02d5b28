"""Where activations live: a buffer per program buffer, int16 twins for quantized products."""

import numpy as np
from numpy.typing import NDArray

from engine.backends.cpu_attention import padded
from engine.backends.cpu_jit import address_of
from engine.backends.cpu_layouts import X_BLOCK, X_BLOCK_BYTES
from engine.program import Program, Value

CHUNK_TOKENS = 64
HEAD_ROWS = 8


class Activations:
    """Rows for one chunk; logits only for HEAD_ROWS rows. Addresses and row strides in bytes."""

    def __init__(self, program: Program) -> None:
        logits = program.logits.buffer
        self._buffers = [
            np.zeros((HEAD_ROWS if index == logits else CHUNK_TOKENS, padded(width)), np.float32)
            for index, width in enumerate(program.widths)
        ]
        self._twins: dict[Value, NDArray[np.uint8]] = {}
        self._extra: dict[object, NDArray[np.uint8]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        floats = sum(buffer.nbytes for buffer in self._buffers)
        return floats + sum(part.nbytes for part in (*self._twins.values(), *self._extra.values()))

    def place(self, value: Value) -> tuple[int, int]:
        """(address of the first row, stride)."""
        buffer = self._buffers[value.buffer]
        return address_of(buffer) + 4 * value.offset, buffer.strides[0]

    def rows(self, value: Value) -> NDArray[np.float32]:
        """The rows themselves."""
        return self._buffers[value.buffer][:, value.offset : value.offset + value.width]

    def twin(self, value: Value) -> tuple[int, int]:
        """(address, stride) of a value's int16 blocks."""
        if value not in self._twins:
            width = value.width // X_BLOCK * X_BLOCK_BYTES
            n_rows = len(self._buffers[value.buffer])
            self._twins[value] = np.zeros((n_rows, width), np.uint8)
        twin = self._twins[value]
        return address_of(twin), twin.strides[0]

    def reserve(self, name: object, n_bytes: int) -> int:
        """The address of more zeroed memory; the same name and size give the same memory."""
        key = (name, n_bytes)
        if key not in self._extra:
            self._extra[key] = np.zeros(n_bytes, np.uint8)
        return address_of(self._extra[key])
