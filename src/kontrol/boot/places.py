"""Where Kubernetes and Linux put what boot reads."""

from pathlib import Path

PODINFO = Path("/etc/podinfo")
"""A downwardAPI volume, by custom and as our manifests have it."""

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""A service account's `token`, `ca.crt` and `namespace`."""

DMI = Path("/sys/class/dmi/id")
"""What the firmware says of the machine, a file for each field."""
