"""The honest runs that a judge measures an observation against."""

from collections.abc import Mapping

from harness.calibration import Calibration, Pairing, parse_calibration, shipped_calibration
from harness.errors import CalibrationError
from harness.judges.rule import Unseen, body, exchange
from harness.observation import Json, Observation


def reference_health(observation: Observation) -> Mapping[str, Json]:
    """What the reference engine said of itself."""
    return body(exchange(observation, "reference_health"))


def calibration_of(observation: Observation) -> Calibration:
    """The calibration given for the run, or the shipped one; Unseen if it cannot be one."""
    given = observation.facts.get("calibration")
    try:
        if given is None:
            return shipped_calibration()
        return parse_calibration(str(given).encode(), "the calibration given")
    except CalibrationError as error:
        raise Unseen(str(error)) from None


def pairing_of(observation: Observation) -> Pairing:
    """The honest runs on the kinds of devices that engine and reference have; Unseen if none.

    The engine's kind is the reference's, which the harness chose to be so, unless a fact tells.
    """
    device = str(reference_health(observation).get("device")).partition(":")[0]
    tested = observation.facts.get("engine_device", device)
    try:
        return calibration_of(observation).pairing(f"{tested}/{device}")
    except CalibrationError as error:
        raise Unseen(str(error)) from None
