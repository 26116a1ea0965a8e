"""Objects as kubectl sends them where it creates them by itself: in Protocol Buffers.

Read without descriptors, as far as a test needs it: name, labels, data, and whose template a Job
has. The numbers are those of `generated.proto` in k8s.io/api.
"""

import base64

from tests.deploy.manifests import Object

TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"
Fields = dict[int, list[bytes]]


def decode(raw: bytes) -> Object:
    """Return the object: kind, metadata (with `owner`, the name of whose it is), data, type."""
    assert raw.startswith(_MAGIC), raw[:20]
    unknown = _fields(raw.removeprefix(_MAGIC))
    told = _fields(unknown[1][0])
    kind = told[2][0].decode("utf-8")
    fields = _fields(unknown[2][0])
    metadata = _fields(fields[1][0])
    item: Object = {
        "apiVersion": told[1][0].decode("utf-8"),
        "kind": kind,
        "metadata": {"name": metadata[1][0].decode("utf-8")},
    }
    if 11 in metadata:
        item["metadata"]["labels"] = _table(metadata[11])
    for owner in metadata.get(13, []):
        item["metadata"]["owner"] = _fields(owner)[3][0].decode("utf-8")
    if kind == "ConfigMap":
        item["data"] = _table(fields.get(2, []))
    elif kind == "Secret":
        data = {key: base64.b64encode(value) for key, value in _pairs(fields.get(2, []))}
        item["data"] = {key: value.decode("ascii") for key, value in data.items()}
        item["type"] = fields[3][0].decode("utf-8")
    return item


def _table(entries: list[bytes]) -> dict[str, str]:
    return {key: value.decode("utf-8") for key, value in _pairs(entries)}


def _pairs(entries: list[bytes]) -> list[tuple[str, bytes]]:
    return [(each[1][0].decode("utf-8"), each[2][0]) for each in map(_fields, entries)]


def _fields(raw: bytes) -> Fields:
    """Return the fields of a message that have a length; numbers are left out."""
    found: Fields = {}
    place = 0
    while place < len(raw):
        tag, place = _varint(raw, place)
        if tag & 7 == 2:
            size, place = _varint(raw, place)
            found.setdefault(tag >> 3, []).append(raw[place : place + size])
            place += size
        else:
            assert tag & 7 == 0, tag
            _, place = _varint(raw, place)
    return found


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
