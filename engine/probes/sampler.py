"""The sampler's uniform draws, and what it chooses from a given row of logits."""

from typing import Any

import numpy as np

from engine.probe import Case, ProbeOptions
from engine.sampler import SamplingParams, choose, uniform

_N_DRAWS = 16
_LOGITS = (2.0, 1.0, 0.5, 0.0, 0.0, -1.0, -4.0, -30.0)
_SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "top-k-2": {"top_k": 2},
    "top-p-0.5": {"top_p": 0.5},
    "min-p-0.3": {"min_p": 0.3},
    "cold": {"temperature": 0.2},
    "penalty-2": {"temperature": 0.0, "repetition_penalty": 2.0},
}


def cases(options: ProbeOptions) -> list[Case]:
    """The first draws of the seed and of the extreme seeds, then choices by setting."""
    seeds = (options.seed, 0, (1 << 64) - 1)
    found: list[Case] = [
        {"seed": seed, "uniform": [uniform(seed, i).hex() for i in range(_N_DRAWS)]}
        for seed in dict.fromkeys(seeds)
    ]
    row = np.array(_LOGITS, np.float32)
    for name, setting in _SETTINGS.items():
        params = SamplingParams(seed=options.seed, **setting)
        chosen = [choose(row, params, i, [0]) for i in range(_N_DRAWS)]
        found.append({"setting": name, "logits": list(_LOGITS), "seen": [0], "chosen": chosen})
    return found
