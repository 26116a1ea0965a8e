"""How many connections a test may open, on machines that allow a process few descriptors."""

import os
import resource

_OTHERS = 300  # descriptors that the processes at both ends need besides


def connections(wanted: int) -> int:
    """Return `wanted`, or as many as the hard limit of descriptors allows.

    Fewer than half is a failure where nothing may be left out (KONTROL_TEST_STRICT).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = min(wanted, hard - _OTHERS)
    strict = os.environ.get("KONTROL_TEST_STRICT") == "1"
    assert 2 * found >= wanted or not strict, f"{hard} descriptors; {wanted + _OTHERS} are needed"
    return found
