"""OpenSSL stays out of processes that do without it, and where it is needed it is there."""

import subprocess
import sys

import pytest

HIDE = "from kontrol_common.openssl import without_openssl; without_openssl(); "


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["asyncio", "hashlib", "hmac", "secrets"])
def test_what_imports_openssl_does_without(module: str) -> None:
    code = f"{HIDE}import sys, {module}; print(*(sys.modules.get(name) for name in OPENSSL))"
    assert run(f"OPENSSL = ('ssl', '_ssl', '_hashlib'); {code}") == "None None None\n"


def test_hashes_are_the_same() -> None:
    code = (
        "import hashlib, hmac; print(hashlib.md5(b'x', usedforsecurity=False).hexdigest(), "
        "hashlib.sha256(b'x').hexdigest(), hmac.compare_digest(b'x', b'x'))"
    )
    assert run(HIDE + code) == run(code)


def test_an_event_loop_runs() -> None:
    code = "import asyncio; print(asyncio.run(asyncio.sleep(0, 'done')))"
    assert run(HIDE + code) == "done\n"


def test_tls_itself_can_be_imported_later() -> None:
    assert run(f"{HIDE}import ssl; print(ssl.create_default_context().check_hostname)") == "True\n"


def test_what_is_imported_already_stays() -> None:
    code = f"import asyncio, hashlib, sys; {HIDE}print(sys.modules['_hashlib'] is None)"
    assert run(code) == "False\n"
    assert run(f"import asyncio; {HIDE}import asyncio.base_events as b; print(b.ssl)") != "None\n"


def test_without_hashes_of_its_own_python_keeps_those_of_openssl() -> None:
    code = (
        "import importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name: None if name == '_md5' else find(name); "
        f"{HIDE}import hashlib; print(hashlib.md5.__module__)"
    )
    assert run(code) == "_hashlib\n"
