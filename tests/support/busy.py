"""How busy the machine is, for tests that say how long something may take."""

import re
from pathlib import Path

_PRESSURE = Path("/proc/pressure/cpu")


def waited() -> float:
    """Return the seconds, since some fixed time, in which a process waited for a processor.

    The kernel counts them (pressure stall information); where it does not, this is always 0.
    """
    try:
        text = _PRESSURE.read_text("ascii")
    except OSError:
        return 0.0
    found = re.search(r"^some .*total=(\d+)$", text, re.MULTILINE)
    return 0.0 if found is None else int(found[1]) / 1e6
