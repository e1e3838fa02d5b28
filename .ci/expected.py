"""Assert what a gate run's bundle must show here: it verifies, nothing fails, the list holds."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path


def main(listed: str, bundle: Path) -> None:
    """Exit 1 with one line for each broken expectation about the proof bundle.

    `listed` names the list of expected.toml; nothing at all may be `fail` or `error`.
    """
    subprocess.run([sys.executable, "-m", "harness.cli", "verify", str(bundle)], check=True)
    expected = tomllib.loads(Path(__file__).with_name("expected.toml").read_text())[listed]
    checks = json.loads((bundle / "checks.json").read_text())["checks"]
    verdicts = {check["id"]: check["verdict"] for check in checks}
    broken = [f"{id_}: {v}" for id_, v in verdicts.items() if v in ("fail", "error")]
    broken += [
        f"{id_}: must be pass, is {verdicts.get(id_, 'absent')}"
        for id_ in expected
        if verdicts.get(id_) != "pass"
    ]
    if broken:
        sys.exit("\n".join(broken))
    print(f"{len(expected)} expected checks pass, none fails, of {len(verdicts)}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
