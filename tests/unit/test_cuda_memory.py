"""The device's pool over a fake driver: what weights share, what is counted, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.cuda_memory import ALIGNMENT, GRANULE_BYTES, SLAB_BYTES, DevicePool
from engine.errors import DeviceError, InsufficientMemory
from tests.unit.fake_cuda import FakeCupy

MIB = 1 << 20


@given(st.lists(st.integers(0, 6 * MIB), max_size=40))
def test_weights_lie_apart_and_inside_what_the_driver_gave(sizes: list[int]) -> None:
    cupy = FakeCupy()
    pool = DevicePool(cupy)
    held = cupy.cuda.runtime.held
    free_from = 0
    for pointer, size in sorted((pool.keep(size), size) for size in sizes):
        assert pointer % ALIGNMENT == 0
        assert pointer >= free_from
        assert any(at <= pointer and pointer + size <= at + n for at, n in held.items())
        free_from = pointer + size
    assert all(n % GRANULE_BYTES == 0 for n in held.values())
    assert pool.report().weights_bytes == sum(held.values())


def test_small_weights_share_slabs_and_the_rest_of_large_ones() -> None:
    pool = DevicePool(FakeCupy())
    large = pool.keep(5 * MIB)
    assert pool.keep(MIB) == large + 5 * MIB
    assert pool.used_bytes["weights"] == 6 * MIB
    first = pool.keep(1000)
    assert pool.keep(1000) == first + 1024
    assert pool.used_bytes["weights"] == 6 * MIB + SLAB_BYTES


def test_a_limit_without_room_for_a_slab_has_room_for_an_array() -> None:
    pool = DevicePool(FakeCupy(), limit_bytes=SLAB_BYTES + GRANULE_BYTES)
    pool.keep(SLAB_BYTES)
    pool.keep(1000)
    assert pool.total_bytes == pool.limit_bytes
    with pytest.raises(InsufficientMemory) as raised:
        pool.keep(GRANULE_BYTES)
    assert raised.value.required_bytes == pool.limit_bytes + GRANULE_BYTES
    assert raised.value.available_bytes == pool.limit_bytes


@pytest.mark.parametrize(
    ("asked", "taken"),
    [(1, ALIGNMENT), (MIB, MIB), (MIB + 1, 2 * MIB), (3 * MIB, 4 * MIB), (32 * MIB, 32 * MIB)],
)
def test_what_is_counted_is_what_the_driver_takes(asked: int, taken: int) -> None:
    cupy = FakeCupy()
    pool = DevicePool(cupy)
    pointer = pool.allocate(asked, "workspace")
    assert pool.total_bytes == taken == cupy.cuda.runtime.held[pointer]
    pool.free(pointer)
    assert pool.total_bytes == 0


def test_residency_covers_what_weights_share_and_close_gives_it_back() -> None:
    cupy = FakeCupy()
    pool = DevicePool(cupy)
    for _ in range(9):
        pool.array((MIB // 4,), "f32", "weights")
    assert pool.verify() == 3
    cupy.cuda.runtime.managed.add(next(iter(cupy.cuda.runtime.held)))
    with pytest.raises(DeviceError, match=r"bytes of weights .* managed memory"):
        pool.verify()
    pool.close()
    assert cupy.cuda.runtime.held == {}
    assert pool.total_bytes == 0
    assert pool.keep(10) in cupy.cuda.runtime.held
