"""Launchers of sample.cu: the draw of the next token on the device."""

import ctypes
import struct
from dataclasses import dataclass

from kernels.arrays import DeviceArray, require
from kernels.context import Kernel, Launcher
from kernels.driver import LaunchShape
from kernels.structure import INT, POINTER, fields

PARAMETER_WORDS = 7
STATE_WORDS = 3


class SampleArguments(ctypes.Structure):
    """sample.cu: SampleArgs."""

    _fields_ = [
        *fields(POINTER, "logits best_value best_index seen parameters state ids slab_mass"),
        *fields(INT, "vocab n_best n_ids"),
    ]


@dataclass(frozen=True)
class SampleSettings:
    """One request's sampling; temperature 0 is greedy, top_k 0 and top_p 1 are off."""

    seed: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    penalty: float

    def packed(self) -> bytes:
        """The 7 words that the kernel reads."""
        low, high = self.seed & 0xFFFFFFFF, self.seed >> 32 & 0xFFFFFFFF
        return struct.pack(
            "<2I4fi", low, high, self.temperature, self.top_p, self.min_p, self.penalty, self.top_k
        )


@dataclass(frozen=True)
class Sampler:
    """What sampling reads and writes: logits f32[1, vocab], the argmax by block, the state.

    `seen` i32[ceil(vocab / 32)] is the bit set of token ids for the repetition penalty,
    `parameters` i32[7], `state` i32[3] (token, its position, index of the next draw), `slab_mass`
    u64[n] scratch.
    """

    logits: DeviceArray
    best: tuple[DeviceArray, DeviceArray]
    seen: DeviceArray
    parameters: DeviceArray
    state: DeviceArray
    slab_mass: DeviceArray

    @property
    def vocab(self) -> int:
        """Number of logits."""
        return self.logits.shape[1]

    def sample(self, launcher: Launcher) -> None:
        """Choose a token: state becomes (token, position + 1, index + 1)."""
        n_best = self.best[0].shape[0]
        arguments = SampleArguments(
            require("logits", self.logits, "f32", (1, self.vocab)),
            require("best_value", self.best[0], "f32", (n_best,)),
            require("best_index", self.best[1], "i32", (n_best,)),
            require("seen", self.seen, "i32", (-(-self.vocab // 32),)),
            require("parameters", self.parameters, "i32", (PARAMETER_WORDS,)),
            require("state", self.state, "i32", (STATE_WORDS,)),
            0, require("slab_mass", self.slab_mass, "u64", (n_best,)), self.vocab, n_best, 0,
        )  # fmt: skip
        mass = Kernel("sample.cu", "sample_mass")
        launcher.launch(mass, LaunchShape((n_best, 1), 256), arguments)
        launcher.launch(Kernel("sample.cu", "sample"), LaunchShape((1, 1), 1024), arguments)

    def mark_seen(self, launcher: Launcher, ids: DeviceArray) -> None:
        """Note token ids i32[n] for the repetition penalty."""
        n_ids = ids.shape[0]
        arguments = SampleArguments(
            seen=require("seen", self.seen, "i32", (-(-self.vocab // 32),)),
            ids=require("ids", ids, "i32", (n_ids,)),
            vocab=self.vocab,
            n_ids=n_ids,
        )
        kernel = Kernel("sample.cu", "mark_seen")
        launcher.launch(kernel, LaunchShape((-(-n_ids // 256), 1), 256), arguments)
