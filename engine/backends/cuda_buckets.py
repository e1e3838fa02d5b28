"""Decode steps of several context buckets: what attention does not change is built once."""

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.backends.cuda_decode import DecodeBuilder, Handover
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
    """A step's launches, and what it and those before it left for later ones."""

    launches: list[KeptLaunch]
    left: Handover


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
        if bound.step.x.buffer in self.left.split:
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
            step = KeptStep(launches, self.left.copy())
            self.kept[id(bound)] = step
            del self.launches[first:]
        self.launches += step.launches
        self.left = step.left.copy()
