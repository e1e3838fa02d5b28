"""A small project with four gates, one or two checks each, to run pytest on."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.bundle_reader import BundleReader
from harness.checklist import digest_lines, load_checklists

CONFTEST = """
import pathlib
import harness.checklist, harness.judges
from harness.observation import Finding, Verdict

harness.checklist.DIRECTORY = pathlib.Path(__file__).parent / "checklists"

def judge(observation, limits):
    verdict = Verdict(observation.facts.get("verdict", "pass"))
    return Finding(verdict, f"saw {observation.facts}", dict(limits))

harness.judges.JUDGES = {
    name: judge for name in ("G1-ONE", "G1-TWO", "G2-ONE", "G3-ONE", "G4-ONE", "G4-THREE")
}
"""

SUITE = """
import pytest

@pytest.mark.check("G1-ONE")
@pytest.mark.parametrize("size", [1, 2])
def test_one(observe, size):
    observe(size=size)

@pytest.mark.check("G1-TWO", "G2-ONE")
def test_two(observe):
    observe(seen="two")

@pytest.mark.check("G3-ONE")
def test_three(observe):
    observe(seen=3)

@pytest.mark.check("G4-ONE")
def test_four(observe):
    observe(seen=4)
"""

ALL_PASS = {
    "G1-ONE": "pass",
    "G1-TWO": "pass",
    "G2-ONE": "pass",
    "G3-ONE": "pass",
    "G4-ONE": "pass",
    "G4-TRACE": "pass",
    "G4-GATES-1-3": "pass",
}

CHECKS: dict[str, dict[str, Any]] = {
    "G1-ONE": {"any": ["test_one[1]", "test_one[2]"]},
    "G1-TWO": {"any": ["test_two"]},
    "G2-ONE": {"any": ["test_two"]},
    "G3-ONE": {"any": ["test_three"]},
    "G4-ONE": {"any": ["test_four"]},
}


def changed(old: str, new: str) -> str:
    """The suite with one thing changed."""
    assert old in SUITE
    return SUITE.replace(old, new)


def check_toml(id_: str, observations: dict[str, list[str]], extra: str = "") -> str:
    where = json.dumps(list(observations))
    listed = "".join(f"{place} = {json.dumps(tests)}\n" for place, tests in observations.items())
    return (
        f'[[check]]\nid = "{id_}"\ntext = "must hold"\nrequirements = ["HG-1"]\n'
        f'subject = "engine"\nwhere = {where}\nlaunchers = ["process", "attach"]\n'
        f'engines = ["native", "openai"]\nareas = ["{id_[3:].lower()}"]\n{extra}\n'
        f"[check.observations]\n{listed}\n"
    )


COMPUTED = (
    '[[check]]\nid = "G4-TRACE"\ntext = "trace"\nrequirements = ["HG-1"]\nsubject = "harness"\n'
    'where = ["any"]\nlaunchers = ["process", "attach"]\nengines = ["native"]\n'
    "computed = true\nwaivable = false\n"
    '[[check]]\nid = "G4-GATES-1-3"\ntext = "lower"\nrequirements = ["HG-1"]\n'
    'subject = "harness"\nwhere = ["any"]\nlaunchers = ["process", "attach"]\n'
    'engines = ["native"]\ncomputed = true\nwaivable = false\n'
)


def write_checklists(
    folder: Path, checks: dict[str, dict[str, Any]] | None = None, extra: str = ""
) -> None:
    folder.mkdir(exist_ok=True)
    for gate in (1, 2, 3, 4):
        text = f"schema = 1\ngate = {gate}\n"
        for id_, observations in (checks or CHECKS).items():
            if id_.startswith(f"G{gate}-"):
                text += check_toml(id_, observations)
        if gate == 4:
            text += extra + COMPUTED
        (folder / f"gate{gate}.toml").write_text(text)
    (folder / "requirements.toml").write_text(
        '[[requirement]]\nid = "HG-1"\ntext = "it holds"\nsource = "test"\n'
    )
    load_checklists.cache_clear()
    (folder / "SHA256SUMS").write_text(digest_lines(load_checklists(folder)))
    load_checklists.cache_clear()


class GateProject:
    """A folder in which `pytest -m gate4` is certified, until a test changes something."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.folder = pytester.path
        pytester.makeconftest(CONFTEST)
        write_checklists(self.folder / "checklists")
        self.suite(SUITE)
        (self.folder / "model.gguf").write_bytes(b"a model")
        pytester.makeini("[pytest]\naddopts = --strict-markers\n")

    def suite(self, source: str) -> None:
        folder = self.folder / "suites"
        folder.mkdir(exist_ok=True)
        (folder / "test_gates.py").write_text(source)

    def run(self, *args: str, marker: str = "gate4") -> pytest.RunResult:
        return self.pytester.runpytest_subprocess(
            *("-m", marker, "--profile", "cpu", "--model", "model.gguf", "--proof-dir", "proofs"),
            *args,
        )

    @property
    def bundle(self) -> BundleReader:
        (path,) = (self.folder / "proofs").iterdir()
        return BundleReader(path)

    def verdicts(self) -> dict[str, str]:
        return {check["id"]: check["verdict"] for check in self.bundle.checks["checks"]}
