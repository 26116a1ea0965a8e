"""Import gRPC with its fork support off.

Fork support hooks into every `fork`: its handlers write to stderr, and have killed the child before
it could become another program. Nothing here uses gRPC in a forked child. gRPC reads the variable
while it is imported; after that it is removed, so that no child process inherits it.
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
