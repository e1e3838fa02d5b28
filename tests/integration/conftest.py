from collections.abc import Iterator

import pytest

from tests.integration.engine_process import EngineProcess, launched


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """One engine with default options, for tests that leave it as they found it."""
    with launched(tmp_path_factory.mktemp("engine")) as running:
        yield running
