"""A fleet's campaign: cells run on other machines, each bundle verified here before it counts.

What the bundle says of gate, profile, engine and model must be what the cell asked for. Its nonce
is drawn here: no bundle of another run can stand for a certified gate 4.
"""

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from harness.archive import SUFFIX, unpacked
from harness.bundle_reader import BundleReader
from harness.errors import BundleError, HaikugateError, UsageError
from harness.fleet_campaign import Cell
from harness.fleet_cell import CellRun
from harness.fleet_results import CellVerdict, Results, Row, shown
from harness.keys import PublicKey
from harness.ledger import NAME
from harness.models import registered
from harness.verification import Status, Verification, VerifyOptions
from harness.verify import verify_bundle

FRESHNESS: Final = "freshness"
CHALLENGED_GATE: Final = 4
"""The gate that certifies nothing without an answer to a challenge made from the nonce."""
BUNDLES: Final = "bundles"


@dataclass(frozen=True)
class Failed:
    """A cell that brought no gate run: its node, the cluster or the model failed it."""

    why: str


@dataclass(frozen=True)
class Ended:
    """A cell's end: where it ran, and what came of it."""

    cell: Cell
    nonce: str
    node: str
    outcome: CellRun | Failed


class Cluster(Protocol):
    """Machines that cells run on."""

    def run(self, asked: Sequence[tuple[Cell, str]]) -> Iterator[Ended]:
        """Run every cell with its nonce; each as it ends, in any order."""
        ...


def run_campaign(
    cells: Sequence[Cell],
    folder: Path,
    public_key: PublicKey | None,
    cluster: Callable[[], Cluster],
    advance: Callable[[Row], None],
) -> list[Row]:
    """Run the cells that have no verified result yet, write after each; rows in the cells' order.

    A campaign that was interrupted goes on where it stopped; without a cell left, `cluster` is not
    called. Raises UsageError for a folder that cannot be written.
    """
    receiver, results = Receiver(folder, public_key), Results(folder)
    rows = dict(results.read())
    left = []
    for cell in cells:
        row = receiver.again(cell, rows.pop(cell.name, None))
        if row is None:
            left.append((cell, secrets.token_hex(32)))
        else:
            rows[cell.name] = row
            advance(row)
    _write(results, rows, cells)
    for ended in cluster().run(left) if left else ():
        row = receiver.take(ended)
        rows[row.cell] = row
        _write(results, rows, cells)
        advance(row)
    return [rows[cell.name] for cell in cells]


def _write(results: Results, rows: Mapping[str, Row], cells: Sequence[Cell]) -> None:
    try:
        results.folder.mkdir(parents=True, exist_ok=True)
        results.write(rows, cells)
    except OSError as error:
        raise UsageError(f"{results.folder}: cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class Receiver:
    """Takes what nodes send: a bundle that holds lands in the folder, another archive as it came.

    Whatever a node sends, it costs no more than its own cell.
    """

    folder: Path
    public_key: PublicKey | None = None

    def take(self, ended: Ended) -> Row:
        """The row of a cell that has ended."""
        cell, run = ended.cell, ended.outcome
        row = Row(
            cell=cell.name,
            asked=cell.options(),
            nonce=ended.nonce,
            verdict=CellVerdict.UNPROVEN,
            said="",
        )
        try:
            if isinstance(run, Failed):
                return _with(row, said=shown(run.why))
            row = _with(row, node=shown(ended.node), seconds=round(float(run.seconds), 1))
            if run.archive is None:
                return _with(row, said=shown(f"no bundle, exit {run.exit_code}: {run.said}"))
            return self._received(cell, row, run.archive)
        except HaikugateError as error:
            return _with(row, said=shown(error))
        except Exception as error:  # hostile input has no list of what it can raise
            return _with(row, said=shown(f"malformed: {type(error).__name__}: {error}"))

    def again(self, cell: Cell, row: Row | None) -> Row | None:
        """The cell's row of an earlier call, if it asked the same and its bundle verifies today."""
        if row is None or row.asked != cell.options():
            return None
        if Path(row.bundle).parent != Path(BUNDLES, cell.name):
            return None
        try:
            return self._judged(cell, row, self.folder / row.bundle)
        except Exception:  # edited or gone: it is asked again
            return None

    def _received(self, cell: Cell, row: Row, archive: bytes) -> Row:
        place = self.folder / BUNDLES / cell.name
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".arrived-", dir=self.folder) as name:
            packed, copy = Path(name, f"unproven{SUFFIX}"), Path(name, "copy")
            packed.write_bytes(archive)
            try:
                with unpacked(packed) as opened:
                    judged = self._judged(cell, row, opened)
                    shutil.copytree(opened, copy)
                copy.replace(place / opened.name)
            except BaseException:
                packed.replace(place / packed.name)
                raise
        return _with(judged, bundle=f"{BUNDLES}/{cell.name}/{opened.name}")

    def _judged(self, cell: Cell, row: Row, folder: Path) -> Row:
        """Raises BundleError for a bundle that does not hold or is about something else."""
        options = VerifyOptions(public_key=self.public_key, nonce=row.nonce)
        verification, bundle = verify_bundle(folder, options), BundleReader(folder)
        certified = verification.whole and bool(bundle.checks["certified"])
        _require_holds(verification, fresh=certified and cell.gate == CHALLENGED_GATE)
        if not NAME.fullmatch(folder.name) or bundle.run_id != folder.name:
            raise BundleError(f"{folder.name}: wanted a folder of the run's name {bundle.run_id}")
        _require_asked(cell, bundle.metadata)
        verdict = CellVerdict.CERTIFIED if certified else CellVerdict.REFUSED
        return _with(row, verdict=verdict, said=shown(bundle.checks["verdict_line"]))


def _with(row: Row, **changes: Any) -> Row:
    return Row.model_validate({**row.model_dump(), **changes})


def _require_holds(verification: Verification, *, fresh: bool) -> None:
    """Raises BundleError for evidence that does not hold.

    Freshness may be open where none of the gate's challenges is made from the nonce.
    """
    for step in verification.steps:
        left = step.status == Status.NOT_CHECKED and step.name in verification.unchecked
        if step.status == Status.FAILS or (left and (fresh or step.name != FRESHNESS)):
            raise BundleError(f"the evidence does not hold: {step.name}: {step.message}")
    if not verification.recomputed:
        raise BundleError("the evidence does not hold: its verdicts were not recomputed")


def _require_asked(cell: Cell, metadata: Mapping[str, Any]) -> None:
    """Raises BundleError if the bundle is about something else than the cell."""
    engine, judging = metadata.get("engine") or {}, metadata.get("judging") or {}
    pairs = {
        name: (asked, engine.get(name)) for name, asked in cell.engine.under_test().asked().items()
    }
    pairs |= {
        "gate": (cell.gate, metadata.get("gate")),
        "profile": (cell.engine.claimed, metadata.get("profile")),
        "areas": ([], judging.get("areas")),
    }
    if cell.model is not None:
        pairs["models"] = _models(cell.model, metadata.get("models") or [])
    for name, (wanted, got) in pairs.items():
        if wanted != got:
            raise BundleError(
                f"a bundle of another {name}: wanted {wanted!r:.120}, got {got!r:.120}"
            )


def _models(asked: str, found: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """A registered model by its digest; of a file of the nodes only its name is known here."""
    known = registered(asked)
    if known is not None:
        return [known.sha256], [model.get("sha256") for model in found]
    return [Path(asked).name], [model.get("file") for model in found]
