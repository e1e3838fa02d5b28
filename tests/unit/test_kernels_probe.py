"""The probe of the kernels' numbers without a GPU: launches do nothing, so nothing can pass."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from engine.backends import cuda_kernels_probe, cuda_probe_sample
from engine.backends.cuda_probe_attention import rotate
from engine.errors import DeviceError
from engine.probe import ProbeOptions
from engine.sampler import SamplingParams, choose
from harness.judges import JUDGES
from harness.judges.kernel_numbers import FEATURES
from harness.observation import Finding, Observation, Verdict
from tests.unit import fake_cuda
from tests.unit.test_cuda_runtime import fake_device

LIMITS = {"relative_error": 0.001}


class HostArray(np.ndarray):  # type: ignore[type-arg]
    """A NumPy array that looks like one of CuPy."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return dict(self.__array_interface__)

    def get(self) -> Any:
        return np.array(self)


class HostCupy:
    """The little of CuPy that the probe needs, in host memory."""

    def asarray(self, values: Any) -> HostArray:
        return np.array(values).view(HostArray)

    def empty(self, shape: tuple[int, ...], dtype: str) -> HostArray:
        return np.empty(shape, dtype).view(HostArray)


@pytest.fixture(scope="module")
def cases() -> Iterator[list[dict[str, Any]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_kernels_probe, "import_cupy", HostCupy)
        patch.setattr(cuda_kernels_probe, "open_device", lambda device: fake_device())
        patch.setattr("kernels.context.Module", fake_cuda.FakeModule)
        patch.setattr("kernels.context.cached_cubin", lambda unit, architecture: b"cubin")
        patch.setattr("engine.backends.cuda_probe_attention.FAR", 256)
        patch.setattr("engine.backends.cuda_probe_attention.CASES", SHORT_CASES)
        yield cuda_kernels_probe.cases(ProbeOptions(device="cuda:0"))


def _short_cases() -> tuple[Any, ...]:
    from dataclasses import replace

    from engine.backends.cuda_probe_attention import CASES, FAR

    return tuple(replace(c, tokens=256) if c.tokens == FAR else c for c in CASES)


SHORT_CASES = _short_cases()


def judged(kernel: str, cases: list[dict[str, Any]], device: str = "cuda:0") -> Finding:
    check = f"G1-KERNEL-{kernel}"
    facts = {"probe": {"device": device, "cases": cases}}
    seen = Observation(check, "test_kernels_equal_float64", 1, {}, facts)
    return JUDGES[check](seen, LIMITS)


@pytest.mark.parametrize("kernel", FEATURES)
def test_every_feature_is_measured_and_a_kernel_that_writes_nothing_fails(
    kernel: str, cases: list[dict[str, Any]]
) -> None:
    found = judged(kernel, cases)
    assert found.verdict == Verdict.FAIL, found


def test_the_probe_wants_a_gpu() -> None:
    with pytest.raises(DeviceError, match="--device cuda:N"):
        cuda_kernels_probe.cases(ProbeOptions())


def good(kernel: str) -> dict[str, Any]:
    case = {"kernel": kernel, "name": "n", "covers": list(FEATURES[kernel])}
    case |= {"repeats": 50, "distinct": 1}
    if kernel == "SAMPLE":
        one = {"token": 3, "steps": [1, 1], "draw": 0.5, "interval": [0.4, 0.6]}
        return case | {"draws": [dict(one) for _ in range(64)]}
    numbers = {"n_values": 9, "n_finite": 9, "error_norm": 1e-4, "reference_norm": 1.0}
    return case | {"outputs": [numbers | {"max_error": 1e-4}]}


@pytest.mark.parametrize("kernel", FEATURES)
def test_a_good_kernel_passes(kernel: str) -> None:
    assert judged(kernel, [good(kernel)]).verdict == Verdict.PASS
    assert judged(kernel, [good(kernel)], "cpu").verdict == Verdict.ERROR
    assert judged(kernel, [good(kernel) | {"covers": []}]).verdict == Verdict.ERROR
    assert judged(kernel, []).verdict == Verdict.ERROR
    assert "2 results" in judged(kernel, [good(kernel) | {"distinct": 2}]).message
    assert "only 9 repeats" in judged(kernel, [good(kernel) | {"repeats": 9}]).message


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"n_finite": 8}, "8 of 9 values are finite"),
        ({"n_values": 0, "n_finite": 0}, "0 of 0 values"),
        ({"reference_norm": 0.0}, "the reference is zero"),
        ({"error_norm": 2e-3}, "off by 0.002"),
    ],
)
def test_numbers_that_fail(changed: dict[str, float], says: str) -> None:
    case = good("GEMM")
    case["outputs"].append(case["outputs"][0] | changed)
    found = judged("GEMM", [good("GEMM"), case])
    assert (found.verdict, says in found.message) == (Verdict.FAIL, True), found
    assert "no output" in judged("GEMM", [good("GEMM") | {"outputs": []}]).message


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"draw": 0.602}, "outside its token's interval"),
        ({"interval": [-1.0, -1.0]}, "had been cut away"),
        ({"steps": [1, 0]}, "moved by [1, 0]"),
    ],
)
def test_draws_that_fail(changed: dict[str, Any], says: str) -> None:
    case = good("SAMPLE")
    case["draws"][5].update(changed)
    found = judged("SAMPLE", [case])
    assert (found.verdict, says in found.message) == (Verdict.FAIL, True), found
    for drawn in case["draws"][:8]:
        drawn.update(draw=0.6005, interval=[0.4, 0.6], steps=[1, 1])
    assert "of the draws give float64's token" in judged("SAMPLE", [case]).message
    assert "only 3 draws" in judged("SAMPLE", [case | {"draws": case["draws"][:3]}]).message


@pytest.mark.parametrize("name", cuda_probe_sample.SETTINGS)
def test_the_host_sampler_draws_from_the_reference_intervals(name: str) -> None:
    settings = cuda_probe_sample.SETTINGS[name]
    logits = (3 * np.random.default_rng(5).standard_normal(999)).astype(np.float32)
    sampling = SamplingParams(
        seed=settings.seed, temperature=settings.temperature, top_p=settings.top_p,
        top_k=settings.top_k, min_p=settings.min_p, repetition_penalty=settings.penalty,
    )  # fmt: skip
    seen = [one for one in cuda_probe_sample.SEEN if one < 999]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_probe_sample, "SEEN", seen)
        for index in range(40):
            token = choose(logits, sampling, index, seen)
            low, high = cuda_probe_sample.interval(logits.astype(np.float64), settings, token)
            draw = cuda_probe_sample.uniform(settings.seed, index)
            assert low - 1e-5 <= draw <= high + 1e-5


def test_rotation_keeps_length_but_for_the_magnitude() -> None:
    x = np.random.default_rng(1).standard_normal((5, 2, 16))
    for pairs in ("adjacent", "half"):
        out = rotate(x, pairs, np.ones(8))  # type: ignore[arg-type]
        assert np.allclose((out**2).sum(-1), (x**2).sum(-1) * 1.1**2)
    assert (rotate(x, "none", np.ones(8)) == x).all()
