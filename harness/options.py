"""From pytest's options to the state of a gate run."""

import math
import os
from pathlib import Path
from typing import Any

import pytest

from harness.asked import Asked
from harness.checklist import load_checklists
from harness.errors import UsageError
from harness.gates import JudgeContext
from harness.keys import Signer, read_private_key, read_public_key, signer_from_environment
from harness.session import GateSession, Nonce
from harness.under_test import (
    DEFAULT_MODEL,
    READY_TIMEOUT_S,
    EngineOptions,
    EngineUnderTest,
    default_launcher,
)


def option(config: pytest.Config, name: str) -> Any:
    """One of the plugin's options, by the words of its flag."""
    return config.getoption(f"haikugate_{name}")


def default_profile() -> str:
    """`gpu` where a CUDA device is visible, else `cpu`."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "cpu"
    from harness.environment import gpu_facts

    return "gpu" if gpu_facts()["gpus"] else "cpu"


def engine_options(config: pytest.Config) -> EngineOptions:
    """What the command line says about the engine."""
    profile = option(config, "profile") or default_profile()
    url, image = option(config, "engine_url"), option(config, "image")
    launcher = option(config, "launcher") or default_launcher(url, image)
    models = option(config, "model") or models_of(profile)
    return EngineOptions(
        profile=profile,
        launcher=launcher,
        kind=option(config, "engine"),
        command=option(config, "engine_command"),
        url=url,
        image=image,
        models=tuple(models),
        gpus=chosen_gpus(option(config, "gpus"), profile),
        worker=worker_index(config),
        ready_timeout_s=ready_timeout_s(option(config, "ready_timeout")),
    )


def ready_timeout_s(given: float | None) -> float:
    """Seconds that an engine may take until it answers; raises UsageError for none at all."""
    if given is None:
        return READY_TIMEOUT_S
    if not 0 < given < math.inf:
        raise UsageError(f"--ready-timeout: wanted seconds above 0, got {given:g}")
    return given


def chosen_gpus(words: str, profile: str) -> tuple[str, ...]:
    """Indices of a comma-separated list; `all` is every GPU that NVML shows.

    Raises UsageError in profile `cpu`, and for what is no GPU of this machine.
    """
    if not words:
        return ()
    if profile == "cpu":
        raise UsageError(f"--gpus {words}: profile cpu uses no GPU; take gpu or m0, or no --gpus")
    from harness.environment import gpu_facts

    facts = gpu_facts()
    seen = tuple(str(gpu["index"]) for gpu in facts["gpus"])
    if words == "all" and not seen:
        raise UsageError(f"--gpus all: no GPU is seen here: {facts['note'] or 'there is none'}")
    chosen = seen if words == "all" else tuple(word for word in words.split(",") if word)
    if not chosen or not all(word.isdecimal() and word in (seen or chosen) for word in chosen):
        wanted = f"all or indices among {', '.join(seen)}" if seen else "all or device indices"
        raise UsageError(f"--gpus: wanted {wanted}, got {words!r}")
    return chosen


def models_of(profile: str) -> tuple[str, ...]:
    """The registered models that a certificate of this profile is about: the default one first.

    In profile m0 the reference models come to it: checks of the default model stay about that one.
    """
    from harness.models import registry

    reference = tuple(model.name for model in registry().values() if "m0" in model.profiles)
    return (DEFAULT_MODEL, *reference) if profile == "m0" else (DEFAULT_MODEL,)


def worker_index(config: pytest.Config) -> int:
    """The number of this xdist worker, from 0; 0 without xdist."""
    workerid = getattr(config, "workerinput", {}).get("workerid", "gw0")
    return int(workerid.removeprefix("gw") or 0)


def session_from(config: pytest.Config, asked: Asked | None) -> GateSession:
    """The state that the options describe; raises HaikugateError for what does not fit."""
    checklists = load_checklists()
    refuse_empty(option(config, "nonce"), option(config, "tokenizer"))
    options = engine_options(config)
    context = JudgeContext(
        profile=options.profile,
        launcher=options.launcher,
        engine_kind=options.kind,
        ours=options.ours,
        gate=asked.gate if asked else 4,
        areas=asked.areas if asked else (),
    )
    return GateSession(
        checklists=checklists,
        context=context,
        under_test=EngineUnderTest(options),
        nonce=Nonce.of(option(config, "nonce")),
        asked=asked,
    )


def refuse_empty(nonce: str | None, tokenizer: str | None) -> None:
    """Raises UsageError for a nonce of no characters (an unset variable?), a file that is none."""
    if nonce is not None and not nonce.strip():
        raise UsageError("--nonce: wanted the reviewer's words, got none; leave it out for random")
    if tokenizer is not None and not Path(tokenizer).is_file():
        raise UsageError(f"--tokenizer {tokenizer}: no such file")


def proof_dir(config: pytest.Config) -> Path:
    """--proof-dir, HAIKUGATE_PROOF_DIR, or `proofs` below the working directory."""
    given = option(config, "proof_dir") or os.environ.get("HAIKUGATE_PROOF_DIR")
    return Path(given or "proofs").absolute()


def signer_of(config: pytest.Config) -> Signer:
    """The key of --signing-key, else of the environment, else an ephemeral one."""
    given = option(config, "signing_key")
    if given is None:
        return signer_from_environment()
    return read_private_key(Path(given), os.environ.get("HAIKUGATE_SIGNING_KEY_PASSPHRASE"))


def with_trusted_files(
    config: pytest.Config, session: GateSession, run_key_id: str
) -> JudgeContext:
    """The context with the waivers and the lower gates that trusted keys signed."""
    from dataclasses import replace

    from harness.waivers import load_waivers

    trusted = [read_public_key(Path(path)) for path in option(config, "trust_key") or ()]
    context = session.context
    waivers, bundles = option(config, "waivers"), option(config, "gate_bundles")
    if (waivers or bundles) and not trusted:
        raise UsageError("--waivers and --gate-bundles need --trust-key PEM")
    if waivers:
        read = load_waivers(Path(waivers), trusted, run_key_id, session.checklists)
        context = replace(context, waivers=read)
    if bundles:
        from harness.lower_gates import certified_gates

        identity = session.under_test.identity(), session.under_test.models()
        found = certified_gates(Path(bundles), trusted, context, *identity)
        context = replace(context, lower_gates=found)
    return context
