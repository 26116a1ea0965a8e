"""Boot: find what the pod and its node are, once, before the pod's processes start.

`run.discover` queries the Kubernetes API, the downward API, the cloud and this host at the same
time, and overlays the results: the environment always wins. `telegraf` renders telegraf's
configuration from them. Nothing here knows agent or master: they read the environment.

A new cloud is a file in `cloud/` and a row of its table.
"""

from pathlib import Path

PODINFO = Path("/etc/podinfo")
"""A downwardAPI volume, by custom and as our manifests mount it."""

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""A service account's `token`, `ca.crt` and `namespace`."""


class BootError(Exception):
    """The boot cannot go on. The message is one line: what was tried, what came back, the fix.

    `status` is the exit status, one for each kind.
    """

    status = 1


class Misconfigured(BootError):
    """What the pod was given cannot be used: no service account, a bad file."""

    status = 2


class Unanswered(BootError):
    """The Kubernetes API gave no usable answer in time."""

    status = 4


class Refused(BootError):
    """The Kubernetes API refused, knows no such object, or cannot be trusted: final."""

    status = 5


class NoAddress(BootError):
    """The pod got no address in time."""

    status = 6
