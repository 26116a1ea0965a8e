"""Import gRPC with its fork support off.

With it, gRPC hooks itself into every `fork`: its handlers write to stderr, and were seen to kill
the child before it could become another program. Nothing here uses gRPC in a forked child. The
variable is read while gRPC is imported, and taken back so that no child process inherits it.
"""

import os

_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"


def _import() -> None:
    if _VARIABLE in os.environ:
        return
    os.environ[_VARIABLE] = "0"
    try:
        import grpc  # noqa: F401 - for its side effect
    finally:
        del os.environ[_VARIABLE]


_import()
