"""Gate 3: the parts of a GPT-OSS layer with MXFP4 matrices, against goldens of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.launch import Launcher, LaunchSpec
from harness.observation import Observe
from suites.probes import probe

GOLDENS = Path(__file__).parent / "goldens" / "mxfp4.json"


@pytest.mark.check("G3-MXFP4")
def test_micro_goldens(launcher: Launcher, launch_spec: LaunchSpec, observe: Observe) -> None:
    golden: dict[str, Any] = json.loads(GOLDENS.read_text(encoding="utf-8"))
    printed = probe(launcher, launch_spec, "gpt-oss-parts", "--seed", str(golden["seed"]))
    observe(golden=golden, probe=printed)
