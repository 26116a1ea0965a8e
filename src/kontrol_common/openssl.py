"""Does without OpenSSL in processes that speak no TLS: 5 MB of each agent, and of each automaton.

The standard library imports OpenSSL wherever there is one: asyncio for TLS (`ssl`), and `hashlib`,
`hmac` and `secrets` for hashes that CPython has itself (`_hashlib`). It has a fallback for both,
for a Python that was built without OpenSSL. Here it takes that fallback on any Python (decisions
0051 and 0178).
"""

import sys
from importlib.util import find_spec

_HASHES = ("_md5", "_sha1", "_sha3", "_blake2")
_SHA2 = ("_sha2",) if sys.version_info >= (3, 12) else ("_sha256", "_sha512")


def without_openssl() -> None:
    """Import asyncio without TLS, and have every later import of `hashlib` do without OpenSSL.

    Call it before anything imports asyncio: what is imported already stays as it is. An import of
    `ssl` itself works afterwards, but asyncio does not know it.
    """
    if "asyncio" not in sys.modules and "ssl" not in sys.modules:
        sys.modules["ssl"] = None  # type: ignore[assignment]  # "cannot be imported", see importlib
        import asyncio  # noqa: F401  # this import is the point

        del sys.modules["ssl"]
    # Some distributions build CPython without hashes of its own: there OpenSSL's are needed.
    if "hashlib" not in sys.modules and all(map(find_spec, _HASHES + _SHA2)):
        sys.modules["_hashlib"] = None  # type: ignore[assignment]
