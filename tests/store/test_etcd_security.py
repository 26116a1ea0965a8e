"""TLS with client certificates, users, and tokens that expire or die with their member."""

import asyncio
import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.store.etcd_helpers import client, confirmation, get, now, put, secured, take
from tests.support.etcd import CERTS, EtcdCluster
from tests.support.proxy import Proxy

from kontrol.store.etcd import EtcdConfig, EtcdStore
from kontrol.store.etcd.watch import EtcdWatch
from kontrol.store.protocol import Ambiguous, Denied, Range, Unavailable

JWT = (
    "--auth-token=jwt,"
    f"pub-key={CERTS / 'member.pem'},priv-key={CERTS / 'member.key'},sign-method=ES256,ttl=2s"
)


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("secret\n", "utf-8")
    return path


async def test_a_client_certificate_lets_in() -> None:
    async with (
        EtcdCluster(tls=True) as cluster,
        client(cluster.endpoints, secured(cluster)) as store,
    ):
        await put(store, "/k/a", b"1")
        assert await get(store, "/k/a") == b"1"
        lease = await store.grant(10)
        assert await store.refresh(lease.id) == 10


async def test_without_the_certificate_nothing_is_reached() -> None:
    async with EtcdCluster(tls=True) as cluster:
        for config in (
            replace(secured(cluster), cert=None, key=None, timeout=1.0),
            replace(secured(cluster), ca=None, timeout=1.0),
            EtcdConfig(tuple(cluster.endpoints), timeout=1.0),
        ):
            async with EtcdStore(config) as store:
                with pytest.raises(Unavailable, match="cannot connect"):
                    await put(store, "/k/a", b"1")


async def test_certificates_replaced_on_disk_are_taken(tmp_path: Path) -> None:
    names = ("ca.pem", "client.pem", "client.key")
    ca, cert, key = paths = [tmp_path / name for name in names]
    for path, name in zip(paths, ("client.pem", "member.pem", "member.key"), strict=True):
        shutil.copy(CERTS / name, path)
    async with EtcdCluster(tls=True) as cluster:
        config = EtcdConfig(tuple(cluster.endpoints), ca=ca, cert=cert, key=key, timeout=1.0)
        async with EtcdStore(config) as store:
            with pytest.raises(Unavailable, match="cannot connect"):
                await now(store)
            for path, name in zip(paths, names, strict=True):
                shutil.copy(CERTS / name, path)
            assert (await now(store)).revision


async def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pem"):
        EtcdStore(EtcdConfig(("127.0.0.1:1",), ca=tmp_path / "none.pem"))


async def test_users_with_certificates_over_tokens_that_expire(password: Path) -> None:
    async with EtcdCluster(3, tls=True, options=("--auth-token-ttl=1",)) as cluster:
        await cluster.enable_auth("kontrol", "secret", "/k/")
        async with client(cluster.endpoints, secured(cluster, "kontrol", password)) as store:
            start = await put(store, "/k/a", b"0") + 1
            async with store.watch("/k/", prefix=True, start=start) as watch:
                batches = aiter(watch)
                for i in (1, 2):
                    await asyncio.sleep(2.5)  # time itself: no token outlives it
                    await put(store, "/k/a", str(i).encode())
                    assert [e.kv.value for e in await take(batches, 1)] == [str(i).encode()]
                lease = await store.grant(10)
                assert await store.refresh(lease.id) == 10
                await cluster.kill(0)
                with contextlib.suppress(Ambiguous):  # if it was under way to the member that died
                    await put(store, "/k/a", b"2")
                await put(store, "/k/a", b"3")
                while (await take(batches, 1))[-1].kv.value != b"3":
                    pass


async def test_a_restarted_member_may_know_no_token(password: Path) -> None:
    async with EtcdCluster() as cluster:
        await cluster.enable_auth("kontrol", "secret", "/k/")
        config = EtcdConfig(tuple(cluster.endpoints), user="kontrol", password_file=password)
        async with client(cluster.endpoints, config) as store:
            start = await put(store, "/k/a") + 1
            async with store.watch("/k/", prefix=True, start=start) as watch:
                for _ in range(2):
                    await cluster.kill(0)
                    await cluster.start(0)
                    await put(store, "/k/a")
                assert len(await take(aiter(watch), 2)) == 2


async def test_a_watch_resumed_on_an_expired_token_logs_in_again(password: Path) -> None:
    async with EtcdCluster(options=(JWT,)) as cluster, Proxy(cluster.endpoints[0]) as proxy:
        await cluster.enable_auth("kontrol", "secret", "/k/")
        config = EtcdConfig((proxy.endpoint,), user="kontrol", password_file=password)
        async with client([proxy.endpoint], config) as store:
            start = await put(store, "/k/a", b"1") + 1
            async with store.watch("/k/", prefix=True, start=start) as watch:
                batches = aiter(watch)
                for i in (2, 3):
                    proxy.dead()
                    proxy.cut()
                    await asyncio.sleep(2.5)  # time itself: no token outlives it
                    proxy.heal()
                    await put(store, "/k/a", str(i).encode())
                    assert [e.kv.value for e in await take(batches, 1)] == [str(i).encode()]


async def test_a_watch_whose_token_was_refused_logs_in_once_more(
    password: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, tokens = EtcdWatch._look, ["expired.2", "expired.1"]

    async def expire(watch: EtcdWatch) -> int:
        revision = await look(watch)
        if tokens:
            watch._client.member._token = tokens.pop()
        return revision

    monkeypatch.setattr(EtcdWatch, "_look", expire)
    async with EtcdCluster() as cluster:
        await cluster.enable_auth("kontrol", "secret", "/k/")
        config = EtcdConfig(tuple(cluster.endpoints), user="kontrol", password_file=password)
        async with client(cluster.endpoints, config) as store:
            start = await put(store, "/k/a") + 1
            async with store.watch("/k/", prefix=True, start=start) as watch:
                with pytest.raises(Denied):  # of two refusals in a row, the second counts
                    await take(aiter(watch), 1)
            tokens.append("expired.3")
            async with store.watch("/k/", prefix=True, start=start) as watch:
                await put(store, "/k/a")
                await take(aiter(watch), 1)


async def test_a_change_of_roles_makes_tokens_old_without_an_error(password: Path) -> None:
    async with EtcdCluster(options=(JWT,)) as cluster:
        await cluster.enable_auth("kontrol", "secret", "/k/")
        config = EtcdConfig(tuple(cluster.endpoints), user="kontrol", password_file=password)
        async with client(cluster.endpoints, config) as store:
            for i in range(3):
                await put(store, "/k/a")
                await cluster.ctl("role", "add", f"another-{i}")
                assert await get(store, "/k/a") == b""


async def test_what_is_not_permitted_is_denied(password: Path) -> None:
    async with EtcdCluster() as cluster:
        await cluster.enable_auth("kontrol", "secret", "/k/")
        config = EtcdConfig(tuple(cluster.endpoints), user="kontrol", password_file=password)
        async with client(cluster.endpoints, config) as store:
            with pytest.raises(Denied, match="permission denied"):
                await put(store, "/other")
            with pytest.raises(Denied):
                await store.range(Range("/", prefix=True))
            start = await put(store, "/k/a") + 1
            async with store.watch("/", prefix=True, start=start) as watch:
                with pytest.raises(Denied):
                    await take(aiter(watch), 1)
            async with store.watch("/k/", prefix=True, start=start) as watch:
                asked = asyncio.get_running_loop().time()
                await watch.confirm()
                assert await confirmation(aiter(watch), asked) == []


async def test_a_permission_taken_away_ends_the_next_stream(password: Path) -> None:
    async with EtcdCluster() as cluster, Proxy(cluster.endpoints[0]) as proxy:
        await cluster.enable_auth("kontrol", "secret", "/k/")
        config = EtcdConfig((proxy.endpoint,), user="kontrol", password_file=password)
        async with client([proxy.endpoint], config) as store:
            start = await put(store, "/k/a") + 1
            async with store.watch("/k/", prefix=True, start=start) as watch:
                batches = aiter(watch)
                await watch.confirm()
                await anext(batches)
                await cluster.ctl("role", "revoke-permission", "kontrol", "/k/", "--prefix=true")
                proxy.cut()
                with pytest.raises(Denied):
                    await take(batches, 1)


async def test_a_wrong_password_is_denied_and_a_right_one_is_read_again(password: Path) -> None:
    write, remove = password.write_text, password.unlink
    async with EtcdCluster(options=("--auth-token-ttl=1",)) as cluster:
        await cluster.enable_auth("kontrol", "secret", "/k/")
        write("wrong", "utf-8")
        config = EtcdConfig(tuple(cluster.endpoints), user="kontrol", password_file=password)
        async with client(cluster.endpoints, config) as store:
            with pytest.raises(Denied, match="authentication failed"):
                await put(store, "/k/a")
            write("secret", "utf-8")
            await put(store, "/k/a")
            remove()
            await asyncio.sleep(2.5)  # time itself: no token outlives it
            with pytest.raises(Denied, match="cannot be read"):
                await put(store, "/k/a")


async def test_a_user_is_asked_for_where_one_is_needed(password: Path) -> None:
    async with EtcdCluster() as cluster, client(cluster.endpoints) as store:
        await put(store, "/k/a")
        await cluster.enable_auth("kontrol", "secret", "/k/")
        with pytest.raises(Denied, match="set a user"):
            await put(store, "/k/a")
        async with store.watch("/k/a", start=2) as watch:
            with pytest.raises(Denied, match="set a user"):
                await take(aiter(watch), 1)


async def test_a_user_may_be_configured_before_etcd_has_users(password: Path) -> None:
    async with EtcdCluster() as cluster:
        config = EtcdConfig(tuple(cluster.endpoints), user="kontrol", password_file=password)
        async with client(cluster.endpoints, config) as store:
            start = await put(store, "/k/a") + 1
            async with store.watch("/k/", prefix=True, start=start) as watch:
                await cluster.enable_auth("kontrol", "secret", "/k/")
                await put(store, "/k/a")
                await take(aiter(watch), 1)
                assert (await store.range(Range("/k/a"))).header.revision == start


async def test_many_at_once_share_one_log_in(password: Path) -> None:
    async with EtcdCluster() as cluster:
        await cluster.enable_auth("kontrol", "secret", "/k/")
        before = await cluster.metric(0, "grpc_server_handled_total", "Authenticate")
        config = EtcdConfig(tuple(cluster.endpoints), user="kontrol", password_file=password)
        async with client(cluster.endpoints, config) as store:
            await asyncio.gather(*(now(store) for _ in range(100)))
        after = await cluster.metric(0, "grpc_server_handled_total", "Authenticate")
        assert after - before == 1
