from collections.abc import Iterator

import pytest

from tests.integration.engine_process import MODEL, EngineProcess, launched


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """One engine with default options, for tests that leave it as they found it."""
    if not MODEL.exists():
        pytest.skip("the default model is not fetched")
    with launched(tmp_path_factory.mktemp("engine")) as running:
        yield running
