"""The ranges of what sampling takes: one table for the native API, OpenAI's and `generate`."""

from dataclasses import dataclass

from engine.errors import InvalidRequest


@dataclass(frozen=True)
class Range:
    """Numbers from `ge`, or above `gt`, to `le`; None: no such end."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None

    def holds(self, value: float) -> bool:
        """Whether the number lies within; NaN lies nowhere."""
        above = self.gt is None or value > self.gt
        from_least = self.ge is None or value >= self.ge
        return above and from_least and (self.le is None or value <= self.le)

    def __str__(self) -> str:
        least = f"above {self.gt}" if self.gt is not None else f"at least {self.ge}"
        return least if self.le is None else f"{least} and at most {self.le}"


RANGES = {
    "max_tokens": Range(ge=1),
    "temperature": Range(ge=0.0, le=2.0),
    "top_p": Range(gt=0.0, le=1.0),
    "top_k": Range(ge=0),
    "min_p": Range(ge=0.0, le=1.0),
    "repetition_penalty": Range(gt=0.0, le=2.0),
    "seed": Range(ge=0, le=(1 << 64) - 1),
}


def check_top_k(top_k: int, vocab_size: int) -> None:
    """Raises InvalidRequest for more candidates than the model has tokens."""
    if top_k > vocab_size:
        raise InvalidRequest("top_k", f"top_k: wanted at most {vocab_size}")
