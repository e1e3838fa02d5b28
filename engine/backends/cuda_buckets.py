"""Decode steps of several context buckets: what attention does not change is built once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.backends.cuda_decode import DecodeBuilder
from engine.backends.cuda_model import Bound, BoundExperts, BoundGated, BoundLinear
from kernels.context import KernelContext, Launch


@dataclass
class KeptLaunch:
    """A launch that is put together when first asked for, and queued or noted as it was then."""

    context: KernelContext
    launch: Callable[[], None]
    _noted: list[Launch] = field(default_factory=list)

    def __call__(self) -> None:
        """Launch it; raises what the launcher raises."""
        if not self._noted:
            with self.context.noting() as self._noted:
                self.launch()
        self.context.repeat(self._noted)


@dataclass(frozen=True)
class KeptStep:
    """A step's launches, and all that the builder knew after it."""

    launches: list[KeptLaunch]
    builder: dict[str, Any]


@dataclass
class BucketBuilder(DecodeBuilder):
    """A builder that takes the steps no bucket changes from `kept`, where one before it left them.

    A bucket decides how attention is split, so also the linear that reads the parts is its own.
    """

    kept: dict[int, KeptStep] = field(default_factory=dict, kw_only=True)

    def _plain(self, bound: Bound) -> None:
        self._once(bound, lambda: super(BucketBuilder, self)._plain(bound))

    def _gated(self, bound: BoundGated) -> None:
        self._once(bound, lambda: super(BucketBuilder, self)._gated(bound))

    def _experts(self, bound: BoundExperts) -> None:
        self._once(bound, lambda: super(BucketBuilder, self)._experts(bound))

    def _linear(self, bound: BoundLinear, following: Bound | None) -> None:
        if bound.step.x.buffer in self._split:
            super()._linear(bound, following)
        else:
            self._once(bound, lambda: super(BucketBuilder, self)._linear(bound, following))

    def _once(self, bound: Bound, build: Callable[[], None]) -> None:
        """Build a step, or take what building it left."""
        step = self.kept.get(id(bound))
        if step is None:
            first = len(self.launches)
            build()
            launches = [KeptLaunch(self.context, launch) for launch in self.launches[first:]]
            step = KeptStep(launches, self._known())
            self.kept[id(bound)] = step
            del self.launches[first:]
        self.launches += step.launches
        vars(self).update(_copied(step.builder))

    def _known(self) -> dict[str, Any]:
        return _copied({name: value for name, value in vars(self).items() if name[0] == "_"})


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """The state with dicts and lists of its own."""
    return {k: v.copy() if isinstance(v, dict | list) else v for k, v in state.items()}
