import pytest

from tests.unit.gate_project import GateProject


@pytest.fixture
def project(pytester: pytest.Pytester) -> GateProject:
    """A folder in which `pytest -m gate4` is certified, until a test changes something."""
    return GateProject(pytester)
