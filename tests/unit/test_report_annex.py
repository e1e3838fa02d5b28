"""The annex shows what was measured of the harness, from shipped data, and names a custom file."""

from harness.calibration import SHIPPED_SHA256
from harness.report_annex import calibration_view, calibrations_used, shipped_qualification
from harness.saboteurs.registry import SABOTEURS


def test_the_shipped_matrix_knows_each_saboteur_and_its_check() -> None:
    rows = {row["name"]: row for row in shipped_qualification()["saboteurs"]}
    assert len(rows) >= 40
    for name, row in rows.items():
        assert (row["intended"], row["cheat"]) == (SABOTEURS[name].caught_by, SABOTEURS[name].cheat)
        assert 0 <= row["caught"] <= row["runs"]
        assert (row["intended"] in row["by"]) == (row["caught"] > 0)


def test_the_calibration_shows_thresholds_and_rates_with_bounds() -> None:
    view = calibration_view()
    assert view["sha256"] == SHIPPED_SHA256
    assert {row["name"] for row in view["pairings"]} == {"cpu/cpu", "cuda/cuda", "cuda/cpu"}
    assert view["rates"][0]["engine"] == "honest"
    assert all(0 < row["error_rate_upper_95"] < 1 for row in view["rates"])


def test_what_judges_used_is_read_from_their_numbers() -> None:
    custom = {"calibration_sha256": "b" * 64, "custom_calibration": True}
    tests = [{"numbers": custom}, {"numbers": {"tokens": 3}}, {}]
    assert calibrations_used({"checks": [{"tests": tests}, {"tests": []}]}) == [("b" * 64, True)]
    assert calibrations_used({"checks": []}) == []
