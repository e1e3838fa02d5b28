"""How strong a check's evidence is: proven, supported or self-reported.

proven         follows from bytes and times that the harness recorded itself; `verify` recomputes it
supported      a statistical judgement, with error rates
self-reported  rests on what the engine under test says about itself (its probes, its narration)
"""

from enum import StrEnum
from fnmatch import fnmatchcase


class Assurance(StrEnum):
    """A check's label in the report."""

    PROVEN = "proven"
    SUPPORTED = "supported"
    SELF_REPORTED = "self-reported"


_RULES: tuple[tuple[str, Assurance], ...] = (
    ("G4-GENUINE-COUNT", Assurance.PROVEN),
    ("G4-GENUINE-LENGTH", Assurance.PROVEN),
    ("G4-GENUINE-STOP", Assurance.PROVEN),
    ("G4-GENUINE-METRICS", Assurance.PROVEN),
    ("G4-GENUINE-*", Assurance.SUPPORTED),
    ("G4-HAIKU", Assurance.SUPPORTED),
    ("G1-SAMPLING", Assurance.SUPPORTED),
    ("G1-KERNEL-API", Assurance.PROVEN),
    ("G1-KERNEL-COMPILE", Assurance.PROVEN),
    ("G1-KERNEL-*", Assurance.SELF_REPORTED),
    ("G1-CUDA-CONTEXT", Assurance.SELF_REPORTED),
    ("G1-VRAM-RESIDENCY", Assurance.SELF_REPORTED),
    ("G2-QUANT-*", Assurance.SELF_REPORTED),
    ("G2-GGUF", Assurance.SELF_REPORTED),
    ("G2-LLAMA", Assurance.SELF_REPORTED),
    ("G2-QWEN2", Assurance.SELF_REPORTED),
    ("G2-PHI3", Assurance.SELF_REPORTED),
    ("G2-GPT2", Assurance.SELF_REPORTED),
    ("G2-GPTOSS", Assurance.SELF_REPORTED),
    ("G3-INTERFACE", Assurance.SELF_REPORTED),
    ("G3-FACTORY", Assurance.SELF_REPORTED),
    ("G3-MXFP4", Assurance.SELF_REPORTED),
    ("G4-PROGRESS", Assurance.SELF_REPORTED),
    ("G4-NARRATION", Assurance.SELF_REPORTED),
)


def assurance_of(check: str) -> Assurance:
    """The label of a check by id; the first rule that matches decides, else it is proven."""
    matching = (label for pattern, label in _RULES if fnmatchcase(check, pattern))
    return next(matching, Assurance.PROVEN)
