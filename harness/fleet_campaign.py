"""A fleet's campaign as data: models × engines × gates, each combination a cell to certify."""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from harness.checked import checked
from harness.errors import UsageError
from harness.ledger import NAME
from harness.models import find, names_a_file
from harness.profiles import PROFILES
from harness.under_test import LAUNCHERS, EngineOptions, EngineUnderTest, default_launcher

Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
Profile = Annotated[str, AfterValidator(lambda name: _one_of(name, PROFILES))]
Launcher = Annotated[str, AfterValidator(lambda name: _one_of(name, LAUNCHERS))]
Text = Annotated[str, Field(min_length=1)]
Gate = Annotated[int, Field(strict=True, ge=1, le=4)]
OF_THE_PROFILE: Final = "profile-models"
"""The label of a cell that names no model: it certifies those of its profile."""


def _one_of(name: str, known: Collection[str]) -> str:
    if name not in known:
        raise ValueError(f"wanted one of {', '.join(known)}")
    return name


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FleetEngine(_Frozen):
    """One engine: options of `haikugate certify` by their names, and what its node must have."""

    profile: Profile | None = None
    launcher: Launcher | None = None
    engine: Text | None = None
    engine_command: Text | None = None
    engine_url: Text | None = None
    image: Text | None = None
    tokenizer: Path | None = None
    ready_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    workers: CountOrZero = 0
    cpus: Count = 2
    gpus: CountOrZero = 0

    @model_validator(mode="after")
    def _fits_its_node(self) -> Self:
        if PROFILES[self.claimed].device_args and not self.gpus:
            raise ValueError(f"profile {self.profile} needs gpus: 1 or more")
        if self.tokenizer is not None and not self.tokenizer.is_absolute():
            raise ValueError("tokenizer lies on the nodes: its path must be absolute")
        return self

    @property
    def claimed(self) -> str:
        """The profile, `gpu` where a GPU is asked for and none is named."""
        return self.profile or ("gpu" if self.gpus else "cpu")

    def under_test(self) -> EngineUnderTest:
        """The engine as a gate run knows it; raises UsageError for fields that do not fit."""
        url, image = self.engine_url or "", self.image or ""
        options = EngineOptions(
            profile=self.claimed,
            launcher=self.launcher or default_launcher(url, image),
            kind=self.engine or "native",
            command=self.engine_command or "",
            url=url,
            image=image,
            models=(),
        )
        return EngineUnderTest(options)

    def options(self) -> list[str]:
        """As words for `haikugate certify`."""
        others = {"profile", "workers", "cpus", "gpus"}
        named = self.model_dump(exclude=others, exclude_none=True)
        given = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
        return [f"-n{self.workers}", f"--profile={self.claimed}", *given]


class Campaign(_Frozen):
    """What a campaign file says."""

    engines: Mapping[str, FleetEngine] = Field(min_length=1)
    models: list[Text] = []
    gates: list[Gate] = Field(default=[4], min_length=1)


class Cell(_Frozen):
    """One gate of one engine with one model; without a model, those of the engine's profile."""

    engine_name: str
    engine: FleetEngine
    model: str | None
    gate: int

    @property
    def name(self) -> str:
        """Unique in its campaign, and a path below the output folder."""
        return f"{self.engine_name}/{self.model_label}/gate{self.gate}"

    @property
    def model_label(self) -> str:
        """A registered model's name, or its file's without the suffix."""
        if self.model is None:
            return OF_THE_PROFILE
        return Path(self.model).stem if names_a_file(self.model) else find(self.model).name

    def options(self) -> list[str]:
        """As words for `haikugate certify`."""
        named = [] if self.model is None else [f"--model={self.model}"]
        return [f"--gate={self.gate}", *self.engine.options(), *named]


def cells(fields: Mapping[str, Any], where: str) -> list[Cell]:
    """Every combination, gates innermost; raises UsageError for the first thing that is wrong."""
    campaign = checked(Campaign, fields, where)
    for model in campaign.models:
        _refuse_model(model, where)
    found = [
        Cell(engine_name=name, engine=engine, model=model, gate=gate)
        for name, engine in campaign.engines.items()
        for model in campaign.models or (None,)
        for gate in sorted(set(campaign.gates))
    ]
    for name, engine in campaign.engines.items():
        try:
            engine.under_test()
        except UsageError as error:
            raise UsageError(f"{where}: engines.{name}: {error}") from None
    _refuse_names(found, where)
    return found


def _refuse_names(found: list[Cell], where: str) -> None:
    """Raises UsageError for a cell whose name is no folder of its own."""
    for cell in found:
        for label in (cell.engine_name, cell.model_label):
            if not NAME.fullmatch(label):
                raise UsageError(
                    f"{where}: {label!r:.80} names a folder: wanted letters, digits, . _ -"
                )
    twice = [name for name, count in Counter(cell.name for cell in found).items() if count > 1]
    if twice:
        raise UsageError(f"{where}: {twice[0]} stands twice: wanted models of different names")


def _refuse_model(model: str, where: str) -> None:
    """A model is a registered name, or a file by a path that every node understands."""
    if not names_a_file(model):
        find(model)
    elif not Path(model).is_absolute():
        raise UsageError(f"{where}: model {model} lies on the nodes: its path must be absolute")
