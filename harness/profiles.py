"""Profiles: what a certificate may claim, and how a check's limits are scaled for it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """`places` a check can be seen in; `time_factor` multiplies time limits (shared machines)."""

    name: str
    places: tuple[str, ...]
    time_factor: float
    claim: str

    @property
    def device_args(self) -> tuple[str, ...]:
        """Arguments that put the reference engine on the kind of device that is under test."""
        return ("--device", "cuda:0") if "cuda" in self.places else ()


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("cpu", ("any",), 5.0, "CPU, embedded default model"),
        Profile("gpu", ("any", "cuda"), 1.0, "one CUDA GPU, default and generated models"),
        Profile("m0", ("any", "cuda", "m0"), 1.0, "one CUDA GPU, the three reference models"),
    )
}


def is_time_limit(name: str) -> bool:
    """Whether a limit of this name is an upper bound of a time in seconds or milliseconds."""
    timed = name.endswith(("_s", "_ms")) and not name.endswith("_per_s")
    return timed and not name.startswith("min_")


def scaled(limits: Mapping[str, float], profile: Profile) -> dict[str, float]:
    """The limits that judges get: time limits times the profile's factor, the others as written."""
    return {
        name: value * profile.time_factor if is_time_limit(name) else value
        for name, value in limits.items()
    }
