"""The tensors of a model file, each asked for with the shape that the equations need."""

from collections.abc import Mapping

import numpy as np

from engine.errors import ModelLoadError
from engine.gguf import Tensor


class Weights:
    """Hands out tensor names once their shapes are checked; ModelLoadError names the tensor."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def require(self, name: str, *shape: int) -> str:
        """The name of a tensor that is there with this shape."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelLoadError(f"tensor {name!r}: shape {shape} wanted, the file has no such one")
        if tensor.shape != shape:
            raise ModelLoadError(f"tensor {name!r}: shape {shape} wanted, got {tensor.shape}")
        self._read.add(name)
        return name

    def vector(self, name: str, *shape: int) -> str:
        """As `require`, for norms and biases, which are read as floats: F32, F16 or BF16."""
        found = self.require(name, *shape)
        if self._tensors[name].type not in ("F32", "F16", "BF16"):
            raise ModelLoadError(
                f"tensor {name!r}: F32, F16 or BF16 wanted, got {self._tensors[name].type}"
            )
        return found

    def optional_vector(self, name: str, *shape: int) -> str | None:
        """As `vector`, or None where the file has no such tensor."""
        return self.vector(name, *shape) if name in self else None

    def factors(self, name: str, count: int) -> tuple[float, ...]:
        """The numbers of a vector, finite and above 0; ones where the file has no such tensor."""
        if name not in self:
            return (1.0,) * count
        numbers = self._tensors[self.vector(name, count)].dequantize()
        bad = ~((numbers > 0) & np.isfinite(numbers))
        if bad.any():
            at = int(bad.argmax())
            raise ModelLoadError(
                f"tensor {name!r}: number {at} is {numbers[at]}, a finite one above 0 wanted"
            )
        return tuple(numbers.tolist())

    def require_all_read(self, architecture: str) -> None:
        """Refuse a file with a tensor that no equation asked for: its model is another one."""
        for name in self._tensors:
            if name not in self._read:
                raise ModelLoadError(
                    f"tensor {name!r}: a tensor of the {architecture} model wanted, "
                    "got one that it does not have"
                )

    def head(self, vocab_size: int, width: int) -> str:
        """The output matrix, the embedding table where the file ties both."""
        name = "output.weight" if "output.weight" in self else "token_embd.weight"
        return self.require(name, vocab_size, width)
