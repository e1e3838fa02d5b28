"""Gate 1: the kernels' launchers, and their compilation without a GPU."""

from importlib.metadata import requires
from pathlib import Path

import pytest

import harness
from harness.launch import Launcher, LaunchSpec
from harness.observation import Observe
from suites.probes import probe

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")


@pytest.mark.check("G1-KERNEL-API")
def test_launchers(launcher: Launcher, launch_spec: LaunchSpec, observe: Observe) -> None:
    observe(probe=probe(launcher, launch_spec, "kernels-api"))


@pytest.mark.check("G1-KERNEL-COMPILE")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_source_compiles(
    architecture: str, launcher: Launcher, launch_spec: LaunchSpec, observe: Observe
) -> None:
    sources = sorted((Path(harness.__file__).parent.parent / "kernels").glob("*.cu"))
    observe(
        probe=probe(launcher, launch_spec, "kernels-compile", "--arch", architecture),
        architecture=architecture,
        sources=[path.name for path in sources],
    )


@pytest.mark.check("G1-KERNEL-COMPILE")
def test_cuda_is_optional(observe: Observe) -> None:
    observe(requirements=requires("haikugate") or [])
