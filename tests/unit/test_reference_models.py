"""Profile m0: every check that needs the reference weights is asked of each reference model."""

import json

import pytest

from harness.checklist import load_checklists
from harness.errors import ModelFileError
from harness.models import DEFAULT_MODEL, registry, resolve
from harness.options import models_of
from suites.test_reference_models import NAMES
from suites.test_tokenizers import GOLDENS

OF_ONE_MODEL = {
    "G2-TOKENIZER-QWEN2": "qwen2.5-0.5b-instruct",
    "G2-TOKENIZER-PHI3": "phi-3-mini-4k-instruct",
    "G2-TOKENIZER-GPTOSS": "gpt-oss-20b",
    "G3-24GB": "gpt-oss-20b",
}


def test_the_reference_models_come_to_the_default_one() -> None:
    assert models_of("m0") == (DEFAULT_MODEL, *NAMES)
    assert models_of("gpu") == models_of("cpu") == (DEFAULT_MODEL,)


def test_each_reference_model_is_asked() -> None:
    for id_, check in load_checklists().checks.items():
        if "m0" in check.where:
            wanted = (OF_ONE_MODEL[id_],) if id_ in OF_ONE_MODEL else NAMES
            for name in wanted:
                assert any(name in test for test in check.observations["m0"]), f"{id_}: {name}"


def test_every_check_is_observed_in_every_place_where_it_is_judged() -> None:
    checks = [check for check in load_checklists().checks.values() if not check.computed]
    bare = [(c.id, place) for c in checks for place in c.where if not c.observations.get(place)]
    assert not bare


@pytest.mark.parametrize("name", NAMES)
def test_goldens_are_of_the_registered_files(name: str) -> None:
    golden = json.loads((GOLDENS / f"{name}.json").read_text())
    assert golden["sha256"] == registry()[name].sha256
    assert len(golden["cases"]) >= 30


def test_a_missing_weight_is_an_error_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("HAIKUGATE_CACHE_DIR", str(tmp_path))
    for name in NAMES:
        with pytest.raises(ModelFileError, match=f"run: haikugate models fetch {name}"):
            resolve(name)
