"""A fleet's campaign: cells run on other machines, each bundle verified here before it counts.

A cell's nonce is drawn here, so that no bundle of another run can stand for it, and what the bundle
says of gate, profile, engine and model must be what the cell asked for.
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
from harness.campaign import Cell
from harness.cell_run import CellRun
from harness.errors import BundleError, HaikugateError, UsageError
from harness.fleet_results import CERTIFIED, REFUSED, UNPROVEN, Results, Row
from harness.keys import PublicKey
from harness.models import registry
from harness.verification import Status, Verification, VerifyOptions
from harness.verify import verify_bundle
from harness.visible import one_line

FRESHNESS: Final = "freshness"


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
    done: dict[str, Row] = {}

    def take(row: Row) -> None:
        done[row.cell] = row
        results.write([done[cell.name] for cell in cells if cell.name in done], cells)
        advance(row)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = results.read()
        for row in [receiver.again(cell, before) for cell in cells]:
            if row is not None:
                take(row)
        asked = [(cell, secrets.token_hex(32)) for cell in cells if cell.name not in done]
        for ended in cluster().run(asked) if asked else ():
            take(receiver.take(ended))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from None
    return [done[cell.name] for cell in cells]


@dataclass(frozen=True)
class Receiver:
    """Takes what nodes send: a bundle lands below the folder, and counts only if it holds."""

    folder: Path
    public_key: PublicKey | None = None

    def take(self, ended: Ended) -> Row:
        """The row of a cell that has ended."""
        cell, run = ended.cell, ended.outcome
        row = Row(cell=cell.name, verdict=UNPROVEN, said="", nonce=ended.nonce, node=ended.node)
        if isinstance(run, Failed):
            return row.ended(UNPROVEN, one_line(run.why))
        row = row.model_copy(update={"seconds": round(run.seconds, 1)})
        if run.archive is None:
            return row.ended(UNPROVEN, one_line(f"no bundle, exit {run.exit_code}: {run.said}"))
        try:
            bundle = self._unpack(run.archive, cell)
        except BundleError as error:
            return row.ended(UNPROVEN, one_line(error))
        return self._judged(cell, row.model_copy(update={"bundle": bundle}))

    def again(self, cell: Cell, before: Mapping[str, Row]) -> Row | None:
        """The cell's row of an earlier call, if its bundle verifies today."""
        row = before.get(cell.name)
        if row is None or Path(row.bundle).parent != Path(cell.name):
            return None
        judged = self._judged(cell, row)
        return None if judged.verdict == UNPROVEN else judged

    def _unpack(self, archive: bytes, cell: Cell) -> str:
        place = self.folder / cell.name
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".arrived-", dir=self.folder) as folder:
            packed = Path(folder) / f"bundle{SUFFIX}"
            packed.write_bytes(archive)
            with unpacked(packed) as opened:
                name = opened.name
                if (place / name).exists():
                    raise BundleError(f"{cell.name}/{name}: came twice")
                shutil.copytree(opened, Path(folder) / name)
            (Path(folder) / name).replace(place / name)
        return f"{cell.name}/{name}"

    def _judged(self, cell: Cell, row: Row) -> Row:
        try:
            folder = self.folder / row.bundle
            options = VerifyOptions(public_key=self.public_key, nonce=row.nonce)
            _require_holds(verify_bundle(folder, options))
            bundle = BundleReader(folder)
            _require_asked(cell, bundle.metadata)
            verdict = CERTIFIED if bundle.checks["certified"] else REFUSED
            return row.ended(verdict, one_line(str(bundle.checks["verdict_line"])))
        except HaikugateError as error:
            return row.ended(UNPROVEN, one_line(error))


def _require_holds(verification: Verification) -> None:
    """Raises BundleError for evidence that does not hold.

    A gate none of whose challenges is made from the nonce leaves freshness open, and nothing else.
    """
    for step in verification.steps:
        left = step.status == Status.NOT_CHECKED and step.name in verification.unchecked
        if step.status == Status.FAILS or (left and step.name != FRESHNESS):
            raise BundleError(f"the evidence does not hold: {step.name}: {step.message}")
    if not verification.recomputed:
        raise BundleError("the evidence does not hold: its verdicts were not recomputed")


def _require_asked(cell: Cell, metadata: Mapping[str, Any]) -> None:
    """Raises BundleError if the bundle is about something else than the cell."""
    asked, engine = cell.engine, metadata["engine"]
    pairs: dict[str, tuple[Any, Any]] = {
        "gate": (cell.gate, metadata["gate"]),
        "profile": (asked.claimed, metadata["profile"]),
        "engine": (asked.engine or "native", engine["kind"]),
        "image": (asked.image, engine["image"]),
        "url": (asked.engine_url, engine["url"]),
    }
    for name, (wanted, got) in pairs.items():
        if wanted != got:
            raise BundleError(f"a bundle of another {name}: wanted {wanted!r}, got {got!r}")
    if cell.model is not None:
        _require_model(cell.model, metadata["models"])


def _require_model(name: str, models: Sequence[Mapping[str, Any]]) -> None:
    """A registered model by its digest; of a file of the nodes only its name is known here."""
    known = registry().get(name.lower())
    wanted = known.sha256 if known else Path(name).name
    got = [model["sha256" if known else "file"] for model in models]
    if got != [wanted]:
        raise BundleError(f"a bundle of another model: wanted {wanted}, got {got}")
