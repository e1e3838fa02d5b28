"""A kernel context on the first CUDA device, for the whole run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.backends.cuda_device import open_device
from engine.errors import DeviceError
from kernels.context import KernelContext


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def context() -> Iterator[KernelContext]:
    try:
        device = open_device("cuda:0")
    except DeviceError as error:
        pytest.skip(str(error))
    kernels = KernelContext(device.limits)
    yield kernels
    kernels.close()
