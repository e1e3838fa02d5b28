"""The commands of bundles, keys and models: output, exit codes, one-line errors."""

import stat
from functools import partial
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from harness import bundle_commands, key_commands, model_commands
from harness.archive import pack
from harness.bundle_reader import BundleReader
from harness.errors import BundleError, HaikugateError, ModelFileError, SignatureError
from harness.keys import KEY_VARIABLE, PASSPHRASE_VARIABLE, generate_key, public_path
from harness.models import DEFAULT_MODEL
from harness.verification import NotChecked, VerifyOptions
from tests.unit.bundles import CHECKLISTS, JUDGES, sealed

APP = typer.Typer()
APP.command()(bundle_commands.verify)
APP.command()(bundle_commands.report)
APP.add_typer(key_commands.app, name="keys")
APP.add_typer(model_commands.app, name="models")


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("harness.gates.JUDGES", JUDGES)
    options = partial(VerifyOptions, checklists=CHECKLISTS)
    monkeypatch.setattr(bundle_commands, "VerifyOptions", options)
    monkeypatch.setenv("HAIKUGATE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def ran(*words: object, **keywords) -> Result:
    return CliRunner().invoke(APP, [str(word) for word in words], **keywords)


def refused(*words: object, **keywords) -> HaikugateError:
    error = ran(*words, **keywords).exception
    assert isinstance(error, HaikugateError), error
    assert "\n" not in str(error)
    return error


def test_verify_prints_identity_steps_and_verdict(tmp_path: Path) -> None:
    result = ran("verify", sealed(tmp_path))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("INTEGRITY ONLY, identity unknown")
    assert sum("holds" in line for line in lines) >= 9
    assert lines[-1] == "The evidence HOLDS."


def test_verify_exits_1_naming_the_file(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    (bundle / "engine.ndjson").write_bytes(b"")
    result = ran("verify", bundle)
    assert result.exit_code == 1
    assert "engine.ndjson: wanted" in result.output
    assert result.output.splitlines()[-1] == "The evidence DOES NOT HOLD."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--replay-device", "cpu"), "--replay-device needs --replay"),
        (("--replay", "--replay-device", "tpu"), "--replay-device: wanted cpu or cuda:N, got"),
    ],
)
def test_a_replay_on_no_device_is_refused(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    error = refused("verify", sealed(tmp_path), *words)
    assert said in str(error)
    assert error.exit_code == 2


def test_a_replay_that_compares_not_all_leaves_the_bundle_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parted(_: BundleReader, device: str) -> str:
        raise NotChecked(f"made on cuda, replayed on {device}")

    monkeypatch.setattr("harness.replay.replay", parted)
    result = ran("verify", sealed(tmp_path), "--replay")
    assert result.exit_code == 1
    assert "made on cuda, replayed on cpu" in result.output
    assert result.output.splitlines()[-1] == "The evidence IS WHOLE, but NOT CHECKED: replay."


def test_verify_takes_a_trusted_key_and_a_nonce(tmp_path: Path) -> None:
    signer = generate_key(tmp_path / "key.pem")
    bundle = sealed(tmp_path / "proofs", signer)
    key = public_path(tmp_path / "key.pem")
    assert "signed by the trusted key" in ran("verify", bundle, "--public-key", key).output
    assert ran("verify", bundle, "--nonce", "other").exit_code == 1
    assert isinstance(refused("verify", bundle, "--public-key", bundle), SignatureError)
    assert isinstance(refused("verify", tmp_path / "none"), BundleError)


def test_report_says_where_the_files_lie(tmp_path: Path) -> None:
    bundle = sealed(tmp_path)
    result = ran("report", bundle)
    assert result.output.split() == [
        str(bundle / name) for name in ("report.html", "report.md", "junit.xml")
    ]
    elsewhere = tmp_path / "elsewhere"
    assert ran("report", bundle, "--output", elsewhere).exit_code == 0
    for name in ("report.html", "report.md", "junit.xml"):
        assert (elsewhere / name).read_bytes() == (bundle / name).read_bytes()


def test_what_is_no_bundle_is_not_called_incomplete(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json in this folder$"):
        raise refused("verify", tmp_path)
    packed = tmp_path / "bundle.tar.xz"
    pack(sealed(tmp_path / "proofs"), packed)
    assert f"did you mean {packed}?" in str(refused("verify", tmp_path))
    (tmp_path / "file").touch()
    assert "got a file" in str(refused("report", tmp_path / "file", "--output", tmp_path / "out"))


def test_an_archives_report_is_rendered_elsewhere(tmp_path: Path) -> None:
    packed = tmp_path / "bundle.tar.xz"
    pack(sealed(tmp_path), packed)
    assert "needs --output FOLDER" in str(refused("report", packed))
    result = ran("report", packed, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_keys_path_is_quoted_for_the_shell(tmp_path: Path) -> None:
    output = ran("keys", "generate", tmp_path / "my key.pem", "--no-passphrase").output
    assert f"export {KEY_VARIABLE}='{tmp_path}/my key.pem'" in output


def test_keys_are_made_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    made = ran("keys", "generate", path, input="horse\nhorse\n")
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in path.read_bytes()
    shown = ran("keys", "show", path, input="horse\n")
    assert ran("keys", "show", public_path(path)).output in shown.output
    assert "BEGIN PUBLIC KEY" in shown.output
    assert isinstance(refused("keys", "show", path, input="cow\n"), SignatureError)
    assert "exists already" in str(refused("keys", "generate", path, "--no-passphrase"))


def test_models_are_listed_and_found(tmp_path: Path) -> None:
    listed = ran("models", "list").output
    assert DEFAULT_MODEL in listed
    assert "gpt-oss-20b" in listed
    assert isinstance(refused("models", "path"), ModelFileError)
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GGUF")
    assert "wanted 98362432 bytes, got 4" in str(refused("models", "fetch", "--from", wrong))
