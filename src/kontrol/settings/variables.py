"""The table of variables: the one place that knows what can be set.

Parsing, `kontrol config` and the settings page of the documentation are all made from it, so that
a variable cannot be known to one and not to the others.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from kontrol.ensemble.tiers import Tier
from kontrol.settings import values
from kontrol.settings.variable import Variable


def _refused(text: str) -> None:
    raise values.BadValue(f"the name of a file instead ({len(text)} characters were given)")


_PART = "What to be, and where to listen"
MODE = Variable[frozenset[str]](
    "KONTROL_MODE",
    _PART,
    values.modes,
    "What this process does: a comma list of `agent` (the original's `slave` is the same), "
    "`master`, `debug` (agent and master in one, for trying things out; nothing else need be set) "
    "and `verbose` (debug lines in the log).",
    default="agent",
)
PORT = Variable[int](
    "KONTROL_PORT",
    _PART,
    values.port,
    "TCP port of the ZeroRPC endpoint, and of tiers that name none. A `tcp://...` put here by "
    "Kubernetes for a Service named `kontrol` is ignored with a line in the log.",
    default="8000",
)
BIND = Variable[str](
    "KONTROL_BIND",
    _PART,
    values.bind_address,
    "Address to listen on, `*` for all.",
    default="*",
)
HTTP_PORT = Variable[int](
    "KONTROL_HTTP_PORT",
    _PART,
    values.port_or_off,
    "TCP port of the REST endpoint (health, metrics, and what masters tell operators), 0 for none. "
    "A sidecar shares its pod's ports: hence not 8080.",
    default="8001",
)
NAMES = Variable[tuple[str, ...]](
    "KONTROL_NAMES",
    _PART,
    values.hosts,
    "Comma list of names under which the REST endpoint is asked, beside the pod's own and those in "
    "the annotation `kontrol.unity3d.com/master`: of Services (`masters`, `masters.games`; their "
    "longer forms follow, in every cluster domain), or any DNS name, as an Ingress has. Addresses "
    "and `localhost` need not be listed.",
    default="masters",
)
HOST = Variable[str | None](
    "KONTROL_HOST",
    _PART,
    values.host,
    "DNS name or address of the node. Where etcd is, unless `KONTROL_ETCD` says otherwise.",
)
CONTROL = Variable[Path | None](
    "KONTROL_CONTROL",
    _PART,
    values.path,
    "Unix socket on which an agent takes `kontrol leave`. Put it on a volume that containers "
    "share, to let an application's preStop hook use it.",
    otherwise="`kontrol-UID/PORT.sock` in `$XDG_RUNTIME_DIR`, else in `/tmp`",
)
DATA = Variable[Path | None](
    "KONTROL_DATA",
    _PART,
    values.path,
    "Folder for what must outlive the process: the embedded etcd's data, in `etcd` below it.",
    otherwise="`$XDG_DATA_HOME/kontrol`, else `~/.local/share/kontrol`",
)

MASTER = Variable[str | None](
    "KONTROL_MASTER",
    _PART,
    values.line,
    "Whom the commands ask that look at the ensemble or steer it: a tier, as in the annotation, or "
    "`http://masters:8001`. The daemon does not use it; a callback may.",
    otherwise="the master in this process, else the annotation's first tier, else this host",
)

_POD = "The pod and its node"
_BY_BOOT = "found by `kontrol boot`, or none"
ID = Variable[str](
    "KONTROL_ID",
    _POD,
    values.name,
    "The pod's name: up to 253 letters, digits and `. _ : / -`.",
    otherwise="found: the pod's name, else the host's",
)
IP = Variable[str](
    "KONTROL_IP",
    _POD,
    values.address,
    "The pod's address, IPv4 or IPv6, under which masters reach it.",
    otherwise="found: the address from which packets leave",
)
LABELS = Variable[Mapping[str, str]](
    "KONTROL_LABELS",
    _POD,
    values.labels,
    "The pod's labels, a JSON object of strings. `app` names the ensemble and `role` the pod's "
    "part in it; both are required.",
    otherwise="found: the pod's labels in Kubernetes",
)
ANNOTATIONS = Variable[Mapping[str, str]](
    "KONTROL_ANNOTATIONS",
    _POD,
    values.table,
    "The pod's annotations, a JSON object of strings. `kontrol.unity3d.com/master` is the comma "
    "list of tiers that an agent reports to, each a DNS name or address with an optional port "
    "(without DNS, `10.0.0.1|10.0.0.2:8000` lists one tier's masters).",
    otherwise="found: the pod's annotations in Kubernetes",
)
NAMESPACE = Variable[str](
    "NAMESPACE", _POD, values.namespace, "Namespace of the pod.", default="default"
)
POD_KEY = Variable[str | None](
    "KONTROL_POD_KEY",
    _POD,
    values.key,
    "The pod's key by hand, 1 to 64 of `0-9 A-Z a-z _ -`, the first no `-`.",
    otherwise="made from the address",
)
PAYLOAD = Variable[Path | None](
    "KONTROL_PAYLOAD",
    _POD,
    values.path,
    "JSON file whose content every keepalive carries. It may appear, change and go at any time.",
)
NODE_LABELS = Variable[Mapping[str, str]](
    "KONTROL_NODE_LABELS",
    _POD,
    values.node_labels,
    "The node's labels, a JSON object of strings.",
    default="{}",
    otherwise="found, or none",
)
NODE_ANNOTATIONS = Variable[Mapping[str, str]](
    "KONTROL_NODE_ANNOTATIONS",
    _POD,
    values.table,
    "The node's annotations, a JSON object of strings.",
    default="{}",
    otherwise="found, or none",
)
EIP = Variable[str | None](
    "KONTROL_EIP",
    _POD,
    values.host,
    "The node's external address.",
    otherwise="found, or none",
)
HOSTNAME = Variable[str | None](
    "KONTROL_HOSTNAME", _POD, values.name, "The node's name.", otherwise=_BY_BOOT
)
ZONE = Variable[str | None](
    "KONTROL_ZONE",
    _POD,
    values.name,
    "The zone that the node is in. Keepalives carry it.",
    otherwise=_BY_BOOT,
)
REGION = Variable[str | None](
    "KONTROL_REGION", _POD, values.name, "The region that the node is in.", otherwise=_BY_BOOT
)
INSTANCE_TYPE = Variable[str | None](
    "KONTROL_INSTANCE_TYPE",
    _POD,
    values.name,
    "The kind of machine that the node is, as its cloud names it.",
    otherwise=_BY_BOOT,
)

_ETCD = "etcd (masters only)"
ETCD = Variable[values.Endpoints | None](
    "KONTROL_ETCD",
    _ETCD,
    values.endpoints,
    "Comma list of `host`, `host:port` or URL, `https://` for TLS (then all of them), "
    "`unix:///path` for a socket; port 2379 if none is given. "
    "`embedded` starts a private etcd under `KONTROL_DATA`: for one master on one host.",
    otherwise="`$KONTROL_HOST`",
)
ETCD_UNSAFE = Variable[bool](
    "KONTROL_ETCD_UNSAFE",
    _ETCD,
    values.truth,
    "`TRUE` lets the embedded etcd be 3.5.0 to 3.5.2, releases that can lose data in a crash. "
    "Without it they are refused, but in `debug` mode.",
    default="FALSE",
)
ETCD_CA = Variable[Path | None](
    "KONTROL_ETCD_CA",
    _ETCD,
    values.path,
    "PEM file with the authorities that vouch for etcd. Wants `https://` endpoints.",
    otherwise="the system's",
    names="file",
)
ETCD_CERT = Variable[Path | None](
    "KONTROL_ETCD_CERT",
    _ETCD,
    values.path,
    "PEM file with our certificate for etcd. Goes with `KONTROL_ETCD_KEY`.",
    names="file",
)
ETCD_KEY = Variable[Path | None](
    "KONTROL_ETCD_KEY",
    _ETCD,
    values.path,
    "PEM file with that certificate's private key.",
    names="file",
    secrecy="path",
)
ETCD_USER = Variable[str | None](
    "KONTROL_ETCD_USER",
    _ETCD,
    values.user,
    "User to log in to etcd as. Goes with `KONTROL_ETCD_PASSWORD_FILE`.",
)
ETCD_PASSWORD_FILE = Variable[Path | None](
    "KONTROL_ETCD_PASSWORD_FILE",
    _ETCD,
    values.path,
    "File that holds that user's password.",
    names="file",
    secrecy="path",
)
ETCD_PASSWORD = Variable[None](
    "KONTROL_ETCD_PASSWORD",
    _ETCD,
    _refused,
    "Refused: an environment is no place for a secret. Use `KONTROL_ETCD_PASSWORD_FILE`.",
    secrecy="value",
)

_TIME = "Timing (the masters' values rule)"
TTL = Variable[float](
    "KONTROL_TTL",
    _TIME,
    values.seconds(2),
    "Seconds after which a silent pod is gone; agents report every third of it. The leader's "
    "rules. At least 2, below which etcd grants no lease; a fraction is rounded up for etcd.",
    default="25",
)
DAMPER = Variable[float](
    "KONTROL_DAMPER",
    _TIME,
    values.seconds(0),
    "Seconds of quiet after a change before the callback runs.",
    default="10",
)
DAMPER_MAX = Variable[float](
    "KONTROL_DAMPER_MAX",
    _TIME,
    values.seconds(0),
    "Seconds after the first change at which the callback runs however many follow.",
    otherwise="6 times `KONTROL_DAMPER`",
)
FOVER = Variable[float](
    "KONTROL_FOVER",
    _TIME,
    values.seconds(3),
    "Seconds after which a silent leader is replaced, at least 3.",
    default="15",
)

_BOUNDS = "What a tier may store (masters only)"
PODS_BOUND = Variable[int](
    "KONTROL_MAX_PODS",
    _BOUNDS,
    values.count(1, 10_000_000),
    "How many pods a tier may have. One more is refused as `TooManyPods`; those that are there "
    "stay, though they be more, and those that were there may return: twice as many are "
    "remembered, so pods that come and go in turn can be up to three times as many for a while. "
    "Give every master the same value, here and below.",
    default="50000",
)
BYTES_BOUND = Variable[int](
    "KONTROL_MAX_BYTES",
    _BOUNDS,
    values.size,
    "How many bytes the records of a tier's pods may take, payloads included; `KiB`, `MiB` or "
    "`GiB` may follow the number. What would go beyond it is refused as `TooManyBytes`: new pods, "
    "and larger records of over 4 KiB of pods that stay. etcd needs a quota (2 GiB by default) of "
    "several times what is really used, since it keeps former versions until it is compacted.",
    default="1GiB",
)
JOINS_BOUND = Variable[int](
    "KONTROL_MAX_JOINS",
    _BOUNDS,
    values.count(1, 10_000_000),
    "How many pods that were not known may come from one address (of IPv6, one /64) in a minute, "
    "at each master. More are refused as `TooManyJoins`, and taken when they ask later. The "
    "default lets 20,000 pods start behind one address, as behind SNAT; where pods have "
    "addresses of their own, a few times the pods of one node are enough, and keep strangers out.",
    default="30000",
)

_CALLBACK = "The callback (masters only)"
CALLBACK = Variable[str | None](
    "KONTROL_CALLBACK",
    _CALLBACK,
    values.command,
    "Command line to run when the ensemble changes, split into words as a shell would.",
    otherwise="none: a warning, and the ensemble is kept all the same",
)
SHELL_CALLBACK = Variable[bool](
    "KONTROL_SHELL_CALLBACK",
    _CALLBACK,
    values.truth,
    "`TRUE` gives the command line to `/bin/sh -c` instead.",
    default="FALSE",
)
CALLBACK_TIMEOUT = Variable[float | None](
    "KONTROL_CALLBACK_TIMEOUT",
    _CALLBACK,
    values.timeout,
    "Seconds after which a run is ended and counts as failed.",
    otherwise="no limit",
)
BRAKE = Variable[float](
    "KONTROL_BRAKE",
    _CALLBACK,
    values.percent,
    "Percentage of the pods that must be lost at once for the callback to be held; 0 never holds.",
    default="50",
)

_SECURITY = "Security"
KEYS = Variable[Path | None](
    "KONTROL_KEYS",
    _SECURITY,
    values.path,
    "Folder with CURVE key pairs, as `kontrol keys` makes them. The ZeroRPC port is then encrypted "
    "and authenticated both ways. A callback may use it: `kontrol invoke` needs it. The files may "
    "change at any time.",
    otherwise="none: the port is open to whoever reaches it",
    names="folder",
)
INVOKE = Variable[Literal["off", "insecure"] | None](
    "KONTROL_INVOKE",
    _SECURITY,
    values.invoke,
    "`insecure` lets whoever reaches the port run commands, `off` nobody.",
    otherwise="on with `KONTROL_KEYS`, off without",
)
INVOKE_ALLOW = Variable[Path | None](
    "KONTROL_INVOKE_ALLOW",
    _SECURITY,
    values.path,
    "File of named commands with patterns for their arguments; with it, nothing else runs.",
    names="file",
)
TOKEN_FILE = Variable[Path | None](
    "KONTROL_TOKEN_FILE",
    _SECURITY,
    values.path,
    "File with the tokens that the REST endpoint asks for: on its first line one that may change "
    "things, on a second, if there is one, one that may only read. It may change at any time.",
    otherwise="none: only health and metrics leave loopback",
    names="file",
    secrecy="path",
)
TOKEN = Variable[None](
    "KONTROL_TOKEN",
    _SECURITY,
    _refused,
    "Refused: an environment is no place for a secret. Use `KONTROL_TOKEN_FILE`.",
    secrecy="value",
)
TLS_CERT = Variable[Path | None](
    "KONTROL_TLS_CERT",
    _SECURITY,
    values.path,
    "PEM file with the REST endpoint's certificate. Goes with `KONTROL_TLS_KEY`. It may change at "
    "any time.",
    otherwise="none: plain HTTP",
    names="file",
)
TLS_KEY = Variable[Path | None](
    "KONTROL_TLS_KEY",
    _SECURITY,
    values.path,
    "PEM file with that certificate's private key.",
    names="file",
    secrecy="path",
)

_OUTPUT = "Log and metrics"
LOG = Variable[Literal["text", "json"]](
    "KONTROL_LOG",
    _OUTPUT,
    values.log_format,
    "Form of the log on standard output, `text` or `json`.",
    default="text",
)
STATSD = Variable[Tier | None](
    "KONTROL_STATSD",
    _OUTPUT,
    values.statsd,
    "`host` or `host:port` (8125) to send the counters `keepalive_emitted`, `callback_invoked`, "
    "`lock_obtained` and `md5_changed` to, each with `,tier=kontrol`.",
)

_BOOT = "Boot (the image's entry point)"
CLOUD = Variable[str](
    "KONTROL_CLOUD",
    _BOOT,
    values.cloud,
    "The cloud whose metadata service is asked for facts of the node: `auto` finds out, `none` "
    "asks none; `aws`, `google` and `azure` ask that one; `aws-v1` asks AWS by version 1 of its "
    "protocol, without a session token.",
    default="auto",
)
TELEGRAF_CONF = Variable[Path](
    "KONTROL_TELEGRAF_CONF",
    _BOOT,
    values.path,
    "Where telegraf's configuration is written. Its folder must be writable.",
    default="/etc/telegraf/telegraf.conf",
)

VARIABLES: tuple[Variable[object], ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Variable)
)
"""Every variable above, in that order: a list by hand would be one more place to forget."""

FACTS = frozenset(
    variable.name
    for variable in (
        *(ID, IP, LABELS, ANNOTATIONS, NODE_LABELS, NODE_ANNOTATIONS),
        *(EIP, HOSTNAME, ZONE, REGION, INSTANCE_TYPE),
    )
)
"""Names of the variables that can be found from where the process runs."""

SECRETS = frozenset(variable.name for variable in VARIABLES if variable.secrecy)
"""Names of the variables that no child process is given."""
