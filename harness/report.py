"""Bundle → report.md, report.html, README.md: from the bundle alone, always the same bytes."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, select_autoescape

from harness.bundle_reader import BundleReader
from harness.errors import BundleError
from harness.manifest import MANIFEST, TEST_RESULT
from harness.observation import Json
from harness.report_cards import cards
from harness.report_view import report_view
from harness.statement import TEST_RESULT_TYPE
from harness.visible import visible

TEMPLATES = Path(__file__).with_name("templates")
FILES = {
    "report.html": "report.html.j2",
    "report.md": "report.md.j2",
    "README.md": "bundle_readme.md.j2",
}

OPENSSL_COMMANDS = rf"""
sed -n 's/.*"payload": "\(.*\)".*/\1/p' {TEST_RESULT} | openssl base64 -d -A > payload
sed -n 's/.*"sig": "\(.*\)".*/\1/p' {TEST_RESULT} | openssl base64 -d -A > signature
printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(wc -c < payload)" > signed
cat payload >> signed
openssl dgst -sha256 -verify public-key.pem -signature signature signed
grep -o "$(sha256sum < {MANIFEST} | cut -c 1-64)" payload
""".strip()

COSIGN_COMMAND = (
    f"cosign verify-blob-attestation --key public-key.pem --bundle {TEST_RESULT} \\\n"
    f"  --type {TEST_RESULT_TYPE} --new-bundle-format --insecure-ignore-tlog {MANIFEST}"
)

_MARKDOWN = {ord(mark): f"\\{mark}" for mark in "\\`*_[]|#~!"} | {
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord("&"): "&amp;",
    ord("\n"): " ",
    ord("\r"): " ",
}
_STARTS = re.compile(r"^(\s*)([-+=:]|\d+(?=[.)]))")
"""What makes a heading, a rule, a table or a list of the line that it begins."""


def markdown(value: Json) -> str:
    """Text with every mark of Markdown and HTML escaped, on one line."""
    text = visible(value).translate(_MARKDOWN)
    return _STARTS.sub(lambda found: f"{found[1]}&#{ord(found[2][0])};{found[2][1:]}", text)


def number(value: Json) -> str:
    """A number with at most four significant digits behind the point; other values as text."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return visible(value)


@cache
def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _environment(bundle: BundleReader) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

    def data_uri(path: str) -> str:
        return base64.b64encode(bundle.read(path)).decode()

    environment.filters.update(visible=visible, md=markdown, number=number, data_uri=data_uri)
    return environment


def _values(bundle: BundleReader) -> dict[str, Any]:
    from markupsafe import Markup

    script = _asset("report.js")
    digest = hashlib.sha256(f"\n{script}".encode()).digest()
    return report_view(bundle) | {
        "cards": cards(bundle.metadata, bundle.environment),
        "style": Markup(_asset("report.css")),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704 - our own file
        "script_sha256": base64.b64encode(digest).decode(),
        "openssl_commands": OPENSSL_COMMANDS,
        "cosign_command": COSIGN_COMMAND,
    }


_UNREPORTABLE = (
    *(TemplateError, LookupError, TypeError, AttributeError, ValueError),
    *(ArithmeticError, RecursionError),
)
"""What values of another kind than a report shows make Jinja, or us, raise."""


def render_reports(bundle: BundleReader) -> dict[str, bytes]:
    """The rendered files by name; raises BundleError where the bundle lacks what they show."""
    environment = _environment(bundle)
    try:
        values = _values(bundle)
        return {
            name: environment.get_template(template).render(values).encode("utf-8", "replace")
            for name, template in FILES.items()
        }
    except _UNREPORTABLE as error:
        raise BundleError(f"{bundle.path.name}: cannot be reported: {error!r}") from error
