"""The reference engine's white-box probes, run by the launcher under test."""

import json
from dataclasses import replace
from typing import Any

import pytest

from harness.launch import Launcher, LaunchSpec

PROBE_S = 120.0


def probe(launcher: Launcher, spec: LaunchSpec, name: str, *args: str) -> dict[str, Any]:
    """What `haikugate-engine probe NAME` prints where `spec` would serve, on the same device."""
    if "serve" not in spec.command:
        pytest.fail(f"probe {name}: the engine under test has no probes", pytrace=False)
    start = spec.command[: spec.command.index("serve")]
    device: tuple[str, ...] = ()
    if "--device" in spec.command:
        at = spec.command.index("--device")
        device = spec.command[at : at + 2]
    command = (*start, "probe", name, *args, *device)
    ended = launcher.run_to_exit(replace(spec, command=command), PROBE_S)
    if ended.code != 0:
        pytest.fail(f"probe {name}: exit code {ended.code}: {ended.stderr[-500:]}", pytrace=False)
    printed: dict[str, Any] = json.loads(ended.stdout)
    return printed
