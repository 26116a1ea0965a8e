import logging
import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontrol.boot.facts import Fact, encode
from kontrol.boot.run import configure_telegraf
from kontrol.boot.telegraf import (
    ANNOTATION,
    BadAnnotation,
    Metrics,
    OpenTSDB,
    opentsdb,
    quote,
    render,
    tags,
    write,
)

TARGET = OpenTSDB("tcp://tsdb", 4242)
OURS = Metrics("127.0.0.1", 8001, tls=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def test_labels_become_tags_without_their_qualifier_and_the_pods_go_first() -> None:
    node = {
        "kubernetes.io/hostname": "node-1",
        "unity3d.com/array": "front",
        "kubernetes.io/arch": "amd64",
        "app": "of the node",
    }
    pod = {
        "app": "redis",
        "role": "cache",
        "tier": "data",
        "kontrol.unity3d.com/array": "back",
        "x.unity3d.com/empty": "",
    }
    assert tags(node, pod) == {
        "app": "redis",
        "array": "back",
        "hostname": "node-1",
        "role": "cache",
    }


def test_the_configuration_as_telegraf_reads_it() -> None:
    text = render(TARGET, {"app": "redis", "role": "cache"}, OURS)
    document = tomllib.loads(text)
    assert document["global_tags"] == {"app": "redis", "role": "cache"}
    assert document["agent"]["interval"] == "10s"
    assert document["outputs"] == {"opentsdb": [{"host": "tcp://tsdb", "port": 4242}]}
    assert document["inputs"] == {
        "prometheus": [{"urls": ["http://127.0.0.1:8001/metrics"], "metric_version": 2}]
    }


def test_metrics_by_tls_on_an_ipv6_address_and_none() -> None:
    document = tomllib.loads(render(TARGET, {}, Metrics("::1", 9, tls=True)))
    [prometheus] = document["inputs"]["prometheus"]
    assert prometheus["urls"] == ["https://[::1]:9/metrics"]
    assert prometheus["insecure_skip_verify"] is True
    assert "inputs" not in tomllib.loads(render(TARGET, {}, None))


@given(st.dictionaries(TEXTS, TEXTS))
def test_any_tag_is_read_back_by_a_toml_parser(entries: dict[str, str]) -> None:
    text = render(TARGET, entries, OURS)
    assert tomllib.loads(text)["global_tags"] == entries


@pytest.mark.parametrize(
    "value", ['say "hi"', "two\nlines\r\n", "back\\slash", "Zürich 東京 🎲", "\x00\x7f\x85\u2028"]
)
def test_hard_values_are_read_back(value: str) -> None:
    assert tomllib.loads(f"a = {quote(value)}") == {"a": value}


def test_telegraf_finds_nothing_to_put_in_place_of_a_label() -> None:
    text = render(TARGET, {"app": "$HOME ${HOME} @{store:key} # no"}, None)
    tag = next(line for line in text.splitlines() if line.startswith('"app"'))
    assert not set("$@#") & set(tag)
    assert tomllib.loads(text)["global_tags"]["app"] == "$HOME ${HOME} @{store:key} # no"


def test_a_lone_surrogate_is_replaced() -> None:
    assert tomllib.loads(f"a = {quote(chr(0xD800))}") == {"a": "\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("kairosdb.us-east-1.example", OpenTSDB("tcp://kairosdb.us-east-1.example", 4242)),
        (" tsdb:4343 ", OpenTSDB("tcp://tsdb", 4343)),
        ("tcp://tsdb:4343", OpenTSDB("tcp://tsdb", 4343)),
        ("HTTP://tsdb/", OpenTSDB("http://tsdb", 4242)),
        ("10.0.0.9", OpenTSDB("tcp://10.0.0.9", 4242)),
        ("fd00::9", OpenTSDB("tcp://[fd00::9]", 4242)),
        ("[fd00::9]:1", OpenTSDB("tcp://[fd00::9]", 1)),
    ],
)
def test_where_metrics_go(text: str, target: OpenTSDB) -> None:
    assert opentsdb(text) == target


@pytest.mark.parametrize(
    "text",
    ["a,b", "a|b", "tsdb:99999", "tsdb:x", "ftp://tsdb", "http://tsdb/api", "a b", ""],
)
def test_a_bad_annotation_is_shown_with_what_is_expected(text: str) -> None:
    with pytest.raises(BadAnnotation, match=r"expected one host or host:port") as caught:
        opentsdb(text)
    assert repr(text) in str(caught.value)


@given(st.text())
def test_any_annotation_is_taken_or_refused(text: str) -> None:
    try:
        target = opentsdb(text)
    except BadAnnotation:
        return
    [output] = tomllib.loads(render(target, {}, None))["outputs"]["opentsdb"]
    assert (output["host"], output["port"]) == target


def test_a_file_is_put_in_place_whole(tmp_path: Path) -> None:
    path = tmp_path / "telegraf.conf"
    path.write_text("old", "utf-8")
    write(path, "é")
    assert path.read_text("utf-8") == "é"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [each.name for each in tmp_path.iterdir()] == ["telegraf.conf"]
    write(path, None)
    write(path, None)
    assert [each.name for each in tmp_path.iterdir()] == []


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "telegraf.conf"
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        write(path, "x")
    assert [each.name for each in tmp_path.iterdir()] == ["telegraf.conf"]


def facts(annotations: dict[str, str], **labels: str) -> dict[str, Fact]:
    return {
        "KONTROL_LABELS": Fact(encode(labels), "api"),
        "KONTROL_ANNOTATIONS": Fact(encode(annotations), "api"),
        "KONTROL_NODE_LABELS": Fact(encode({"kubernetes.io/hostname": "n"}), "node"),
    }


def test_an_annotation_gives_a_configuration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "telegraf.conf"
    configure_telegraf(path, facts({ANNOTATION: "tsdb"}, app="redis"), OURS)
    document = tomllib.loads(path.read_text("utf-8"))
    assert document["global_tags"] == {"app": "redis", "hostname": "n"}
    assert f"telegraf sends to tcp://tsdb port 4242: {path}" in caplog.text


@pytest.mark.parametrize(
    ("annotations", "line"),
    [
        ({}, "no telegraf configuration: the pod has no annotation kontrol.unity3d.com/opentsdb"),
        ({ANNOTATION: " "}, "the pod has no annotation"),
        ({ANNOTATION: "tsdb:0"}, "annotation kontrol.unity3d.com/opentsdb='tsdb:0': expected one"),
    ],
)
def test_without_a_good_annotation_an_old_configuration_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, annotations: dict[str, str], line: str
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "telegraf.conf"
    path.write_text("old", "utf-8")
    configure_telegraf(path, facts(annotations), OURS)
    assert not path.exists()
    assert line in caplog.text


def test_nothing_known_and_no_folder_is_fine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configure_telegraf(tmp_path / "absent" / "telegraf.conf", {}, None)
    (tmp_path / "file").touch()
    configure_telegraf(tmp_path / "file" / "telegraf.conf", {}, None)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_place_that_cannot_be_written_is_a_line_with_the_fix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "absent" / "telegraf.conf"
    configure_telegraf(path, facts({ANNOTATION: "tsdb"}), OURS)
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage() == (
        f"telegraf's configuration {path} cannot be written: no such file or directory; set "
        "another path in KONTROL_TELEGRAF_CONF"
    )
    path = tmp_path / "folder"
    (path / "inner").mkdir(parents=True)
    configure_telegraf(path, {}, OURS)
    assert f"{path} cannot be removed: is a directory" in caplog.text
