"""The campaign's plan, its file and its table; engines run only in a campaign."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from harness.checklist import load_checklists
from harness.observation import Finding, Observation, Verdict
from harness.saboteurs.registry import SABOTEURS
from suites import test_genuine, test_haiku
from tests import probe_run
from tests.alarm_campaign import Schedule
from tests.campaign_plan import COST_S, CPU, CUDA, FRESH, HONEST, LOADED, RESCORE, Row, rows
from tests.campaign_results import Results, Tally, table
from tests.probe_run import observed, observers_of

ROOT = Path(__file__).parents[2]
CHECK = "G4-GENUINE-COUNT"
CHEAT = Row("inflated-usage", (CHECK,), 2.0)
PLAIN = Row(HONEST, (CHECK, "G4-GENUINE-METRICS"), 3.0)
TIMED = Row("response-cache", ("G4-GENUINE-CACHE",), 9.0)
PACED = Row("honest-first-30-s", ("G4-GENUINE-LATE",), 11.0)


def tally(row: Row, verdict: str, place: str = CPU) -> Tally:
    return Tally(row, place, dict.fromkeys(row.checks, (verdict, f"said {verdict}")))


def test_every_black_box_probe_and_each_of_its_saboteurs_has_a_row() -> None:
    probes = {id_ for id_ in load_checklists().checks if id_.startswith("G4-GENUINE-")}
    assert set(COST_S) == {*probes, "G4-HAIKU"}
    found = rows(rescore=True)
    assert {check for row in found if row.engine == HONEST for check in row.checks} == set(COST_S)
    cheats = {row.engine: row.checks for row in found if row.engine != HONEST}
    meant = {name: (one.caught_by,) for name, one in SABOTEURS.items()}
    assert cheats == {n: c for n, c in meant.items() if c[0] in COST_S and c[0] != RESCORE}
    assert all(RESCORE not in row.checks for row in rows())
    assert [row.cost_s for row in found] == sorted(row.cost_s for row in found)


def test_an_engine_that_ages_has_a_process_for_each_run() -> None:
    for row in rows():
        wanted = observers_of(row.checks)[-1].__code__.co_varnames
        assert row.fresh == bool(set(row.checks) & set(FRESH))
        assert not row.fresh or {"launch_engine", "long_run"} & set(wanted)


def test_rows_run_where_they_show_something() -> None:
    assert TIMED.places == (CPU, LOADED)
    assert Row(HONEST, TIMED.checks, 4.0).places == (CPU, LOADED, CUDA)
    assert PLAIN.places == (CPU, CUDA)
    assert PACED.places == (CPU, CUDA)
    assert PACED.unit(CPU) == PACED.abreast(CPU) > PACED.abreast(CUDA) > TIMED.abreast(CPU) == 1
    assert Row(HONEST, ("G4-GENUINE-PHYSICS",), 4.0).places == (CPU,)
    assert CHEAT.unit(CUDA) > CHEAT.unit(CPU) > 1


def test_a_schedule_hands_out_every_run_once_the_cheap_ones_first() -> None:
    schedule = Schedule([CHEAT, TIMED], 20, cuda=False, given=Counter({CHEAT.name: 1}))
    units = iter(lambda: schedule.unit(CPU), None)
    given = [(unit.row.name, unit.runs) for unit in units if unit is not None]
    first, second = CHEAT.name, TIMED.name
    assert given == [
        (first, 1),
        (second, 2),
        (first, 18),
        (second, 5),
        (second, 3),
        *[(second, 5)] * 2,
    ]


def test_a_gpu_takes_the_dearest_row_and_leaves_a_cpu_those_it_cannot_run() -> None:
    schedule = Schedule([CHEAT, PLAIN, TIMED], 200, cuda=True)
    on_gpu, on_cpu, loaded = (schedule.unit(place) for place in (CUDA, CPU, LOADED))
    assert on_gpu is not None
    assert on_gpu.row == PLAIN
    assert on_cpu is not None
    assert loaded is not None
    assert on_cpu.row == loaded.row == TIMED


def test_runs_that_were_not_made_are_handed_out_again() -> None:
    schedule = Schedule([CHEAT], 4, cuda=False)
    schedule.given[CHEAT.name] = 2
    unit = schedule.unit(CPU)
    assert unit is not None
    assert schedule.unit(CPU) is None
    schedule.ended(unit, made=0)
    assert schedule.unit(CPU) == unit


def test_a_later_campaign_goes_on_from_the_file(tmp_path: Path) -> None:
    first = Results(tmp_path / "campaign.json")
    for one in (tally(PLAIN, "pass"), tally(PLAIN, "pass", CUDA), tally(CHEAT, "fail")):
        first.add(one)
    first.write()
    again = Results(first.path)
    assert again.cells == first.cells
    assert (again.runs_of(PLAIN), again.runs_of(CHEAT), again.runs_of(TIMED)) == (2, 1, 0)
    first.path.write_text('{"schema": "another"}')
    with pytest.raises(SystemExit, match="schema"):
        Results(first.path)


def test_the_documented_table_is_that_of_what_was_counted() -> None:
    counted = Results(ROOT / "docs" / "campaign.json")
    *lines, _, total = table(counted).splitlines()
    documented = (ROOT / "docs" / "qualification.md").read_text(encoding="utf-8")
    assert "\n".join(lines) in documented
    honest, alarms, saboteurs, missed = map(int, re.findall(r"\d+", total))
    assert (alarms, missed) == (0, 0)
    assert f"No alarm in {honest:,} honest verdicts" in " ".join(documented.split())
    assert f"all {saboteurs:,} runs of saboteurs caught" in " ".join(documented.split())


@pytest.mark.parametrize(("row", "wrong"), [(PLAIN, "fail"), (CHEAT, "pass"), (CHEAT, "error")])
def test_anything_but_the_wanted_verdict_counts_against(
    row: Row, wrong: str, tmp_path: Path
) -> None:
    results = Results(tmp_path / "campaign.json")
    for verdict in [row.wanted] * 199 + [wrong]:
        results.add(tally(row, verdict))
    line = next(one for one in table(results).splitlines() if f"| {CHECK} | {row.engine} |" in one)
    assert "| 200 | 200 | – | – |" in line
    assert line.endswith(" 199 | 2.3 % |")
    cell = results.of(CHECK, row.engine)[0]
    assert cell.unwanted == [f"{wrong}: said {wrong}"]


def test_a_run_keeps_an_observation_for_each_check() -> None:
    @pytest.mark.check("A", "B", "C")
    def test_something(engine: str, nonce: str, observe: object) -> None:
        assert callable(observe)
        observe(said=f"{engine} {len(nonce)}")

    seen = observed(test_something, ["A", "B"], {"engine": lambda: "it"})
    facts = {"said": "it 32"}
    assert seen == {id_: [Observation(id_, "test_something", 1, {}, facts)] for id_ in "AB"}


def asked_of(first: Verdict, second: Verdict, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fixtures that a run of two tests with these findings made, and then its verdict."""
    asked: list[str] = []

    @pytest.mark.check(CHECK)
    def test_one(engine: str, observe: Callable[..., None]) -> None:
        observe(verdict=first.value)

    @pytest.mark.check(CHECK)
    def test_other(engine: str, long_run: str, observe: Callable[..., None]) -> None:
        observe(verdict=second.value)

    def judge(_: object, seen: Sequence[Observation], __: str) -> Finding:
        return Finding(Verdict(seen[0].facts["verdict"]), seen[0].test)

    monkeypatch.setattr(probe_run, "observers_of", lambda _: [test_one, test_other])
    monkeypatch.setattr(probe_run, "judged", judge)
    fixtures = {name: partial(asked.append, name) for name in ("engine", "long_run")}
    found = probe_run.findings([CHECK], fixtures, "cpu")
    return [*asked, found[CHECK].verdict.value]


def test_the_tests_of_a_run_share_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_of(Verdict.PASS, Verdict.PASS, monkeypatch) == ["engine", "long_run", "pass"]
    assert asked_of(Verdict.PASS, Verdict.FAIL, monkeypatch) == ["engine", "long_run", "fail"]
    assert asked_of(Verdict.ERROR, Verdict.PASS, monkeypatch) == ["engine", "long_run", "error"]


def test_a_run_ends_once_every_check_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_of(Verdict.FAIL, Verdict.PASS, monkeypatch) == ["engine", "fail"]


def test_a_campaign_finds_what_it_replaces_in_the_suites() -> None:
    assert {"reference_engine", "replies"} <= vars(test_genuine).keys()
    assert "reference_engine" in vars(test_haiku)
