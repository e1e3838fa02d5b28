"""The GGUF reader: agrees with the `gguf` package, refuses everything malformed in one line."""

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from engine.errors import ModelLoadError
from engine.gguf import GGUFFile
from engine.metadata import StringArray
from tests.unit.gguf_files import entry, pair, raw_file, tokenizer_file


def refusal(path: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        GGUFFile.open(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_default_model_reads_as_the_oracle_reads_it() -> None:
    path = tokenizer_file("smollm2")
    reader = gguf.GGUFReader(path)
    with GGUFFile.open(path) as file:
        for key, field in reader.fields.items():
            if not key.startswith("GGUF."):
                ours, theirs = file.metadata[key], field.contents()
                assert (list(ours) if isinstance(theirs, list) else ours) == theirs
        for tensor in reader.tensors:
            ours = file.tensors[tensor.name]
            assert ours.shape == tuple(int(n) for n in reversed(tensor.shape))
            assert ours.type == tensor.tensor_type.name
            np.testing.assert_array_equal(ours.raw.ravel(), tensor.data.view(np.uint8).ravel())
        assert len(file.tensors) == len(reader.tensors) == 272
        assert file.quant_kind == "Q4_1"


def test_written_types_come_back(tmp_path: Path) -> None:
    path = tmp_path / "types.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("s", "naïve")
    writer.add_bool("b", True)
    writer.add_int8("i8", -3)
    writer.add_uint64("u64", (1 << 64) - 1)
    writer.add_float64("f64", 0.1)
    writer.add_array("strings", ["a", "", "世界"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_tensor("m", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("e", np.arange(24, dtype=np.float16).reshape(2, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile.open(path) as file:
        m = file.metadata
        assert (m["s"], m["b"], m["i8"], m["u64"], m["f64"]) == ("naïve", True, -3, 2**64 - 1, 0.1)
        assert isinstance(m["strings"], StringArray)
        assert list(m["strings"]) == ["a", "", "世界"]
        assert (m["strings"][-1], m["strings"][0:2]) == ("世界", ["a", ""])
        assert m["numbers"].tolist() == [1, -2, 3]
        assert file.tensors["m"].dequantize().tolist() == [[0, 1, 2], [3, 4, 5]]
        assert file.tensors["e"].shape == (2, 3, 4)
        assert file.tensors["e"].raw.shape == (6, 8)
        assert not file.tensors["e"].raw.flags.writeable


LONG = 1 << 16
STRINGS = {
    "short": [f"tok{i}" for i in range(30_000)],
    "empty ones between": [f"{i}" * (i % 3) for i in range(5_000)],
    "all empty": [""] * 3_000,
    "lengths over a byte": ["x" * n for n in (1, 254, 255, 256, 257, 511, 512, LONG - 1, LONG + 9)],
    "wider characters": ["Ġ世界" * (1 + i % 90) for i in range(4_000)],
    "zero bytes": [f"a{chr(0) * (i % 9)}b" for i in range(4_000)],
    "like lengths": [chr(1 + i % 9) + chr(0) * 7 for i in range(4_000)],
    "halves": [f"Ġ{i} {i}世" for i in range(20_000)],
    "halves but for some": [("a b", " b", "a ", "ab", "a b c")[max(0, i - 17_000) % 5]
                            for i in range(17_100)],
}  # fmt: skip


@pytest.mark.parametrize("name", STRINGS)
def test_string_arrays_come_back(name: str, tmp_path: Path) -> None:
    wanted = STRINGS[name]
    writer = gguf.GGUFWriter(tmp_path / "m", "llama")
    writer.add_array("strings", wanted)
    writer.add_array("after", [7, 8])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with GGUFFile.open(tmp_path / "m") as file:
        strings = file.metadata["strings"]
        assert list(strings) == wanted == strings[:]
        assert [strings[0], strings[-1]] == [wanted[0], wanted[-1]]
        assert strings[3:9] == wanted[3:9]
        assert strings[9:3] == []
        assert strings[::-7] == wanted[::-7]
        assert list(strings.halves()) == [tuple(text.split(" ", 1)) for text in wanted]
        assert file.metadata["after"].tolist() == [7, 8]


def string_array(lengths: list[int], texts: list[bytes]) -> bytes:
    items = (struct.pack("<Q", n) + t for n, t in zip(lengths, texts, strict=True))
    return pair("a", 9, struct.pack("<IQ", 8, len(texts)) + b"".join(items))


@pytest.mark.parametrize("at", [0, 1, 2_000, 9_999])
@pytest.mark.parametrize("length", [(1 << 64) - 1, 1 << 63, 1 << 40, 200_000])
def test_one_wrong_length_among_many_strings_is_refused(
    at: int, length: int, tmp_path: Path
) -> None:
    texts, lengths = [b"word"] * 10_000, [4] * 10_000
    lengths[at] = length
    path = raw_file(tmp_path / "m", [string_array(lengths, texts)], [], data=0)
    assert "past the end of the file" in refusal(path)


def test_a_string_array_without_its_end_is_refused(tmp_path: Path) -> None:
    whole = raw_file(tmp_path / "m", [string_array([4] * 5_000, [b"word"] * 5_000)], [], data=0)
    content = whole.read_bytes()
    for size in (*range(60, 100), *range(100, len(content) - 40, 997)):
        (tmp_path / "cut").write_bytes(content[:size])
        refusal(tmp_path / "cut")


@pytest.mark.parametrize("bad", [b"\xff", "é".encode()[:1], "é".encode()[1:], b"\xff \xff"])
def test_a_string_that_is_not_utf_8_is_named(bad: bytes, tmp_path: Path) -> None:
    texts = [b"a word"] * 20_000
    texts[17_000] = bad
    raw_file(tmp_path / "m", [string_array([len(t) for t in texts], texts)], [], data=0)
    with GGUFFile.open(tmp_path / "m") as file:
        strings = file.metadata["a"]
        halves = lambda array: list(array.halves())  # noqa: E731
        for read in (list, halves, lambda array: array[16_990:17_010]):
            with pytest.raises(ModelLoadError, match="'a': string 17000 is not UTF-8"):
                read(strings)
        assert strings[:16_990] == ["a word"] * 16_990


def test_views_outlive_close(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "m", [], [entry(b"t", (4,))])
    file = GGUFFile.open(path)
    raw = file.tensors["t"].raw
    file.close()
    file.close()
    assert raw.sum() == 0
    assert not file.tensors


STRING_ARRAY = struct.pack("<I", 8)
MALFORMED = {
    "version": ({"version": 2}, [], [], "version 3 wanted, got 2"),
    "big-endian": ({"version": 3 << 24}, [], [], "big-endian"),
    "tensor count": ({"n_tensors": 1 << 60}, [], [], "tensor count"),
    "key count": ({"n_keys": 1 << 60}, [], [], "metadata count"),
    "missing keys": ({"n_keys": 200}, [], [], "metadata"),
    "duplicate key": ({}, [pair("a", 7, b"\1")] * 2, [], "'a': given twice"),
    "value type": ({}, [pair("a", 13, bytes(8))], [], "value type 13"),
    "boolean": ({}, [pair("a", 7, b"\2")], [], "truth value"),
    "string length": ({}, [pair("a", 8, struct.pack("<Q", 1 << 62))], [], "'a'"),
    "not UTF-8": ({}, [pair("a", 8, struct.pack("<Q", 1) + b"\xff")], [], "not UTF-8"),
    "array length": ({}, [pair("a", 9, struct.pack("<IQ", 4, 1 << 62))], [], "'a'"),
    "string array length": ({}, [pair("a", 9, struct.pack("<IQ", 8, 1 << 40))], [], "'a'"),
    "string in array": (
        {}, [pair("a", 9, struct.pack("<IQQ", 8, 1, (1 << 64) - 1))], [], "past the end"),
    "array of arrays": ({}, [pair("a", 9, struct.pack("<IQ", 9, 1))], [], "array of arrays"),
    "alignment 0": ({}, [pair("general.alignment", 4, bytes(4))], [], "general.alignment"),
    "alignment 12": (
        {}, [pair("general.alignment", 4, struct.pack("<I", 12))], [], "general.alignment"),
    "alignment text": (
        {}, [pair("general.alignment", 8, bytes(8))], [], "general.alignment"),
    "duplicate tensor": ({}, [], [entry(b"t", (4,)), entry(b"t", (4,), 0, 32)], "'t': given twice"),
    "overlap": ({}, [], [entry(b"t", (64,)), entry(b"u", (4,), 0, 32)], "'u': overlaps tensor 't'"),
    "offset": ({}, [], [entry(b"t", (4,), 0, 4)], "offset 4 is no multiple of 32"),
    "outside": ({}, [], [entry(b"t", (4,), 0, 1 << 40)], "'t': ends at byte"),
    "huge offset": ({}, [], [entry(b"t", (4,), 0, (1 << 64) - 32)], "'t': ends at byte"),
    "huge shape": ({}, [], [entry(b"t", (1 << 32, 1 << 32))], "'t': shape"),
    "product overflow": ({}, [], [entry(b"t", (1 << 14,) * 4)], "'t'"),
    "zero dimension": ({}, [], [entry(b"t", (0, 4))], "'t': shape"),
    "no dimensions": ({}, [], [entry(b"t", ())], "1 to 4 dimensions wanted, got 0"),
    "five dimensions": ({}, [], [entry(b"t", (1,) * 5)], "1 to 4 dimensions wanted, got 5"),
    "long name": ({}, [], [entry(b"t" * 65, (4,))], "at most 64"),
    "unsupported type": ({}, [], [entry(b"t", (256,), 10)], "'t': type Q2_K (id 10)"),
    "unknown type": ({}, [], [entry(b"t", (256,), 99)], "unknown (id 99) is not supported"),
    "row": ({}, [], [entry(b"t", (896, 2), 12)], "'t': rows of 896 do not divide by the Q4_K"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused_naming_the_place(name: str, tmp_path: Path) -> None:
    counts, pairs, entries, wanted = MALFORMED[name]
    assert wanted in refusal(raw_file(tmp_path / "m.gguf", pairs, entries, **counts))


def test_non_finite_vectors_are_refused(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "m.gguf", [], [entry(b"output_norm.weight", (8,))], data=32)
    content = bytearray(path.read_bytes())
    content[-4:] = struct.pack("<f", float("nan"))
    path.write_bytes(content)
    assert "'output_norm.weight': number 7 is nan" in refusal(path)


def test_every_truncation_of_a_small_file_is_refused(tmp_path: Path) -> None:
    strings = pair("a", 9, struct.pack("<IQQ", 8, 1, 2) + b"hi")
    whole = raw_file(tmp_path / "m", [strings], [entry(b"t", (8,))], data=32).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        refusal(tmp_path / "cut")


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is certainly not a model file")
    os.mkfifo(tmp_path / "fifo")
    assert "not a GGUF file" in refusal(tmp_path / "text")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "fifo"):
        assert "cannot open the model file" in refusal(path)
