"""Cells of a fleet: real gate runs, bundles that count only if they hold, a real Ray cluster."""

import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest

from harness.archive import pack, unpacked
from harness.errors import BundleError, UsageError
from harness.fleet import FRESHNESS, Ended, Failed, Receiver, _require_holds, run_campaign
from harness.fleet_campaign import Cell, cells
from harness.fleet_cell import CellRun, run_cell
from harness.fleet_results import RESULTS, TABLE, CellVerdict, Row
from harness.keys import ephemeral_signer
from harness.verification import Status, Taken, Verification

CERTIFIED, REFUSED, UNPROVEN = CellVerdict
NONCE = "0123456789abcdef" * 4
MODEL = "smollm2-135m-instruct"
NO_ENGINE = {"engine_command": "false"}
"""A command that ends at once: gate 1 of it is refused in seconds, with a sealed bundle."""


def cell(**engine: Any) -> Cell:
    fields = {"engines": {"broken": {**NO_ENGINE, **engine}}, "models": [MODEL], "gates": [1]}
    return cells(fields, "c.yaml")[0]


@pytest.fixture(scope="module")
def refused() -> CellRun:
    found = run_cell(cell().options(), MODEL, NONCE)
    assert found.exit_code == 1
    assert found.archive is not None
    return found


def taken(folder: Path, run: CellRun | Failed, asked: Cell | None = None, **with_: Any) -> Row:
    nonce = with_.pop("nonce", NONCE)
    return Receiver(folder, **with_).take(Ended(asked or cell(), nonce, "a node", run))


def test_a_bundle_that_holds_is_the_verdict(refused: CellRun, tmp_path: Path) -> None:
    row = taken(tmp_path, refused)
    assert (row.verdict, row.node) == (REFUSED, "a node")
    assert row.said.startswith("NOT CERTIFIED: 0 of ")
    assert (tmp_path / row.bundle / "report.html").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["bundles"]


def edited(run: CellRun, old: bytes, new: bytes) -> CellRun:
    assert run.archive is not None
    unpacked = lzma.decompress(run.archive)
    assert old in unpacked
    return replace(run, archive=lzma.compress(unpacked.replace(old, new)))


def renamed(run: CellRun, name: str) -> CellRun:
    """The same files in a folder of another name."""
    with TemporaryDirectory() as folder:
        archive = Path(folder) / "bundle.tar.xz"
        archive.write_bytes(run.archive or b"")
        with unpacked(archive) as bundle:
            pack(bundle.rename(bundle.parent / name), archive)
        return replace(run, archive=archive.read_bytes())


TAMPERED: dict[str, tuple[Callable[[CellRun], CellRun], str]] = {
    "edited": (
        lambda run: edited(run, b'"certified": false', b'"certified": true '),
        "the evidence does not hold",
    ),
    "cut": (lambda run: replace(run, archive=(run.archive or b"")[:5000]), "not an archive"),
    "empty": (lambda run: replace(run, archive=b""), "not an archive"),
    "text for bytes": (lambda run: replace(run, archive="x"), "malformed: TypeError"),
    "no seconds": (lambda run: replace(run, seconds=None), "malformed: TypeError"),
    "endless": (lambda run: replace(run, seconds=float("inf")), "malformed: ValidationError"),
    "another folder": (lambda run: renamed(run, "x) | [CERTIFIED](y"), "of the run's name"),
    "the archive's own name": (lambda run: renamed(run, "unproven.tar.xz"), "of the run's name"),
    "none": (
        lambda run: replace(run, archive=None, exit_code=2, said="certify: no such model"),
        "no bundle, exit 2: certify: no such model",
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_does_not_hold_is_unproven(refused: CellRun, tmp_path: Path, how: str) -> None:
    tamper, says = TAMPERED[how]
    row = taken(tmp_path, tamper(refused))
    assert (row.verdict, row.bundle, says in row.said) == (UNPROVEN, "", True), row
    assert not list(tmp_path.rglob("report.html")), "what does not hold is not shown as a report"


@pytest.mark.parametrize("node", [None, 3, "[/red]\x1b[2J\udc80" + "x" * 1000])
def test_a_node_names_itself_harmlessly(refused: CellRun, tmp_path: Path, node: Any) -> None:
    row = Receiver(tmp_path).take(Ended(cell(), NONCE, node, refused))
    assert row.verdict == REFUSED
    assert row.node.isprintable()
    assert len(row.node) < 400


def test_another_run_cannot_stand_for_a_cell(refused: CellRun, tmp_path: Path) -> None:
    row = taken(tmp_path, refused, nonce="f" * 64)
    assert (row.verdict, "did not use the nonce" in row.said) == (UNPROVEN, True), row


OTHERS = {
    "gate": cell().model_copy(update={"gate": 2}),
    "kind": cell(engine="openai"),
    "launcher": cell(launcher="docker", image="an-image", engine_command=None),
    "command": cell(engine_command="true"),
    "ours": cell(engine_command=None),
    "profile": cell(profile="gpu", gpus=1),
    "models": cell().model_copy(update={"model": "/models/other.gguf"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_bundle_of_something_else_is_unproven(
    refused: CellRun, tmp_path: Path, name: str
) -> None:
    row = taken(tmp_path, refused, OTHERS[name])
    assert (row.verdict, "a bundle of another " in row.said) == (UNPROVEN, True), row


def test_a_model_that_no_node_has_is_told(tmp_path: Path) -> None:
    asked = cell().model_copy(update={"model": "/models/none.gguf"})
    row = taken(tmp_path, run_cell(asked.options(), asked.model, NONCE), asked)
    assert (row.verdict, "wanted ['none.gguf'], got [None]" in row.said) == (UNPROVEN, True), row


def test_a_bundle_must_have_the_trusted_key(refused: CellRun, tmp_path: Path) -> None:
    row = taken(tmp_path, refused, public_key=ephemeral_signer().public)
    assert (row.verdict, "signature" in row.said) == (UNPROVEN, True), row


def test_a_bundle_comes_once(refused: CellRun, tmp_path: Path) -> None:
    assert taken(tmp_path, refused).verdict == REFUSED
    assert taken(tmp_path, refused).verdict == UNPROVEN


def test_only_where_no_challenge_is_made_freshness_may_be_open() -> None:
    judged = Taken(5, "verdicts", Status.HOLDS, "")
    open_ = Taken(8, FRESHNESS, Status.NOT_CHECKED, "no challenge was made from it")
    found = Verification("", "", (judged, open_))
    _require_holds(found, fresh=False)
    with pytest.raises(BundleError, match="no challenge was made"):
        _require_holds(found, fresh=True)
    with pytest.raises(BundleError, match="not recomputed"):
        _require_holds(Verification("", "", ()), fresh=False)


class Machines:
    """Stands for a cluster: what each cell brings is given."""

    def __init__(self, brings: Callable[[], CellRun | Failed]) -> None:
        self.brings = brings
        self.asked: list[tuple[Cell, str]] = []

    def run(self, asked: Sequence[tuple[Cell, str]]) -> Iterator[Ended]:
        self.asked += asked
        for one, nonce in asked:
            yield Ended(one, nonce, "a node", self.brings())


def campaign_rows(folder: Path, machines: Machines) -> list[Row]:
    return run_campaign([cell()], folder, None, lambda: machines, lambda row: None)


def test_a_campaign_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Real(Machines):
        def run(self, asked: Sequence[tuple[Cell, str]]) -> Iterator[Ended]:
            self.asked += asked
            for one, nonce in asked:
                yield Ended(one, nonce, "a node", run_cell(one.options(), one.model, nonce))

    failing, real, unused = (
        Machines(lambda: Failed("its node went away")),
        Real(lambda: Failed("")),
        Machines(lambda: Failed("not to be asked")),
    )
    assert [row.said for row in campaign_rows(tmp_path, failing)] == ["its node went away"]
    assert [row.verdict for row in campaign_rows(tmp_path, real)] == [REFUSED]
    assert failing.asked[0][1] != real.asked[0][1], "each call draws its nonces"
    (again,) = campaign_rows(tmp_path, unused)
    assert (again.verdict, unused.asked) == (REFUSED, [])
    other = cell(ready_timeout=60)
    (changed,) = run_campaign([other], tmp_path, None, lambda: unused, lambda row: None)
    assert changed.said == "not to be asked", "other options are another question"
    assert [row.verdict for row in campaign_rows(tmp_path, real)] == [REFUSED]
    (again,) = campaign_rows(tmp_path, unused)
    report = tmp_path / again.bundle / "report.md"
    report.write_bytes(report.read_bytes().replace(b"NOT CERTIFIED", b"CERTIFIED", 1))
    assert [row.said for row in campaign_rows(tmp_path, unused)] == ["not to be asked"]
    assert [row.verdict for row in campaign_rows(tmp_path, real)] == [REFUSED]
    (again,) = campaign_rows(tmp_path, unused)
    shutil.rmtree(tmp_path / again.bundle)
    assert [row.said for row in campaign_rows(tmp_path, unused)] == ["not to be asked"]


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(UsageError, match="not a fleet's results"):
        campaign_rows(tmp_path, Machines(lambda: Failed("")))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:99999"])
def test_no_cluster_is_one_line(tmp_path: Path, address: str) -> None:
    running = fleet(tmp_path, CAMPAIGN, "--address", address)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 2
    assert f"haikugate: fleet: no Ray cluster at {address}: " in errors.splitlines()[-1]


CAMPAIGN = """
engines:
  broken: {engine_command: "false"}
  far: {engine_command: "false", gpus: 4096}
  voiceless: {engine_command: "false", tokenizer: /nowhere/tokenizer.json}
models: [smollm2-135m-instruct]
gates: [1]
"""


def fleet(folder: Path, campaign: str, *more: str) -> "subprocess.Popen[str]":
    pytest.importorskip("ray", reason="Ray is not installed: extra fleet")
    (folder / "c.yaml").write_text(campaign)
    command = (sys.executable, "-m", "harness.cli", "fleet", "c.yaml", "--output", "out", *more)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HAIKUGATE_RUN", "RAY_"))}
    return subprocess.Popen(
        command, cwd=folder, env=kept, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_campaign_on_a_ray_cluster(tmp_path: Path) -> None:
    running = fleet(tmp_path, CAMPAIGN)
    said, errors = running.communicate(timeout=300)
    assert running.returncode == 1, errors
    rows = {
        row["cell"].partition("/")[0]: row
        for row in json.loads((tmp_path / "out" / RESULTS).read_text())["cells"]
    }
    assert rows["broken"]["verdict"] == REFUSED, errors
    assert "no node has 2 CPUs and 4096 GPUs" in rows["far"]["said"]
    assert "exit 2: " in rows["voiceless"]["said"]
    assert "/nowhere/tokenizer.json: no such file" in rows["voiceless"]["said"]
    assert all(row["cell"] in said for row in rows.values())
    assert CERTIFIED not in said.replace(REFUSED, "")
    assert "[NOT CERTIFIED](bundles/broken/" in (tmp_path / "out" / TABLE).read_text()


def test_ctrl_c_ends_what_runs_on_the_nodes(tmp_path: Path) -> None:
    mark = tmp_path / "mark-of-this-test"
    program = f"import time; open({str(mark)!r}, 'w').close(); time.sleep(600)"
    engine = f'{sys.executable} -c \\"{program}\\"'
    campaign = CAMPAIGN.partition("  far")[0].replace('"false"', f'"{engine}"')
    running = fleet(tmp_path, f"{campaign}models: [{MODEL}]\ngates: [1]\n")
    deadline = time.monotonic() + 120
    while not mark.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert mark.exists(), running.communicate(timeout=60)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 130, errors
    left = [p for p in psutil.process_iter(["cmdline"]) if str(mark) in str(p.info["cmdline"])]
    assert left == []
