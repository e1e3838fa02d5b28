"""Serve one saboteur: `python -m harness.saboteurs NAME --model M --port N`."""

import argparse
import asyncio
import sys
from pathlib import Path

from harness.saboteurs.proxy import serve
from harness.saboteurs.registry import CONTROL, SABOTEURS


def main() -> int:
    """Serve until SIGTERM; other options go to the engine behind."""
    known = {**SABOTEURS, CONTROL.name: CONTROL}
    parser = argparse.ArgumentParser(prog="python -m harness.saboteurs", description=__doc__)
    parser.add_argument("name", choices=sorted(known), metavar="NAME")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options, engine_args = parser.parse_known_args()
    return asyncio.run(serve(known[options.name](), options.model, options.port, engine_args))


if __name__ == "__main__":
    sys.exit(main())
