import json
import os
import socket
from pathlib import Path

import pytest

from kontrol.settings import SettingsError, examine, host_facts, load
from kontrol.settings import variables as v
from kontrol.settings.resolve import as_json, as_table, rows
from kontrol.settings.variables import VARIABLES

DEBUG = {"KONTROL_MODE": "debug"}


def mistakes(environ: dict[str, str]) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        load(environ)
    return {mistake.name: str(mistake) for mistake in caught.value.mistakes}


def test_the_host_names_the_pod() -> None:
    assert host_facts({})["KONTROL_ID"] == socket.gethostname()


@pytest.mark.parametrize("name", ["KONTROL_BIND", "KONTROL_HOST"])
def test_the_address_is_the_one_towards_what_is_configured(name: str) -> None:
    assert host_facts({name: "127.0.0.1"})["KONTROL_IP"] == "127.0.0.1"


def test_what_was_found_elsewhere_goes_before_the_host() -> None:
    found = {"KONTROL_ID": "redis-0", "KONTROL_LABELS": '{"app": "a", "role": "b"}'}
    environ = {"KONTROL_MODE": "master", "KONTROL_HOST": "127.0.0.1"}
    settings = load(environ, found)
    assert (settings[v.ID], settings[v.IP]) == ("redis-0", "127.0.0.1")


SECRET_FILES = [
    "KONTROL_TOKEN_FILE",
    "KONTROL_TLS_KEY",
    "KONTROL_ETCD_KEY",
    "KONTROL_ETCD_PASSWORD_FILE",
]


def test_these_are_all_files_of_secrets() -> None:
    assert {variable.name for variable in VARIABLES if variable.secrecy == "file"} == {
        *SECRET_FILES
    }


@pytest.mark.parametrize("name", SECRET_FILES)
@pytest.mark.parametrize(("mode", "warns"), [(0o644, True), (0o640, True), (0o600, False)])
def test_a_secret_that_others_can_read_is_warned_of(
    tmp_path: Path, name: str, mode: int, warns: bool
) -> None:
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(mode)
    notes = [text for level, text in examine({**DEBUG, name: str(path)}).notes]
    warning = f"{name}: {path} can be read by more than its owner (mode {mode:03o}): expected 600"
    assert any(text.startswith(warning) for text in notes) == warns


def test_files_that_cannot_be_read_are_mistakes(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("x")
    wrong = mistakes(
        {
            **DEBUG,
            "KONTROL_KEYS": str(there),
            "KONTROL_TOKEN_FILE": str(tmp_path),
            "KONTROL_INVOKE_ALLOW": str(tmp_path / "absent"),
            "KONTROL_PAYLOAD": str(tmp_path / "comes-later"),
        }
    )
    assert set(wrong) == {"KONTROL_KEYS", "KONTROL_TOKEN_FILE", "KONTROL_INVOKE_ALLOW"}
    assert wrong["KONTROL_KEYS"].endswith("it is a file")
    assert wrong["KONTROL_TOKEN_FILE"].endswith("it is a folder")
    assert wrong["KONTROL_INVOKE_ALLOW"].endswith("no such file or directory")


def test_a_file_without_permission_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "token"
    secret.write_text("x")
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # root may read everything
    assert (
        "permission denied" in mistakes({**DEBUG, "KONTROL_TOKEN_FILE": str(secret)}).popitem()[1]
    )


def test_files_that_can_be_read_are_fine(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x")
    settings = load({**DEBUG, "KONTROL_KEYS": str(tmp_path), "KONTROL_TOKEN_FILE": str(token)})
    assert settings[v.KEYS] == tmp_path


def test_the_report_has_every_variable_and_its_source() -> None:
    resolved = examine({**DEBUG, "KONTROL_TTL": "5"})
    sources = {name: (value, source) for name, value, source in rows(resolved)}
    assert sources["KONTROL_TTL"] == ("5", "environment")
    assert sources["KONTROL_DAMPER_MAX"] == ("60", "default")
    assert sources["KONTROL_ID"] == ("local", "debug mode")
    assert sources["kontrol.unity3d.com/master"] == ("127.0.0.1", "debug mode")
    assert sources["KONTROL_CALLBACK"] == ("", "not set")
    shown = {variable.name for variable in VARIABLES if variable.secrecy != "value"}
    assert shown < set(sources)
    document = json.loads(as_json(resolved))
    assert {"variable": "KONTROL_TTL", "value": "5", "source": "environment"} in document["values"]
    assert document["mistakes"] == []


def test_the_report_shows_mistakes_but_no_secret() -> None:
    urls = {"KONTROL_ETCD": "http://a:hush@e", "KONTROL_MASTER": "http://a:hush@m"}
    resolved = examine({**DEBUG, "KONTROL_TOKEN": "hush", **urls})
    text = as_table(resolved) + as_json(resolved)
    assert "hush" not in text
    assert {item["variable"] for item in json.loads(as_json(resolved))["mistakes"]} == {
        "KONTROL_TOKEN",
        "KONTROL_ETCD",
    }


def test_the_table_stays_one_line_per_variable() -> None:
    resolved = examine({**DEBUG, "KONTROL_CALLBACK": "a\n\x1b[2J\tb"})
    table = as_table(resolved)
    assert "\x1b" not in table
    assert len(table.splitlines()) == 1 + len(rows(resolved))
