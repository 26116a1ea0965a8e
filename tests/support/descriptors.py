"""How many connections a test may open, on machines that allow a process few descriptors."""

import os
import resource

_OTHERS = 300  # descriptors that the client's end needs besides


def connections(wanted: int) -> int:
    """Return `wanted`, or as many as a server allows that has the hard limit of descriptors.

    Fewer than half is a failure where nothing may be left out (KONTROL_TEST_STRICT).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = min(wanted, hard - min(hard // 4, 1000) - _OTHERS)  # see `rpc.sockets.affordable`
    strict = os.environ.get("KONTROL_TEST_STRICT") == "1"
    assert 2 * found >= wanted or not strict, f"{hard} descriptors allow {found} of {wanted}"
    return found
