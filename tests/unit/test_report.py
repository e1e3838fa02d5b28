"""Reports come from the bundle alone, repeat byte for byte, and obey no text they show."""

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import junitparser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bundle_reader import BundleReader
from harness.errors import BundleError
from harness.junit import render_junit
from harness.observation import Chunk
from harness.report import (
    COSIGN_COMMAND,
    OPENSSL_COMMANDS,
    markdown,
    number,
    render_reports,
)
from harness.report_view import caveats
from harness.visible import visible
from tests.unit.bundles import HOSTILE, JUDGES, SEEN, exchange, observation, sealed

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
TEXT = ("plots/latency.svg", "plots/memory.svg", "plots/cpu.svg")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    stream = exchange(
        sent_ns=0,
        chunks=tuple(
            Chunk(10**7 * (n + 1), f'event: token\ndata: {{"t": "word {n} "}}\n\n'.encode())
            for n in range(9)
        ),
        head_ns=1,
        closed_ns=10**9,
        request_body=b'{"prompt": "a haiku, please <img src=x onerror=alert(1)>"}',
    )
    haiku = observation("G4-HAIKU", "test_haiku", exchanges={"haiku": (stream,)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.gates.JUDGES", JUDGES)
        return sealed(tmp_path_factory.mktemp("reports"), observations=(*SEEN, haiku))


class Page(HTMLParser):
    """What a browser would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def html(bundle: Path) -> str:
    return (bundle / "report.html").read_text(encoding="utf-8")


def test_reports_repeat_byte_for_byte(bundle: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(bundle, tmp_path / "another folder" / bundle.name)
    for name, content in render_reports(BundleReader(Path(elsewhere))).items():
        assert (bundle / name).read_bytes() == content


def test_the_page_needs_nothing_from_outside(bundle: Path) -> None:
    page = Page(html(bundle))
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            value = attributes.get(name) or ""
            assert value.startswith(("data:image/svg+xml;base64,", "#")) or "://" not in value, tag
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "object", "embed", "base"})
    assert "url(" not in html(bundle)
    assert "@import" not in html(bundle)


def test_the_only_script_is_the_one_the_policy_names(bundle: Path) -> None:
    text = html(bundle)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text


def test_hostile_text_is_shown_and_not_obeyed(bundle: Path) -> None:
    text = html(bundle)
    assert "alert(1)" in text
    assert HOSTILE not in text
    assert "[<b>]" not in text
    page = Page(text)
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 1
    written = (bundle / "report.md").read_text()
    assert "<script" not in written
    assert "<b>" not in written


@given(st.text())
def test_nothing_invisible_survives(text: str) -> None:
    for character in visible(text):
        assert character in "\n\t" or ord(character) >= 0x20
        assert not 0xD800 <= ord(character) < 0xE000
        assert character not in "\u202e\u2066\u200f\x7f"
    assert not set("<>\n") & set(markdown(text))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(12.3456789, "12.35"), (123456.7, "123457"), (7, "7"), (1e-7, "1e-07"), ("a\x1b", "a\\u001b")],
)
def test_numbers_are_rounded_for_people(value, shown: str) -> None:
    assert number(value) == shown


def test_the_report_says_what_was_decided_and_what_was_not(bundle: Path) -> None:
    for text in (html(bundle), (bundle / "report.md").read_text()):
        for said in (
            "NOT CERTIFIED",
            "What this does not establish",
            "no M0 certificate",
            "INTEGRITY ONLY, identity unknown",
            "G1-HTTP-SSE",
            "G1-KERNEL-EMBED",
            "not applicable",
            "word 0 word 1",
            "Traceability",
            "self-reported",
        ):
            assert said in text, said


def test_every_check_is_a_row_that_opens_its_evidence(bundle: Path) -> None:
    rows = [a for tag, a in Page(html(bundle)).tags if tag == "details" and "data-verdict" in a]
    assert [row["id"] for row in rows] == ["G1-HTTP-SSE", "G1-HTTP-HEALTH", "G1-KERNEL-EMBED"]
    links = [a["href"] for tag, a in Page(html(bundle)).tags if tag == "a" and a.get("href")]
    evidence = [link for link in links if link and link.startswith("transcripts/")]
    assert len(evidence) == 2
    assert all((bundle / link).is_file() for link in evidence)
    targets = {a["id"] for _, a in Page(html(bundle)).tags if a.get("id")}
    assert {link[1:] for link in links if link and link.startswith("#")} <= targets


def test_plots_are_in_the_bundle_and_in_the_page(bundle: Path) -> None:
    for name in TEXT:
        content = (bundle / name).read_bytes()
        assert b"<dc:date>" not in content
        assert base64.b64encode(content).decode() in html(bundle)


def test_the_commands_it_shows_verify_the_signature(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "b"))
    command = ["sh", "-euc", OPENSSL_COMMANDS]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Verified OK" in run.stdout
    for line in OPENSSL_COMMANDS.splitlines():
        assert line in (copy / "README.md").read_text()
    assert COSIGN_COMMAND.splitlines()[0] in (copy / "README.md").read_text()
    (copy / "manifest.json").write_bytes(b"{}")
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert run.returncode != 0


def test_a_bundle_that_lacks_what_is_shown_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be reported"):
        sealed(
            tmp_path,
            checks={
                "gate": 1,
                "certified": True,
                "checks": [{"id": "x", "tests": [], "verdict": "pass", "requirements": []}],
            },
        )


def test_junit_is_read_by_others_and_names_checks(bundle: Path) -> None:
    content = render_junit(BundleReader(bundle))
    assert content == (bundle / "junit.xml").read_bytes()
    suites = list(junitparser.JUnitXml.fromstring(content))
    cases = {case.name: case for suite in suites for case in suite}
    assert "test_streams" in cases
    assert b'name="check" value="G1-HTTP-SSE"' in content
    assert b'name="requirement" value="R-1"' in content


def test_junit_fails_where_a_judge_does(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("harness.gates.JUDGES", JUDGES)
    silent = observation(exchanges={"execute": (exchange(chunks=()),)})
    path = sealed(tmp_path, observations=(silent, SEEN[1])) / "junit.xml"
    xml = junitparser.JUnitXml.fromfile(str(path))
    assert (xml.tests, xml.failures) == (2, 1)
    assert b"G1-HTTP-SSE: 0 bytes" in path.read_bytes()


MEASURE = """<script>onload = () => {{
  const page = document.querySelector("iframe").contentDocument.documentElement;
  const out = [...page.querySelectorAll("body *")].filter((e) => !e.closest(".scroll")
    && e.getBoundingClientRect().right > {width} + 1).map((e) => e.tagName + "." + e.className);
  document.title = JSON.stringify([page.scrollWidth, out.slice(0, 5)]);
}};</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("opened", [False, True])
def test_the_layout_fits_the_screen(bundle: Path, tmp_path: Path, width: int, opened) -> None:
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html(bundle))
    text = text.replace("<details", "<details open") if opened else text
    (tmp_path / "report.html").write_text(text)
    frame = f'<iframe src="report.html" style="border:0;width:{width}px;height:900px"></iframe>'
    (tmp_path / "frame.html").write_text(frame + MEASURE.format(width=width))
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--hide-scrollbars", "--allow-file-access-from-files"),
        f"--user-data-dir={tmp_path / 'profile'}",
        *("--dump-dom", (tmp_path / "frame.html").as_uri()),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f"<title>[{width},[]]</title>" in dom, re.findall("<title>.*?</title>", dom)


@pytest.mark.parametrize(
    ("launcher", "sealed_", "said"),
    [("docker", True, False), ("docker", False, True), ("process", False, True)],
)
def test_unsealed_is_said_of_every_engine_that_ran_so(
    launcher: str, sealed_: bool, said: bool
) -> None:
    metadata = {
        "judging": {"launcher": launcher},
        "engine": {"sealed": sealed_},
        "signer": {"kind": "key"},
    }
    bundle: Any = SimpleNamespace(metadata=metadata, checks={"profile": "cpu"})
    assert any("unsealed" in sentence for sentence in caveats(bundle, ())) is said


@pytest.mark.parametrize(("model", "said"), [({"generated": True}, True), ({}, False)])
def test_generated_weights_are_named(model: dict[str, bool], said: bool) -> None:
    metadata = {"signer": {"kind": "key"}, "models": [{"name": "noise", **model}]}
    bundle: Any = SimpleNamespace(metadata=metadata, checks={"profile": "gpu"})
    sentences = caveats(bundle, ())
    assert any("weights of noise were generated" in sentence for sentence in sentences) is said
