"""What the plug-in keeps with pytest's own objects: a run's session, a test's checks."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness.session import GateSession
    from harness.trace import Collected

SESSION: pytest.StashKey["GateSession"] = pytest.StashKey()
"""Of pytest's config."""
COLLECTED: pytest.StashKey["Collected"] = pytest.StashKey()
"""Of a collected test."""
