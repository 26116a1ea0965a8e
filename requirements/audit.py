"""Asks for known vulnerabilities of what is pinned here, and says how much could be checked.

    python requirements/audit.py [FOLDER]

pip-audit asks the package index's own interface for advisories. A private index, or a mirror,
mostly has none: then it reports that the packages are unknown, or fails. That is no success, and no
vulnerability either. Exit status 1 if a vulnerability is known; 0 otherwise.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TIMEOUT = 300.0  # seconds
_PIN = re.compile(r"^[a-z0-9][\w.-]*==[^\s;]+", re.MULTILINE)


def pins(folder: Path) -> set[str]:
    """Return all that is pinned, as `name==version`."""
    texts = [path.read_text("utf-8") for path in sorted(folder.glob("*.txt"))]
    return {pin for text in texts for pin in _PIN.findall(text)}


def judge(pinned: int, found: list[dict[str, Any]], failure: str) -> tuple[int, str]:
    """Return the exit status and what to say of pip-audit's findings, one for each package."""
    checked = [each for each in found if "skip_reason" not in each]
    bad = [each for each in checked if each["vulns"]]
    lines = [
        f"{each['name']} {each['version']}: {vuln['id']}; fixed in"
        f" {', '.join(vuln['fix_versions']) or 'no release yet'}"
        for each in bad
        for vuln in each["vulns"]
    ]
    lines.append(f"checked {len(checked)} of {pinned} pinned packages: {len(bad)} vulnerable")
    if failure:
        lines.append(f"pip-audit failed: {failure}")
    if len(checked) < pinned:
        lines.append("the rest could not be checked: the index has no advisories for them")
    return (1 if bad else 0), "\n".join(lines)


def lists(pinned: set[str]) -> list[str]:
    """Return them as lists in which no package occurs twice, which pip-audit refuses."""
    made: list[dict[str, str]] = []
    for pin in sorted(pinned):
        name = pin.partition("==")[0]
        free = next((each for each in made if name not in each), None)
        if free is None:
            free = {}
            made.append(free)
        free[name] = pin
    return ["\n".join(each.values()) + "\n" for each in made]


def ask(text: str) -> tuple[list[dict[str, Any]], str]:
    """Return pip-audit's findings of one list, and its failure if it failed."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--no-deps", "--disable-pip"]
    command += ["--progress-spinner", "off", "--requirement"]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write(text)
        file.flush()
        # It trusts the authorities that pip trusts.
        trusted = {"REQUESTS_CA_BUNDLE": os.environ["PIP_CERT"]} if "PIP_CERT" in os.environ else {}
        try:
            done = subprocess.run(
                [*command, file.name],
                env={**trusted, **os.environ},
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [], f"no answer within {TIMEOUT:g} s"
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return [], (done.stderr.strip() or "it said nothing").splitlines()[-1][:300]
    return found, ""


def main(folder: Path) -> int:
    """Ask, and print."""
    pinned = pins(folder)
    answers = [ask(text) for text in lists(pinned)]
    found = [each for answer, _ in answers for each in answer]
    failure = "; ".join(dict.fromkeys(failure for _, failure in answers if failure))
    status, text = judge(len(pinned), found, failure)
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
