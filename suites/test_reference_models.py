"""Profile m0: each reference model, as the default model is tried: served, UTF-8, haiku, speed.

The tests are those of the other suites, by the same names, with another model file. Without the
reference weights each is an error that says which command gets them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from harness import models
from harness.launch import LaunchEngine, Launcher, LaunchSpec, RunningEngine
from harness.observation import Observe
from harness.profiles import Profile
from suites import (
    test_device_memory,
    test_genuine,
    test_haiku,
    test_model_sequence,
    test_performance,
    test_tokenizers,
    test_utf8,
)
from suites.long_run import LongRun

NAMES = tuple(model.name for model in models.registry().values() if "m0" in model.profiles)
TOKENIZERS = {
    "qwen2.5-0.5b-instruct": "G2-TOKENIZER-QWEN2",
    "phi-3-mini-4k-instruct": "G2-TOKENIZER-PHI3",
    "gpt-oss-20b": "G2-TOKENIZER-GPTOSS",
}

every_model = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def reference_weights(name: str, profile: Profile) -> Path:
    """The model's file; ModelFileError says how to get it."""
    if "m0" not in profile.places:
        pytest.skip("the reference weights are of profile m0")
    return models.resolve(name)


@pytest.fixture
def launch_reference(reference_weights: Path, launch_engine: LaunchEngine) -> LaunchEngine:
    """`launch_engine` with the reference model in the default one's place."""

    def launch(
        *args: str, model: Path | None = None, env: Mapping[str, str] | None = None
    ) -> RunningEngine:
        return launch_engine(*args, model=model or reference_weights, env=env)

    return launch


@pytest.fixture
def reference(launch_reference: LaunchEngine) -> RunningEngine:
    """An engine that serves the reference model."""
    return launch_reference()


@pytest.mark.check(
    "G4-MODELS-LOAD",
    "G4-MODELS-GENERATE",
    "G4-MODELS-DETERMINISM",
    "G4-MODELS-ADAPTER",
    "G4-MODELS-TOKENIZER",
)
@every_model
def test_serves(
    name: str,
    generated_model: Callable[[str], Path],
    launch_reference: LaunchEngine,
    observe: Observe,
) -> None:
    default = test_model_sequence.DEFAULT
    test_model_sequence.test_serves(default, generated_model, launch_reference, observe)


@pytest.mark.check("G4-MODELS-CLEANUP")
@every_model
def test_leaves_nothing_behind(
    name: str,
    generated_model: Callable[[str], Path],
    launch_reference: LaunchEngine,
    tmp_path: Path,
    profile: Profile,
    observe: Observe,
) -> None:
    test_model_sequence.test_leaves_nothing_behind(
        test_model_sequence.DEFAULT, generated_model, launch_reference, tmp_path, profile, observe
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.check(id_)) for name, id_ in TOKENIZERS.items()]
)
def test_golden_vectors(name: str, reference: RunningEngine, observe: Observe) -> None:
    golden = test_tokenizers.golden_of(name)
    seen = test_tokenizers.vectors(reference, golden)
    observe(golden=golden, model_sha256=reference.model_sha256, **seen)


@pytest.mark.check(
    "G4-UTF8-EMOJI",
    "G4-UTF8-SCRIPTS",
    "G4-UTF8-VALID",
    "G4-UTF8-NOREPLACEMENT",
    "G4-UTF8-STREAM-EQUALS-FULL",
)
@every_model
def test_texts_come_through(name: str, reference: RunningEngine, observe: Observe) -> None:
    test_utf8.test_texts_come_through(reference, observe)


@pytest.mark.check("G4-UTF8-SPLIT", "G4-UTF8-BUFFER", "G4-UTF8-VALID", "G4-UTF8-NOREPLACEMENT")
@every_model
def test_characters_split_over_tokens(
    name: str, reference: RunningEngine, observe: Observe
) -> None:
    test_utf8.test_characters_split_over_tokens(reference, observe)


@pytest.mark.check("G4-HAIKU")
@every_model
def test_haiku_of_reference(
    name: str,
    launch_reference: LaunchEngine,
    profile: Profile,
    nonce: str,
    calibration: str | None,
    observe: Observe,
) -> None:
    asked = test_haiku.Asked(launch_reference, profile, nonce, calibration, chat=True)
    test_haiku.write(asked, observe)


@pytest.mark.check("G4-GENUINE-RESCORE")
@every_model
def test_reference_accepts_every_token(
    name: str,
    launch_reference: LaunchEngine,
    profile: Profile,
    nonce: str,
    calibration: str | None,
    observe: Observe,
) -> None:
    long_run = LongRun.begun(launch_reference(), nonce)
    test_genuine.test_reference_accepts_every_token(long_run, profile, calibration, observe)


@pytest.mark.check("G4-PERF-BASELINE", "G4-PERF-TTFT", "G4-PERF-ITL", "G4-PERF-RATE")
@every_model
def test_baseline(name: str, reference: RunningEngine, observe: Observe) -> None:
    test_performance.test_baseline(reference, observe)


@pytest.mark.check("G4-PERF-LOAD")
@every_model
def test_load(name: str, launch_reference: LaunchEngine, observe: Observe) -> None:
    test_performance.test_load(launch_reference, observe)


@pytest.mark.check("G4-PERF-SHUTDOWN")
@every_model
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_shutdown(name: str, state: str, launch_reference: LaunchEngine, observe: Observe) -> None:
    test_performance.test_shutdown(state, launch_reference, observe)


@pytest.mark.check("G4-PERF-LEAK")
@every_model
def test_a_hundred_requests_leak_nothing(
    name: str, reference: RunningEngine, observe: Observe
) -> None:
    test_performance.test_a_hundred_requests_leak_nothing(reference, observe)


@pytest.mark.check("G3-24GB")
@pytest.mark.parametrize("name", [test_device_memory.LARGE])
def test_gpt_oss_fits(
    name: str,
    reference_weights: Path,
    launcher: Launcher,
    launch_spec: LaunchSpec,
    launch_reference: LaunchEngine,
    observe: Observe,
) -> None:
    test_device_memory.test_gpt_oss_fits(
        lambda _: reference_weights, launcher, launch_spec, launch_reference, observe
    )
