import ast
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.ensemble.tiers import Tier
from kontrol.settings import SECRETS, Settings, SettingsError, parse
from kontrol.settings import variables as v
from kontrol.settings.resolve import MASTER, resolve
from kontrol.settings.variables import VARIABLES, text_of

LABELS = json.dumps({"app": "redis", "role": "cache"})
AGENT = {
    "KONTROL_ID": "redis-0",
    "KONTROL_IP": "10.0.0.7",
    "KONTROL_LABELS": LABELS,
    "KONTROL_ANNOTATIONS": json.dumps({MASTER: "masters,other:9000"}),
}
BOTH = {**AGENT, "KONTROL_MODE": "agent,master", "KONTROL_ETCD": "etcd", "KONTROL_CALLBACK": "x"}


def refused(environ: dict[str, str]) -> dict[str, str]:
    """Return the mistakes by name; there must be some."""
    with pytest.raises(SettingsError) as caught:
        parse(environ)
    text = str(caught.value)
    assert all(
        mistake.name in text and mistake.expected in text for mistake in caught.value.mistakes
    )
    return {mistake.name: str(mistake) for mistake in caught.value.mistakes}


def texts(settings: Settings) -> list[str]:
    return [text for _, text in settings.notes]


def test_an_agent_has_the_documented_defaults() -> None:
    settings = parse(AGENT)
    assert settings.agent
    assert not settings.master
    assert not settings.verbose
    assert (settings[v.PORT], settings[v.HTTP_PORT], settings[v.BIND]) == (8000, 8001, "*")
    assert (settings[v.TTL], settings[v.DAMPER], settings[v.DAMPER_MAX]) == (25, 10, 60)
    assert (settings[v.FOVER], settings[v.BRAKE]) == (15, 50)
    assert settings.tiers == (Tier("masters", 8000), Tier("other", 9000))
    assert (settings.app, settings.role, settings[v.NAMESPACE]) == (
        "redis",
        "cache",
        "default",
    )
    assert settings.invoke == "off"
    assert settings[v.CALLBACK] is None
    assert settings.argv == ()
    assert settings[v.LOG] == "text"
    assert settings.notes == ()


def test_settings_cannot_be_changed() -> None:
    settings = parse(BOTH)
    with pytest.raises(AttributeError):
        settings.tiers = ()  # type: ignore[misc]  # that is the point
    with pytest.raises(TypeError):
        settings.by_name["KONTROL_TTL"] = 1  # type: ignore[index]  # that is the point
    other = settings.replace(v.TTL, 7)
    assert (settings[v.TTL], other[v.TTL], other.tiers) == (25, 7, settings.tiers)


def test_an_empty_variable_is_an_unset_one() -> None:
    blank = {variable.name: " " for variable in VARIABLES}
    assert parse({**blank, **AGENT}) == parse(AGENT)


def test_every_mistake_in_one_go() -> None:
    mistakes = refused(
        {
            "KONTROL_MODE": "agent,master",
            "KONTROL_PORT": "http",
            "KONTROL_FOVER": "2",
            "KONTROL_TTL": "1",
            "KONTROL_IP": "here",
        }
    )
    assert set(mistakes) == {
        "KONTROL_PORT",
        "KONTROL_FOVER",
        "KONTROL_TTL",
        "KONTROL_IP",
        "KONTROL_ID",
        "KONTROL_LABELS",
        "KONTROL_ANNOTATIONS",
        "KONTROL_ETCD",
    }
    assert mistakes["KONTROL_FOVER"] == (
        "KONTROL_FOVER='2': expected a number of seconds from 3 to 86400"
    )


def test_the_environment_goes_before_what_was_found() -> None:
    found = {"KONTROL_IP": "10.9.9.9", "KONTROL_EIP": "1.2.3.4"}
    settings = parse(AGENT, found)
    assert settings[v.IP] == "10.0.0.7"
    assert settings[v.EIP] == "1.2.3.4"
    resolved = resolve(AGENT, found)
    assert resolved.entries["KONTROL_IP"].source == "environment"
    assert resolved.entries["KONTROL_EIP"].source == "found"
    assert resolved.entries["KONTROL_TTL"].source == "default"


def test_debug_needs_nothing_else() -> None:
    settings = parse({"KONTROL_MODE": "debug"})
    assert settings.agent
    assert settings.master
    assert settings.verbose
    assert (settings[v.ID], settings[v.IP]) == ("local", "127.0.0.1")
    assert (settings.app, settings.role) == ("test", "test")
    assert settings.tiers == (Tier("127.0.0.1", 8000),)
    assert settings.etcd.addresses == ("127.0.0.1:2379",)


@pytest.mark.parametrize("host", ["10.0.0.9", "fd00::9"])
def test_debug_takes_the_host_for_everything(host: str) -> None:
    settings = parse({"KONTROL_MODE": "debug", "KONTROL_HOST": host, "KONTROL_PORT": "9000"})
    assert settings[v.IP] == host
    assert settings.tiers == (Tier(host, 9000),)
    assert settings.etcd.addresses == (f"{Tier(host, 2379)}",)


def test_debug_with_a_host_by_name_takes_the_address_found() -> None:
    environ = {"KONTROL_MODE": "debug", "KONTROL_HOST": "minikube"}
    assert parse(environ, {"KONTROL_IP": "10.1.1.1"})[v.IP] == "10.1.1.1"


def test_what_debug_presumes_can_be_overruled() -> None:
    settings = parse({**BOTH, "KONTROL_MODE": "debug"})
    assert settings[v.ID] == "redis-0"
    assert settings.etcd.addresses == ("etcd:2379",)
    assert settings.tiers[0].host == "masters"


def test_etcd_is_on_the_host_unless_said_otherwise() -> None:
    environ = {**BOTH, "KONTROL_ETCD": "", "KONTROL_HOST": "node-1"}
    assert parse(environ).etcd.addresses == ("node-1:2379",)


@pytest.mark.parametrize(
    ("more", "unsafe"),
    [({}, False), ({"KONTROL_ETCD_UNSAFE": "TRUE"}, True), ({"KONTROL_MODE": "debug"}, True)],
)
def test_an_etcd_that_loses_data_is_for_debug_or_who_asks(
    more: dict[str, str], unsafe: bool
) -> None:
    assert parse({**BOTH, **more})[v.ETCD_UNSAFE] is unsafe


def test_embedded_etcd_needs_a_folder() -> None:
    environ = {**BOTH, "KONTROL_ETCD": "embedded"}
    assert set(refused(environ)) == {"KONTROL_DATA"}
    settings = parse({**environ, "HOME": "/root"})
    assert settings[v.ETCD] is not None
    assert settings.etcd.addresses == ()
    assert settings[v.DATA] == Path("/root/.local/share/kontrol")
    assert parse({**environ, "XDG_DATA_HOME": "/var/x"})[v.DATA] == Path("/var/x/kontrol")
    assert parse({**environ, "KONTROL_DATA": "/data"})[v.DATA] == Path("/data")


def test_an_agent_alone_needs_no_etcd_and_a_master_alone_no_tier() -> None:
    assert parse(AGENT)[v.ETCD] is None
    master = {**BOTH, "KONTROL_MODE": "master", "KONTROL_ANNOTATIONS": ""}
    assert parse(master).tiers == ()


@pytest.mark.parametrize("annotations", ["", "{}", json.dumps({MASTER: " "})])
def test_an_agent_needs_a_tier(annotations: str) -> None:
    mistakes = refused({**AGENT, "KONTROL_ANNOTATIONS": annotations})
    assert "the tiers to report to" in mistakes["KONTROL_ANNOTATIONS"]


def test_bad_tiers_are_named_by_their_annotation() -> None:
    mistakes = refused({**AGENT, "KONTROL_ANNOTATIONS": json.dumps({MASTER: "a:b:c,"})})
    assert set(mistakes) == {MASTER}


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"KONTROL_HTTP_PORT": "8000"}, "KONTROL_HTTP_PORT"),
        ({"KONTROL_DAMPER_MAX": "5"}, "KONTROL_DAMPER_MAX"),
        ({"KONTROL_ETCD_CA": "/ca"}, "KONTROL_ETCD_CA"),
        ({"KONTROL_ETCD_USER": "root"}, "KONTROL_ETCD_PASSWORD_FILE"),
        ({"KONTROL_ETCD_PASSWORD_FILE": "/p"}, "KONTROL_ETCD_USER"),
        ({"KONTROL_ETCD": "https://e", "KONTROL_ETCD_CERT": "/c"}, "KONTROL_ETCD_KEY"),
        ({"KONTROL_TLS_KEY": "/k"}, "KONTROL_TLS_CERT"),
        ({"KONTROL_INVOKE": "insecure", "KONTROL_KEYS": "/keys"}, "KONTROL_INVOKE"),
        ({"KONTROL_CALLBACK": "echo 'a"}, "KONTROL_CALLBACK"),
        ({"KONTROL_CALLBACK_TIMEOUT": "0"}, "KONTROL_CALLBACK_TIMEOUT"),
        ({"KONTROL_POD_KEY": "a/b"}, "KONTROL_POD_KEY"),
        ({"KONTROL_POD_KEY": "--all"}, "KONTROL_POD_KEY"),
        ({"NAMESPACE": "a/b"}, "NAMESPACE"),
        ({"KONTROL_LOG": "xml"}, "KONTROL_LOG"),
    ],
)
def test_values_that_do_not_go_together(extra: dict[str, str], name: str) -> None:
    assert set(refused({**BOTH, **extra})) == {name}


def test_callback() -> None:
    plain = parse({**BOTH, "KONTROL_CALLBACK": "run 'a b'"})
    assert plain.argv == ("run", "a b")
    assert plain[v.CALLBACK_TIMEOUT] is None
    line = "a | b 'c"
    shell = parse(
        {
            **BOTH,
            "KONTROL_CALLBACK": line,
            "KONTROL_SHELL_CALLBACK": "TRUE",
            "KONTROL_CALLBACK_TIMEOUT": "0.5",
        }
    )
    assert shell.argv == ("/bin/sh", "-c", line)
    assert shell[v.CALLBACK_TIMEOUT] == 0.5


def test_the_longest_damper_has_the_longest_bound() -> None:
    assert parse({**AGENT, "KONTROL_DAMPER": "86400"})[v.DAMPER_MAX] == 86400


@pytest.mark.parametrize(
    ("extra", "invoke"),
    [
        ({}, "off"),
        ({"KONTROL_INVOKE": "insecure"}, "insecure"),
        ({"KONTROL_KEYS": "/keys"}, "keys"),
        ({"KONTROL_KEYS": "/keys", "KONTROL_INVOKE": "off"}, "off"),
    ],
)
def test_invoke(extra: dict[str, str], invoke: str) -> None:
    assert parse({**AGENT, **extra}).invoke == invoke


@pytest.mark.parametrize(
    ("extra", "tls"),
    [
        ({}, False),
        ({"KONTROL_TLS_CERT": "/cert", "KONTROL_TLS_KEY": "/key"}, True),
        ({"KONTROL_ETCD": "https://etcd"}, True),
        ({"KONTROL_ETCD": "https://etcd", "KONTROL_MODE": "agent"}, False),
    ],
)
def test_whether_the_process_speaks_tls(extra: dict[str, str], tls: bool) -> None:
    assert parse({**BOTH, **extra}).tls is tls


def test_commands_from_every_client_are_a_warning() -> None:
    assert "every client that reaches" in texts(parse({**AGENT, "KONTROL_INVOKE": "insecure"}))[0]
    assert texts(parse({**AGENT, "KONTROL_INVOKE": "off"})) == []


def test_service_links_are_ignored_in_one_line() -> None:
    links = {
        "KONTROL_PORT": "tcp://10.0.0.1:8000",
        "KONTROL_HTTP_PORT": "tcp://10.0.0.1:8001",
        "KONTROL_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "KONTROL_PORT_8000_TCP_ADDR": "10.0.0.1",
        "KONTROL_SERVICE_HOST": "10.0.0.1",
        "KONTROL_SERVICE_PORT": "8000",
        "KONTROL_SERVICE_PORT_RPC": "8000",
        "KONTROL_MASTERS_SERVICE_HOST": "10.0.0.1",
        "KONTROL_MASTERS_PORT": "tcp://10.0.0.1:8000",
    }
    settings = parse({**AGENT, **links})
    assert (settings[v.PORT], settings[v.HTTP_PORT]) == (8000, 8001)
    [(level, text)] = settings.notes
    assert level == logging.INFO
    assert all(name in text for name in links)
    assert "enableServiceLinks: false" in text


def test_an_unknown_variable_is_a_warning_that_names_the_nearest() -> None:
    settings = parse({**AGENT, "KONTROL_DAMPR": "1", "KONTROL_FAILOVER": "2", "PATH": "/bin"})
    assert texts(settings) == [
        "KONTROL_DAMPR is unknown: did you mean KONTROL_DAMPER?",
        "KONTROL_FAILOVER is unknown: did you mean KONTROL_FOVER?",
    ]


def test_a_password_in_the_clear_is_a_warning() -> None:
    settings = parse(
        {**BOTH, "KONTROL_ETCD_USER": "root", "KONTROL_ETCD_PASSWORD_FILE": "/run/secrets/etcd"}
    )
    assert "in the clear" in texts(settings)[0]


@pytest.mark.parametrize("name", ["KONTROL_ETCD_PASSWORD", "KONTROL_TOKEN"])
def test_secrets_are_refused_and_never_shown(name: str) -> None:
    mistakes = refused({**BOTH, name: "hush-hush", "KONTROL_ETCD": "http://a:hush-hush@etcd"})
    assert set(mistakes) == {name, "KONTROL_ETCD"}
    assert "hush" not in "".join(mistakes.values())
    assert "***@etcd" in mistakes["KONTROL_ETCD"]


def test_what_children_must_not_see() -> None:
    assert {
        "KONTROL_ETCD_PASSWORD",
        "KONTROL_ETCD_PASSWORD_FILE",
        "KONTROL_ETCD_KEY",
        "KONTROL_TLS_KEY",
        "KONTROL_TOKEN",
        "KONTROL_TOKEN_FILE",
    } == SECRETS


@given(
    st.dictionaries(
        st.sampled_from([variable.name for variable in VARIABLES]), st.text(max_size=20)
    )
)
def test_any_environment_gives_settings_or_settings_error(environ: dict[str, str]) -> None:
    try:
        settings = parse(environ)
    except SettingsError as error:
        assert error.mistakes
    else:
        assert parse(environ) == settings


@given(st.sampled_from(["http://", "https://", ""]), st.text("abc:/@,", max_size=12))
def test_what_stands_before_an_at_sign_is_never_shown(scheme: str, junk: str) -> None:
    environ = {**BOTH, "KONTROL_ETCD": f"{scheme}u:hush{junk}@etcd:2379"}
    assert "hush" not in "".join(refused(environ).values())


def test_defaults_of_the_table_are_valid() -> None:
    for variable in VARIABLES:
        if default := text_of(variable.default, {"HOME": "/root"}):
            variable.parse(default)


SETTABLE = [variable for variable in VARIABLES if variable.secrecy != "value"]
SAMPLE = {variable.name: variable.example for variable in SETTABLE}


def test_the_examples_of_the_table_go_together() -> None:
    settings = parse(SAMPLE)
    assert settings.notes == ()
    for variable in SETTABLE:
        assert settings[variable] == variable.parse(variable.example), variable.name


@pytest.mark.parametrize("name", SAMPLE)
def test_every_variable_makes_a_difference(name: str) -> None:
    """Without it, the sample is refused or is another one: no example is a default."""
    try:
        settings = parse({**SAMPLE, name: ""})
    except SettingsError as error:
        assert error.mistakes
    else:
        assert settings != parse(SAMPLE)


def test_a_row_says_in_its_type_that_it_may_be_without_a_value() -> None:
    """Mypy believes the type: without None in it, there must be a value in every mode."""
    for node in ast.parse(Path(v.__file__).read_text("utf-8")).body:
        match node:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=ast.Subscript(value=ast.Name(id="Variable"), slice=kind)),
            ):
                row = getattr(v, name)
                certain = isinstance(row.default, str) and row.default
                always = row.required and not row.used_by
                assert ("None" in ast.unparse(kind)) is not bool(
                    certain or always or name == "DAMPER_MAX"
                )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KONTROL_ID", "$(reboot)"),
        ("KONTROL_ZONE", "a;b"),
        ("KONTROL_HOSTNAME", "-n"),
        ("KONTROL_IP", "255.255.255.255"),
        ("KONTROL_LABELS", '{"app": "a", "role": "b", "x y": "z"}'),
        ("KONTROL_NODE_LABELS", '{"topology.kubernetes.io/zone": "a b"}'),
    ],
)
def test_a_name_that_masters_would_refuse_is_a_mistake(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=name):
        parse({**BOTH, name: text})


def test_a_zone_that_is_set_goes_before_the_node_s_label() -> None:
    labels = '{"topology.kubernetes.io/zone": "a b"}'
    parse({**BOTH, "KONTROL_NODE_LABELS": labels, "KONTROL_ZONE": "a"})
