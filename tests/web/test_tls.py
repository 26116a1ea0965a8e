"""TLS: the certificate, its renewal, and clients that speak something else."""

import asyncio
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.etcd import CERTS
from tests.web.support import DEADLINE, client, get, raw, serving

from kontrol.web.web import Web, WebError


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTS / "ca.pem"))


def curious() -> ssl.SSLContext:
    """A client that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def mounted(tmp_path: Path) -> Path:
    """Return a folder as Kubernetes mounts a Secret: a link to a folder that will be swapped."""
    for name in ("member", "client"):
        folder = tmp_path / name
        folder.mkdir()
        for end, source in (("crt", "pem"), ("key", "key")):
            (folder / f"tls.{end}").write_bytes((CERTS / f"{name}.{source}").read_bytes())
    (tmp_path / "data").symlink_to("member")
    return tmp_path / "data"


def swap(tmp_path: Path, name: str) -> None:
    (tmp_path / "new").symlink_to(name)
    (tmp_path / "new").rename(tmp_path / "data")


def secured(folder: Path) -> Web:
    return Web(names={"localhost"}, tls=(folder / "tls.crt", folder / "tls.key"))


async def shown(port: int) -> bytes:
    """Return the certificate that the endpoint shows now."""
    async with client(port, tls=curious()) as one:
        assert (await one.ask("GET", "/healthz")).status == 200
        link: ssl.SSLObject = one.writer.get_extra_info("ssl_object")
        return link.getpeercert(binary_form=True) or b""


async def test_a_certificate_is_used_and_verified(tmp_path: Path) -> None:
    async with serving(secured(mounted(tmp_path))) as port, client(port, tls=trusting()) as one:
        for _ in range(2):
            assert (await one.ask("GET", "/healthz")).json == {"ok": True}
        assert one.writer.get_extra_info("ssl_object").version() == "TLSv1.3"


async def test_a_renewed_certificate_is_shown_to_new_connections(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(secured(mounted(tmp_path))) as port:
        first = await shown(port)
        async with client(port, tls=trusting()) as old:
            assert (await old.ask("GET", "/healthz")).status == 200
            swap(tmp_path, "client")
            second = await shown(port)
            assert (await old.ask("GET", "/healthz")).status == 200
        assert first != second
        swap(tmp_path, "nothing")
        assert await shown(port) == second
        assert "stays in force" in caplog.text
        swap(tmp_path, "member")
        assert await shown(port) == first


async def test_a_client_without_tls_does_no_harm(tmp_path: Path) -> None:
    web = secured(mounted(tmp_path))
    async with serving(web) as port:
        assert b"200" not in await raw(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        _, writer = await asyncio.open_connection("127.0.0.1", port)  # says nothing
        with pytest.raises((ssl.SSLError, ConnectionError)):  # an alert, or the end before it
            await client(port, tls=_old()).__aenter__()
        assert (await _health(port)) == 200
        writer.close()
    assert web.listener.failed == 0


def _old() -> ssl.SSLContext:
    context = curious()
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="deprecated"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


async def _health(port: int) -> int:
    async with asyncio.timeout(DEADLINE), client(port, tls=trusting()) as one:
        return (await one.ask("GET", "/healthz")).status


@pytest.mark.parametrize(
    ("cert", "key", "says"),
    [
        ("member.pem", "client.key", "not a certificate with its key"),
        ("member.key", "member.key", "not a certificate with its key"),
        ("nothing.pem", "member.key", "cannot be read: No such file"),
    ],
)
def test_a_certificate_that_will_not_do_is_told(cert: str, key: str, says: str) -> None:
    with pytest.raises(WebError, match=rf"KONTROL_TLS_CERT: .*{says}"):
        Web(names=(), tls=(CERTS / cert, CERTS / key))


def test_openssl_is_not_loaded_by_the_endpoint_itself() -> None:
    """An agent without a certificate can do without its 2 MB."""
    script = (
        "import sys; sys.modules['ssl'] = None; import asyncio; del sys.modules['ssl'];"
        "import kontrol.web.web, kontrol.web.access, kontrol.metrics;"
        "assert 'ssl' not in sys.modules and '_ssl' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


async def test_plain_http_without_a_certificate() -> None:
    async with serving(Web(names=())) as port:
        assert (await get(port, "/healthz")).status == 200
