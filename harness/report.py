"""Bundle → report.md, report.html, README.md."""

from harness.bundle_reader import BundleReader


def render_reports(bundle: BundleReader) -> dict[str, bytes]:
    """The rendered files by name; the same bundle gives the same bytes."""
    return {}
