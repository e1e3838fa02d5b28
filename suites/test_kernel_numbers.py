"""Gate 1, on a CUDA device: every kernel on random odd shapes, beside float64."""

import pytest

from harness.launch import Launcher, LaunchSpec
from harness.observation import Observe
from suites.probes import probe


@pytest.mark.check(
    "G1-KERNEL-EMBED",
    "G1-KERNEL-GEMV",
    "G1-KERNEL-GEMM",
    "G1-KERNEL-ROPE",
    "G1-KERNEL-NORM",
    "G1-KERNEL-ACT",
    "G1-KERNEL-ATTN",
    "G1-KERNEL-MOE",
    "G1-KERNEL-SAMPLE",
)
def test_kernels_equal_float64(
    launcher: Launcher, launch_spec: LaunchSpec, observe: Observe
) -> None:
    observe(probe=probe(launcher, launch_spec, "kernels", "--seed", "1"))
