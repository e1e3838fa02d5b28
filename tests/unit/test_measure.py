"""run_experiment with a backend whose clock is known, and sweeps over it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import measure, run_command, sweep
from harness.errors import UsageError
from harness.experiment import ExperimentConfig, ExperimentResult

STEP_S = 0.004
FIGURES = ("tokens/s", "TTFT", "p50", "ms", "J/token")


@dataclass(frozen=True)
class _Generation:
    prompt_tokens: int
    completion_tokens: int
    sent_ns: int
    token_ns: tuple[int, ...]


class _Clock:
    """A clock that only sleeping, and a microsecond for looking at it, moves on."""

    def __init__(self) -> None:
        self._now_ns = 10**15

    def monotonic_ns(self) -> int:
        self._now_ns += 1000
        return self._now_ns

    def monotonic(self) -> float:
        return self.monotonic_ns() / 1e9

    def sleep(self, seconds: float) -> None:
        self._now_ns += round(seconds * 1e9)


class _Paced:
    """Makes a token each 4 ms; counts what it is asked."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    asked: list[str]
    closed = False
    takes_files = False

    def load(self, model: str, options: Mapping[str, str]) -> None:
        self.asked = []

    def generate(
        self, prompt: str, *, max_tokens: int, temperature: float, seed: int
    ) -> _Generation:
        self.asked.append(prompt)
        sent_ns, stamps = self._clock.monotonic_ns(), []
        for _ in range(max_tokens):
            self._clock.sleep(STEP_S)
            stamps.append(self._clock.monotonic_ns())
        return _Generation(7, max_tokens, sent_ns, tuple(stamps))

    def flops(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, int]:
        return 10 * prompt_tokens, 100 * completion_tokens

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> _Paced:
    clock = _Clock()
    paced = _Paced(clock)
    monkeypatch.setattr(measure, "time", clock)
    monkeypatch.setattr(measure, "open_backend", lambda name: paced)
    return paced


def _run(tmp_path: Path, **fields: Any) -> ExperimentResult:
    given = {"n_requests": 3, "max_tokens": 5, "baseline_s": 0, "output_dir": tmp_path}
    return measure.run_experiment(**{**given, **fields})


def test_an_experiment_measures_what_the_backend_did(tmp_path: Path, backend: _Paced) -> None:
    result = _run(tmp_path)
    assert (result.output_tokens, result.input_tokens, result.total_tokens) == (15, 21, 36)
    assert result.ttft_ms is not None
    assert result.itl_ms is not None
    assert result.ttft_ms.p50 >= STEP_S * 1e3
    assert result.itl_ms.p50 >= STEP_S * 1e3
    assert result.avg_tokens_per_second <= 1 / STEP_S
    assert (result.flops_prefill, result.flops_decode) == (210, 1500)
    assert backend.closed


def test_the_result_is_written_and_read_back_whole(tmp_path: Path, backend: _Paced) -> None:
    result = _run(tmp_path)
    directory = tmp_path / result.experiment_id
    assert measure.read_result(directory / "result.json") == result
    assert (directory / "timeseries.parquet").stat().st_size > 0


def test_warm_up_requests_are_not_measured_and_prompts_differ(
    tmp_path: Path, backend: _Paced
) -> None:
    result = _run(tmp_path, warm_up={"requests": 4})
    assert result.warm_up.requests == 4
    assert len(result.requests) == 3
    assert len(backend.asked) == len(set(backend.asked)) == 7


def test_warm_up_ends_when_latency_settles(tmp_path: Path, backend: _Paced) -> None:
    settled = {"until_variation_below": 0.9, "at_most": 10}
    assert _run(tmp_path, warm_up=settled).warm_up.requests == 3


def test_unknown_energy_is_null_with_its_reason(tmp_path: Path, backend: _Paced) -> None:
    result = _run(tmp_path)
    if result.energy_source == "none":
        assert result.total_energy_j is None
        assert result.avg_energy_per_token_j is None
        assert result.energy_accuracy
    else:
        assert result.total_energy_j is not None


def test_a_short_run_warns(tmp_path: Path, backend: _Paced) -> None:
    assert any("shorter than 10 s" in warning for warning in _run(tmp_path).measurement_warnings)


@pytest.mark.parametrize("methodology", ["total", "steady_state", "windowed"])
def test_each_methodology_gives_a_rate_below_the_pace(
    tmp_path: Path, backend: _Paced, methodology: str
) -> None:
    result = _run(tmp_path, methodology=methodology, max_tokens=60, n_requests=5)
    assert 0 < result.avg_tokens_per_second <= 1.01 / STEP_S
    assert (result.steady_state_window is not None) == (methodology != "total")


def test_the_backend_is_closed_when_a_request_fails(tmp_path: Path, backend: _Paced) -> None:
    def broken(*args: Any, **kwargs: Any) -> _Generation:
        raise RuntimeError("out of paper")

    backend.generate = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        _run(tmp_path)
    assert backend.closed


def test_an_unknown_backend_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="native"):
        _run(tmp_path, backend="abacus")


def test_a_yaml_config_is_overridden_by_keywords(tmp_path: Path, backend: _Paced) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("max_tokens: 9\nn_requests: 2\nbaseline_s: 0\n")
    result = measure.run_experiment(path, n_requests=1, output_dir=tmp_path)
    assert (len(result.requests), result.output_tokens) == (1, 9)


@pytest.mark.parametrize("text", ["- a\n", "{", "max_tokens: many\n"])
def test_a_wrong_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        measure.run_experiment(path)
    assert "\n" not in str(caught.value)


def _result(config: ExperimentConfig, backend: _Paced) -> ExperimentResult:
    return measure.run_experiment(config)


def test_a_sweep_is_the_cartesian_product_times_cycles(tmp_path: Path) -> None:
    grid = {"max_tokens": [2, 3], "temperature": [0.0, 1.0]}
    planned = sweep.plan({"output_dir": tmp_path, "sweep": {"grid": grid, "cycles": 2}})
    assert len(planned.experiments) == 8
    assert len({e.measurement_config_hash for e in planned.experiments}) == 4


def test_an_invalid_combination_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_tokens"):
        sweep.plan({"sweep": {"grid": {"max_tokens": [2, 0]}}})


@pytest.mark.parametrize(
    "wrong", [{"grid": [1]}, {"grid": {"seed": 3}}, {"cycles": 0}, {"colour": 1}]
)
def test_a_wrong_sweep_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="sweep"):
        sweep.plan({"sweep": wrong})


def test_a_folder_that_cannot_be_written_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"output_dir .*: cannot be written: Not a directory"):
        sweep.run_sweep(sweep.plan({"output_dir": tmp_path / "file" / "results"}))


def test_an_option_with_a_dot_reaches_into_its_field() -> None:
    fields: dict[str, Any] = {"options": {"a": "1"}}
    for text in ("options.url=http://x?a=b", "n_requests=3"):
        run_command._set(fields, text)
    assert fields == {"options": {"a": "1", "url": "http://x?a=b"}, "n_requests": "3"}
    for wrong in ("options", "=1", "options.=1", ".url=1", "n_requests.url=1"):
        with pytest.raises(UsageError, match="wanted field=value"):
            run_command._set(fields, wrong)


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path: Path, backend: _Paced) -> None:
    fields = {"n_requests": 1, "baseline_s": 0, "output_dir": str(tmp_path)}
    planned = sweep.plan({**fields, "sweep": {"grid": {"max_tokens": [1, 2, 3]}}})
    ran: list[int] = []

    def until_killed(config: ExperimentConfig) -> ExperimentResult:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(config.max_tokens)
        return measure.run_experiment(config)

    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep(planned, run=until_killed)
    journal = tmp_path / sweep.JOURNAL
    journal.write_text(journal.read_text() + '{"key": "2:')
    results = sweep.run_sweep(planned)
    assert [result.config.max_tokens for result in results] == [1, 2, 3]


def test_a_sweep_is_shown_by_what_it_varied_and_plotted(
    tmp_path: Path, backend: _Paced, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("{n_requests: 1, baseline_s: 0, sweep: {grid: {max_tokens: [1, 2, 3]}}}")
    run_command.run(plan, output_dir=tmp_path / "out")
    heading, *rows, plotted = capsys.readouterr().out.splitlines()
    assert heading.split() == [
        "experiment",
        "max_tokens",
        *["tokens/s", "TTFT", "p50", "ms", "J/token"],
    ]
    assert [row.split()[1] for row in rows] == ["1", "2", "3"]
    assert plotted == str(tmp_path / "out" / "sweep.svg")
    assert "<svg" in Path(plotted).read_text()


def test_one_experiment_is_shown_without_a_plot(
    tmp_path: Path, backend: _Paced, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command.run(n=1, output_dir=tmp_path, option=["baseline_s=0"])
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["experiment", *FIGURES]
    assert row.startswith(str(tmp_path))
    assert not (tmp_path / "sweep.svg").exists()
