"""The tool that times HTTP beside `bench` tells numbers of a real engine; a CPU's will do."""

import json
from pathlib import Path

import pytest

from engine.synthetic import write_model
from tests.integration.gpu import time_http


def test_a_line_of_numbers_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.gguf"
    write_model(model, "tiny-llama", 0)
    time_http.main([str(model), "--device", "cpu", "--requests", "2"])
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told.pop("model") == "m.gguf"
    first_ms, worst_ms = told.pop("ttft_ms")
    assert 0 < first_ms <= worst_ms
    added = 100 * (told["bench_tokens_per_s"] / told["http_tokens_per_s"] - 1)
    assert told.pop("http_adds_percent") == pytest.approx(added, rel=1e-2)
    assert all(rate > 0 for rate in told.values())
