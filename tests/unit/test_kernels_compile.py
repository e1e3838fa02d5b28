import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import compile as kernel_compile
from kernels.compile import ARCHITECTURES, Unit, cached_cubin, compile_unit, expand
from kernels.errors import KernelCompileError
from kernels.variants import compile_all, representative_units

NORM = Unit("norm.cu")


def test_every_source_has_a_unit() -> None:
    on_disk = {path.name for path in kernel_compile.SOURCE_DIR.glob("*.cu")}
    assert {unit.source for unit in representative_units()} == on_disk


def test_headers_are_expanded_once_and_none_is_left() -> None:
    text = expand("gemv.cu")
    assert text.count("struct TileStream") == text.count("INLINE float half_to_float") == 1
    assert '#include "' not in text


def test_every_source_states_what_it_computes() -> None:
    for path in kernel_compile.SOURCE_DIR.glob("*.cu*"):
        assert path.read_text("utf-8").startswith("// "), path.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_source_compiles_for_every_architecture_without_a_gpu(architecture: str) -> None:
    assert compile_unit(NORM, architecture).startswith(b"\x7fELF")


def test_compile_all_reports_each_source(monkeypatch: pytest.MonkeyPatch) -> None:
    units = [NORM, Unit("elementwise.cu"), Unit("norm.cu", ("this is no CUDA",))]
    monkeypatch.setattr("kernels.variants.representative_units", lambda: units)
    results = compile_all(["sm_80"])
    assert [r["ok"] for r in results] == [True, True, False]
    assert results[0]["cubin_bytes"] > 0
    assert "norm.cu for sm_80" in results[2]["error"]


def test_a_compile_error_is_one_line() -> None:
    with pytest.raises(KernelCompileError) as raised:
        compile_unit(Unit("norm.cu", ("int broken(",)), "sm_90")
    assert "norm.cu for sm_90" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_cache_keeps_and_checks_what_it_holds(tmp_path: Path) -> None:
    cubin = cached_cubin(NORM, "sm_80", tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() == hashlib.sha256(cubin).digest() + cubin
    changed = path.stat().st_mtime_ns
    assert cached_cubin(NORM, "sm_80", tmp_path) == cubin
    assert path.stat().st_mtime_ns == changed


@pytest.mark.parametrize("damage", [b"", b"short", bytes(5000)])
def test_a_damaged_cache_file_is_compiled_again(tmp_path: Path, damage: bytes) -> None:
    cubin = cached_cubin(NORM, "sm_80", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert cached_cubin(NORM, "sm_80", tmp_path) == cubin
    assert path.read_bytes()[32:] == cubin


def test_source_and_architecture_are_part_of_the_key(tmp_path: Path) -> None:
    cached_cubin(NORM, "sm_80", tmp_path)
    cached_cubin(NORM, "sm_90", tmp_path)
    cached_cubin(Unit("norm.cu", ("// another",)), "sm_80", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_unwritable_cache_costs_only_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    assert cached_cubin(NORM, "sm_80", blocked / "cache").startswith(b"\x7fELF")


def test_two_processes_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kernels.compile import *;"
        "cached_cubin(Unit('norm.cu'), 'sm_86', Path(sys.argv[1]))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    assert hashlib.sha256(content[32:]).digest() == content[:32]


def test_the_cache_follows_the_users_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", "/somewhere")
    assert kernel_compile.cache_dir() == Path("/somewhere/haikugate/kernels")
