"""Measures how often an honest engine fails the haiku's words: 60 minutes × some nonces.

python -m tests.haiku_rate --nonces 50 [--first N] [--model PATH] prints a JSON line for each nonce:
attempts, attempts that lacked a word, and the runs in which three attempts with fresh nonces all
did. A measurement that was interrupted goes on with `--first`.
"""

import argparse
import json
import sys
from pathlib import Path

from harness.clients import EngineClient
from harness.haiku import HaikuChallenge, haiku_challenge, haiku_request, what_is_wrong
from harness.launch import LaunchSpec
from harness.launch.process import ProcessLauncher

ATTEMPTS = 3
ENGINE = (sys.executable, "-m", "engine.cli", "serve", "--model", "{model}", "--port", "{port}")
DEFAULT = "~/.cache/haikugate/models/SmolLM2-135M-Instruct.Q4_1.gguf"


def words_come(client: EngineClient, asked: HaikuChallenge) -> tuple[bool, str]:
    live = client.start(**haiku_request(asked, chat=False), cache_prompt=True)
    text = ""
    live.wait_until(lambda event: event.type in ("end", "error"), 60.0)
    for timed in live.events:
        if timed.event.type == "token":
            text += json.loads(timed.event.data)["t"]
    return not what_is_wrong(asked, text, chat=False), text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0, help="the number of the first nonce")
    parser.add_argument("--nonces", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--step", type=int, default=1, help="every n-th minute only")
    parser.add_argument("--model", default=DEFAULT)
    options = parser.parse_args()
    command = (*ENGINE, "--threads", str(options.threads))
    engine = ProcessLauncher().launch(LaunchSpec(command, Path(options.model).expanduser()))
    counts = {"runs": 0, "attempts": 0, "attempts_failed": 0, "runs_failed": 0}
    try:
        for number in range(options.first, options.first + options.nonces):
            for minute in range(0, 60, options.step):
                counts["runs"] += 1
                for attempt in range(1, ATTEMPTS + 1):
                    asked = haiku_challenge(f"nonce {number}", attempt, minute)
                    come, text = words_come(engine.client, asked)
                    counts["attempts"] += 1
                    if come:
                        break
                    counts["attempts_failed"] += 1
                    print(json.dumps([asked.minute_word, asked.code_word, text]), file=sys.stderr)
                counts["runs_failed"] += not come
            print(json.dumps(counts), flush=True)
    finally:
        engine.stop()


if __name__ == "__main__":
    main()
