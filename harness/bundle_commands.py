"""`haikugate verify` and `haikugate report`."""

import re
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.bundle_reader import BundleReader
from harness.console import standard_output
from harness.errors import BundleError, UsageError
from harness.manifest import INCOMPLETE, MANIFEST
from harness.verification import Status, Verification, VerifyOptions
from harness.verify import verify_bundle
from harness.visible import one_line

TRACES = (MANIFEST, INCOMPLETE, "metadata.json", "attempts.ndjson")
"""Where none of these lies, no run wrote: the folder is no bundle, not one that never finished."""
STYLES = {Status.HOLDS: "green", Status.FAILS: "bold red", Status.NOT_CHECKED: "yellow"}

Bundle = Annotated[
    Path, typer.Argument(help="The bundle's folder, or its .tar.xz.", show_default=False)
]


def verification_table(verification: Verification) -> Table:
    """The steps as a table."""
    table = Table(box=None, pad_edge=False)
    for heading in ("step", "", "status", "what"):
        table.add_column(heading, overflow="fold")
    for step in verification.steps:
        status = Text(step.status.value, style=STYLES[step.status])
        table.add_row(str(step.number), step.name, status, Text(one_line(step.message)))
    return table


def print_verification(verification: Verification, console: Console) -> None:
    """Identity first, then the steps, then what the bundle says and whether it holds."""
    console.print(Text(one_line(verification.identity), style="bold"))
    console.print(verification_table(verification))
    console.print(Text(one_line(verification.verdict)))
    word, style = _conclusion(verification)
    console.print(Text(f"The evidence {word}.", style=style))


def _conclusion(verification: Verification) -> tuple[str, str]:
    if verification.holds:
        return "HOLDS", "green"
    if verification.whole and not verification.recomputed:
        return (
            "IS WHOLE, but its verdicts were NOT RECOMPUTED: verify it with the haikugate that"
            " made it",
            "bold yellow",
        )
    if verification.whole:
        return f"IS WHOLE, but NOT CHECKED: {', '.join(verification.unchecked)}", "bold yellow"
    return "DOES NOT HOLD", "bold red"


def verify(
    bundle: Bundle,
    public_key: Annotated[
        Path | None, typer.Option(help="PEM of a signer you trust.", show_default=False)
    ] = None,
    nonce: Annotated[str | None, typer.Option(help="The nonce you gave to the run.")] = None,
    allow_expired: Annotated[bool, typer.Option(help="Accept a bundle over a year old.")] = False,
    replay: Annotated[bool, typer.Option(help="Ask the reference engine again.")] = False,
    replay_device: Annotated[
        str | None, typer.Option(help="Where: cpu (default), or cuda:N.", show_default=False)
    ] = None,
    other_harness: Annotated[
        bool, typer.Option(help="Accept one made by other files of this version.")
    ] = False,
    allow_outside: Annotated[
        bool, typer.Option(help="Accept waivers, and gates of other bundles.")
    ] = False,
) -> None:
    """Verify a bundle offline: signatures, every byte, every verdict recomputed."""
    from harness.keys import read_public_key

    options = VerifyOptions(
        public_key=read_public_key(public_key) if public_key else None,
        nonce=nonce,
        allow_expired=allow_expired,
        other_harness=other_harness,
        allow_outside=allow_outside,
        replay=_replayer(replay, replay_device),
    )
    with _opened(bundle) as folder:
        verification = verify_bundle(folder, options)
    print_verification(verification, standard_output())
    raise typer.Exit(0 if verification.holds else 1)


@contextmanager
def _opened(path: Path) -> Iterator[Path]:
    """The bundle's folder, unpacked if need be; raises BundleError for what is no bundle at all."""
    from harness.archive import SUFFIX, unpacked

    if path.is_file() and not path.name.endswith(SUFFIX):
        raise BundleError(f"{path}: not a bundle: wanted its folder or its {SUFFIX}, got a file")
    with unpacked(path) as folder:
        if folder.is_dir() and not any((folder / name).exists() for name in TRACES):
            packed = next(iter(sorted(folder.glob(f"*{SUFFIX}"))), None)
            raise BundleError(
                f"{path}: not a bundle: no {MANIFEST} in this folder"
                + (f"; did you mean {packed}?" if packed else "")
            )
        yield folder


def _replayer(wanted: bool, device: str | None) -> Callable[[BundleReader], str] | None:
    """What replays a bundle on the device; UsageError for a device that is none, or not asked."""
    if device is not None and not wanted:
        raise UsageError("--replay-device needs --replay")
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device, re.ASCII):
        raise UsageError(f"--replay-device: wanted cpu or cuda:N, got {device!r}")

    def replayed(bundle: BundleReader) -> str:
        from harness.replay import replay

        return replay(bundle, device or "cpu")

    return replayed if wanted else None


def report(
    bundle: Bundle,
    output: Annotated[
        Path | None,
        typer.Option(help="Render here, not only compare with the bundle.", show_default=False),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Render a bundle's Markdown, HTML and JUnit XML, and say where they lie."""
    from harness.junit import render_junit
    from harness.report import render_reports

    if output is None and not bundle.is_dir() and bundle.is_file():
        raise UsageError(f"report {bundle}: an archive needs --output FOLDER")
    folder = output or bundle
    with _opened(bundle) as opened:
        reader = BundleReader(opened)
        rendered = render_reports(reader) | {"junit.xml": render_junit(reader)}
        del rendered["README.md"]
        changed = [] if output else _differing(reader, rendered)
    if output:
        _write(output, rendered)
    console = standard_output()
    for name in rendered:
        note = " (sealed with another rendering; --output shows today's)" if name in changed else ""
        console.print(Text(f"{folder / name}{note}"))
    if open_:
        webbrowser.open((folder / "report.html").absolute().as_uri())


def _differing(reader: BundleReader, rendered: Mapping[str, bytes]) -> list[str]:
    return [name for name, content in rendered.items() if reader.read(name) != content]


def _write(folder: Path, rendered: Mapping[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in rendered.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise BundleError(f"cannot write {folder}: {error.strerror}") from error
