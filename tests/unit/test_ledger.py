"""The ledger's chain shows every dropped, edited or reordered record."""

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BundleError
from harness.ledger import LedgerWriter, check_chains, genesis, merge_ledgers, parse_ledger


def written(path: Path, records: int = 5, worker: str = "main") -> bytes:
    ledger = LedgerWriter(path, "run-1", worker)
    for number in range(records):
        ledger.append({"event": "finished", "number": number})
    ledger.close()
    return path.read_bytes()


def test_a_worker_whose_name_is_a_line_is_refused(tmp_path: Path) -> None:
    line = json.loads(written(tmp_path / "l").splitlines()[0])
    for name in ("main\nother", "<b>", "", "x" * 99):
        content = json.dumps({**line, "worker": name}).encode() + b"\n"
        with pytest.raises(BundleError, match="a ledger line has"):
            parse_ledger(content, "l")


def test_each_record_holds_the_digest_of_the_line_before(tmp_path: Path) -> None:
    lines = written(tmp_path / "l").splitlines()
    previous = [json.loads(line)["previous"] for line in lines]
    assert previous[0] == genesis("run-1", "main")
    assert previous[1:] == [hashlib.sha256(line).hexdigest() for line in lines[:-1]]


def test_whole_chains_give_their_roots(tmp_path: Path) -> None:
    chains = [parse_ledger(written(tmp_path / w, 3, w), w) for w in ("gw0", "gw1")]
    merged = parse_ledger(merge_ledgers(chains), "attempts.ndjson")
    roots = check_chains(merged, "run-1", "attempts.ndjson")
    assert {worker: root.records for worker, root in roots.items()} == {"gw0": 3, "gw1": 3}
    assert roots["gw0"].digest == chains[0][-1].digest


@pytest.mark.parametrize(
    "attack",
    [
        lambda lines: lines[1:],
        lambda lines: lines[:2] + lines[3:],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [lines[0].replace(b'"number":0', b'"number":9'), *lines[1:]],
    ],
    ids=["first dropped", "middle dropped", "swapped", "repeated", "edited"],
)
def test_a_broken_chain_is_refused(tmp_path: Path, attack) -> None:
    lines = written(tmp_path / "l").splitlines(keepends=True)
    entries = parse_ledger(b"".join(attack(lines)), "attempts.ndjson")
    with pytest.raises(BundleError, match=r"attempts\.ndjson:\d: the chain of main breaks"):
        check_chains(entries, "run-1", "attempts.ndjson")


def test_a_chain_of_another_run_is_refused(tmp_path: Path) -> None:
    entries = parse_ledger(written(tmp_path / "l"), "attempts.ndjson")
    with pytest.raises(BundleError, match="breaks"):
        check_chains(entries, "run-2", "attempts.ndjson")


def test_a_clock_set_back_does_not_reorder_a_chain(tmp_path: Path, monkeypatch) -> None:
    moments = iter([5, 4, 3, 2, 1])
    monkeypatch.setattr("time.time_ns", lambda: next(moments))
    chain = parse_ledger(written(tmp_path / "l"), "l")
    merged = parse_ledger(merge_ledgers([chain]), "l")
    assert [entry.seq for entry in merged] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "line",
    [
        b"{}\n",
        b"[]\n",
        b"not json\n",
        b'{"worker":1,"seq":0,"previous":"","at_ns":0,"record":{}}\n',
        b'{"worker":"w","seq":true,"previous":"","at_ns":0,"record":{}}\n',
        b'{"worker":"w","seq":0,"previous":"","at_ns":0,"record":[]}\n',
        b'{"worker":"w","seq":0,"previous":"","at_ns":0,"record":{}}',
    ],
)
def test_a_malformed_line_is_refused_by_place(line: bytes) -> None:
    with pytest.raises(BundleError, match=r"^attempts\.ndjson"):
        parse_ledger(line, "attempts.ndjson")


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_flipped_byte_shows(tmp_path_factory, place: int, flip: int) -> None:
    path = tmp_path_factory.mktemp("ledger") / "l"
    content = bytearray(written(path, 3))
    roots = check_chains(parse_ledger(bytes(content), "l"), "run-1", "l")
    content[place % len(content)] ^= flip
    with contextlib.suppress(BundleError):
        assert check_chains(parse_ledger(bytes(content), "l"), "run-1", "l") != roots
