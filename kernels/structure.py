"""Argument structures of the kernels, field for field as the .cu files declare them."""

import ctypes

POINTER, INT, FLOAT, U64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_float, ctypes.c_uint64


def fields(kind: type, names: str) -> list[tuple[str, type]]:
    """`names` (separated by blanks) as ctypes fields of one kind."""
    return [(name, kind) for name in names.split()]


class KvCacheStructure(ctypes.Structure):
    """kv_page.cuh: KvCache."""

    _fields_ = [
        *fields(POINTER, "pages"),
        *fields(U64, "layer_offset"),
        *fields(INT, "n_kv_heads head_dim"),
    ]
