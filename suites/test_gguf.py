"""Gate 2: malformed model files, class by class."""

import pytest

from harness.launch import Launcher, LaunchSpec
from harness.observation import Observe
from suites.probes import probe


@pytest.mark.check("G2-GGUF")
def test_malformed_files(launcher: Launcher, launch_spec: LaunchSpec, observe: Observe) -> None:
    observe(probe=probe(launcher, launch_spec, "gguf-refusals"))
