"""Launcher of read.cu: reads device memory once, as fast as it can be read."""

import ctypes

from kernels.arrays import DeviceArray, require
from kernels.context import Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.structure import POINTER, U64, fields

THREADS = 512
BLOCKS_A_MULTIPROCESSOR = 4


class ReadArguments(ctypes.Structure):
    """read.cu: ReadArgs."""

    _fields_ = [*fields(POINTER, "words out"), *fields(U64, "n_words")]


def read_words(launcher: Launcher, words: DeviceArray, out: DeviceArray) -> None:
    """Out i32[blocks · 512] = exclusive or of the i32[n, 4] `words` that each thread read.

    Raises KernelArgumentError.
    """
    n_blocks = BLOCKS_A_MULTIPROCESSOR * launcher.limits.n_multiprocessors
    arguments = ReadArguments(
        require("words", words, "i32", (None, 4)),
        require("out", out, "i32", (n_blocks * THREADS,)),
        words.shape[0],
    )
    shape = LaunchShape((n_blocks, 1), THREADS)
    launcher.launch(Kernel("read.cu", "read_words"), shape, arguments)
