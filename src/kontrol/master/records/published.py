"""The record of what is published, and what agents are sent of it. Pure.

All documents are one record, so that no reader sees a part of them, or a version with others.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from kontrol.ensemble.canonical import JSON, NotJSON, canonical, parse
from kontrol.master.records.fields import HIGHEST_RUN, MOST, Damaged, Fields, Record

PUBLISHED_LIMIT = 512 * 1024  # bytes of JSON that agents are sent
MOST_DOCUMENTS = 1000
DOCUMENT_DEPTH = 64  # arrays and objects within each other
KEY_LIMIT = 128  # characters

HIGHEST_VERSION = 2**53 - 1  # what readers of JSON in any language keep
BELIEVED_VERSION = 2**50  # a higher one is not true: the next versions would run out

_KEY = re.compile(rf"[0-9A-Za-z._:/-]{{1,{KEY_LIMIT}}}\Z")
_MAX_RECORD = 2 * PUBLISHED_LIMIT
_RECORD_DEPTH = 2 * DOCUMENT_DEPTH


class NotPublished(Exception):
    """A document was not published; the text says why, and how to fix it."""


@dataclass(frozen=True, slots=True)
class Published(Record):
    """The documents by their keys. `version` rises with each change; 0 before the first.

    `runs` has the run that published each, and `term` that of the last change. `edited` is for
    people: when that was, RFC 3339.
    """

    version: int = 0
    term: int = 0
    edited: str = ""
    documents: Mapping[str, JSON] = field(default_factory=dict)
    runs: Mapping[str, JSON] = field(default_factory=dict)
    more: Mapping[str, JSON] = field(default_factory=dict)

    @classmethod
    def decode(cls, raw: bytes) -> "Published":
        """Read what `encode` wrote. Raises `Damaged`."""
        if len(raw) > _MAX_RECORD:
            raise Damaged("the value", f"{len(raw)} bytes", f"at most {_MAX_RECORD}")
        try:
            found = Fields(parse(raw, depth=_RECORD_DEPTH))
        except NotJSON as error:
            raise Damaged("the value", raw[:80], f"JSON ({error})") from None
        documents, runs = found.object("documents"), found.object("runs")
        return cls(
            version=found.number("version", least=1, most=BELIEVED_VERSION + HIGHEST_RUN),
            term=found.number("term", 0, most=2 * MOST),
            edited=found.text("edited", ""),
            documents={} if documents is None else documents.more,
            runs={} if runs is None else runs.more,
            more=found.more,
        )

    @property
    def text(self) -> bytes:
        """What agents are sent, and write to their file."""
        return canonical({"documents": self.documents, "version": self.version})

    def with_document(self, key: str, document: JSON, *, run: int) -> "Published | None":
        """Return the record with one document replaced, its version as before; None if it is equal.

        Raises `NotPublished` if the key or the document is over a limit.
        """
        if not _KEY.match(key):
            raise NotPublished(
                f"the key is {key!r:.80}; expected 1 to {KEY_LIMIT} of the characters "
                "0-9 A-Z a-z . _ : / -"
            )
        if key in self.documents and canonical(self.documents[key]) == canonical(document):
            return None
        changed = self._with({**self.documents, key: document}, {**self.runs, key: run})
        size = len(changed.text)
        if size > PUBLISHED_LIMIT:
            raise NotPublished(
                f"with {key} all documents together have {size} bytes of JSON, over the limit of "
                f"{PUBLISHED_LIMIT}: publish less, or remove documents (`kontrol publish KEY "
                "--remove`)"
            )
        if len(changed.documents) > MOST_DOCUMENTS:
            raise NotPublished(
                f"{key} would be document {len(changed.documents)}, over the limit of "
                f"{MOST_DOCUMENTS}: put several into one, or remove others (`kontrol publish KEY "
                "--remove`)"
            )
        return changed

    def without_document(self, key: str) -> "Published | None":
        """Return the record without that document, its version as before; None if there is none."""
        if key not in self.documents:
            return None
        return self._with(
            {name: document for name, document in self.documents.items() if name != key},
            {name: run for name, run in self.runs.items() if name != key},
        )

    def _with(self, documents: Mapping[str, JSON], runs: Mapping[str, JSON]) -> "Published":
        return Published(self.version, self.term, self.edited, documents, runs, self.more)


def parse_document(raw: bytes) -> JSON:
    """Return the JSON value that is to be published. Raises `NotPublished`."""
    if len(raw) > PUBLISHED_LIMIT:
        raise NotPublished(
            f"the document has more than {PUBLISHED_LIMIT} bytes, the limit for all documents "
            "together: publish less"
        )
    try:
        return parse(raw, depth=DOCUMENT_DEPTH)
    except NotJSON as error:
        raise NotPublished(f"the document is not JSON: {error}") from None
