"""The table of variables: a setting is one row here, and nothing else.

Everything else is made from the rows: parsing and defaults (`resolve`), `Settings` (`parse`), the
checks of files (`load`), `kontrol config`, the settings page and the sample environment file of the
documentation, the names of facts that `kontrol boot` exports, and of secrets that no child process
inherits. What two variables must be to each other is a rule in `parse`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeAlias, TypeVar

from kontrol.ensemble.tiers import Tier
from kontrol.ensemble.urgent import Urgent
from kontrol.settings import values

T_co = TypeVar("T_co", covariant=True)

Text: TypeAlias = str | Callable[[Mapping[str, str]], str]
"""A text, or how to compute it from the environment; empty for none."""

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, eq=False)
class Variable(Generic[T_co]):
    """One row of the table. Its value is `settings[VARIABLE]`.

    - `parse` makes a value of a text, or raises `values.BadValue`.
    - `doc` says what it sets, in Markdown; `example` is a text that is not the default. All
      examples together are a valid environment.
    - `default` is the text without one, as `parse` takes it; `fallback` describes what holds
      instead if that cannot be seen from `default`.
    - `debug` is the text that debug mode presumes.
    - `used_by` is the mode that needs it, empty for all; `required` is what is expected if it is
      missing in that mode, empty if it may be. The type has `None` if it may be without a value.
    - `path` is what must be there, a file or a folder, if the value is a path.
    - `fact`: `kontrol boot` finds and exports it.
    - `secrecy` is `file` if the value names a file with a secret, `value` if it is one: no child
      process inherits either, and a `value` is refused and never shown.
    """

    name: str
    group: str
    parse: Callable[[str], T_co]
    doc: str
    example: str = ""
    default: Text = ""
    fallback: str = ""
    debug: Text = ""
    used_by: Literal["", "agent", "master", "boot"] = ""
    required: str = ""
    path: Literal["", "file", "folder"] = ""
    fact: bool = False
    secrecy: Literal["", "file", "value"] = ""


def text_of(text: Text, environ: Mapping[str, str]) -> str:
    """Return a text of a row as it is in this environment."""
    return text if isinstance(text, str) else text(environ)


def _debug_host(environ: Mapping[str, str]) -> str:
    return environ.get(HOST.name) or LOOPBACK


def _debug_address(environ: Mapping[str, str]) -> str:
    """Return the host if it is an address; that of a DNS name is found when the process starts."""
    try:
        return values.address(_debug_host(environ))
    except values.BadValue:
        return ""


def _data_folder(environ: Mapping[str, str]) -> str:
    if folder := environ.get("XDG_DATA_HOME"):
        return f"{folder}/kontrol"
    return f"{environ['HOME']}/.local/share/kontrol" if environ.get("HOME") else ""


def _six_dampers(environ: Mapping[str, str]) -> str:
    try:
        damper = DAMPER.parse(environ.get(DAMPER.name) or text_of(DAMPER.default, environ))
    except values.BadValue:  # reported as a mistake in KONTROL_DAMPER
        return ""
    most = min(6 * damper, values.DAY)
    return f"{most:.15g}" if most > 0.001 else f"{most:.20f}"


def _refused(text: str) -> None:
    raise values.BadValue(f"the name of a file instead ({len(text)} characters were given)")


_PART = "Mode and listening addresses"
MODE = Variable[frozenset[str]](
    "KONTROL_MODE",
    _PART,
    values.modes,
    "What this process does: a comma list of `agent` (the original's `slave` is the same), "
    "`master`, `debug` (agent and master in one, to try things out; nothing else has to be set) "
    "and `verbose` (debug lines in the log).",
    example="agent,master",
    default="agent",
)
PORT = Variable[int](
    "KONTROL_PORT",
    _PART,
    values.port,
    "TCP port of the ZeroRPC endpoint, and of tiers that name none. A `tcp://...` that Kubernetes "
    "sets here for a Service named `kontrol` is ignored with a line in the log.",
    example="8100",
    default="8000",
)
BIND = Variable[str](
    "KONTROL_BIND",
    _PART,
    values.bind_address,
    "Address to listen on, `*` for all.",
    example="10.0.0.7",
    default="*",
)
HTTP_PORT = Variable[int](
    "KONTROL_HTTP_PORT",
    _PART,
    values.port_or_off,
    "TCP port of the REST endpoint (health, metrics, and the masters' API for operators), 0 for "
    "none. It is not 8080, since a sidecar shares the ports of its pod.",
    example="8101",
    default="8001",
)
NAMES = Variable[tuple[str, ...]](
    "KONTROL_NAMES",
    _PART,
    values.hosts,
    "Comma list of names that clients of the REST endpoint may address it by, in addition to the "
    "pod's own and those in the annotation `kontrol.unity3d.com/master`: of Services (`masters`, "
    "`masters.games`; their longer forms follow, in every cluster domain), or any DNS name, such "
    "as an Ingress has. Addresses and `localhost` need not be listed.",
    example="masters,kontrol.example.com",
    default="masters",
)
CONTROL = Variable[Path | None](
    "KONTROL_CONTROL",
    _PART,
    values.path,
    "Unix socket on which an agent accepts `kontrol leave`. Put it on a volume that containers "
    "share, so that an application's preStop hook can use it.",
    example="/run/kontrol/control.sock",
    fallback="`kontrol-UID/PORT.sock` in `$XDG_RUNTIME_DIR`, else in `/tmp`",
    used_by="agent",
)
DATA = Variable[Path | None](
    "KONTROL_DATA",
    _PART,
    values.path,
    "Folder for what must outlive the process: the embedded etcd's data, in `etcd` below it.",
    example="/var/lib/kontrol",
    default=_data_folder,
    fallback="`$XDG_DATA_HOME/kontrol`, else `~/.local/share/kontrol`",
    used_by="master",
)
MASTER = Variable[str | None](
    "KONTROL_MASTER",
    _PART,
    values.line,
    "The masters that commands address to show or change the ensemble: a tier, as in the "
    "annotation, or `http://masters:8001`. The daemon does not use it; a callback may.",
    example="http://masters:8001",
    fallback="the master in this process, else the annotation's first tier, else this host",
)

_POD = "The pod and its node"
NAMESPACE = Variable[str](
    "NAMESPACE",
    _POD,
    values.namespace,
    "Namespace of the pod.",
    example="games",
    default="default",
    fallback="found by `kontrol boot`, else `default`",
    fact=True,
)
ID = Variable[str](
    "KONTROL_ID",
    _POD,
    values.name,
    "The pod's name: up to 253 letters, digits and `. _ : / -`.",
    example="redis-0",
    fallback="found: the pod's name, else the host's",
    debug="local",
    required="the pod's name; none was found",
    fact=True,
)
IP = Variable[str](
    "KONTROL_IP",
    _POD,
    values.address,
    "The pod's address, IPv4 or IPv6, at which masters reach it.",
    example="10.0.0.7",
    fallback="found: the address from which packets leave",
    debug=_debug_address,
    required="the pod's address; none was found",
    fact=True,
)
LABELS = Variable[Mapping[str, str]](
    "KONTROL_LABELS",
    _POD,
    values.labels,
    "The pod's labels, a JSON object of strings. `app` names the ensemble and `role` the pod's "
    "part in it; both are required.",
    example='{"app": "redis", "role": "cache"}',
    fallback="found: the pod's labels in Kubernetes",
    debug='{"app": "test", "role": "test"}',
    required='the pod\'s labels, as {"app": "redis", "role": "cache"}; none were found',
    fact=True,
)
ANNOTATIONS = Variable[Mapping[str, str]](
    "KONTROL_ANNOTATIONS",
    _POD,
    values.table,
    "The pod's annotations, a JSON object of strings. `kontrol.unity3d.com/master` is the comma "
    "list of tiers that an agent reports to, each a DNS name or address with an optional port "
    "(without DNS, `10.0.0.1|10.0.0.2:8000` lists one tier's masters).",
    example='{"kontrol.unity3d.com/master": "masters,other:9000"}',
    default="{}",
    fallback="found: the pod's annotations in Kubernetes",
    fact=True,
)
POD_KEY = Variable[str | None](
    "KONTROL_POD_KEY",
    _POD,
    values.key,
    "The pod's key, 1 to 64 of `0-9 A-Z a-z _ -`, the first no `-`.",
    example="cache-0",
    fallback="made from the address",
)
PAYLOAD = Variable[Path | None](
    "KONTROL_PAYLOAD",
    _POD,
    values.path,
    "JSON file whose content every keepalive carries. It may appear, change and go at any time.",
    example="/run/kontrol/payload.json",
    used_by="agent",
)
PUBLISHED = Variable[Path | None](
    "KONTROL_PUBLISHED",
    _POD,
    values.path,
    "JSON file in which the agent keeps what the callback publishes (`kontrol publish`), as "
    '`{"version": 17, "documents": {...}}`. It is replaced atomically with each version; its '
    "folder must exist.",
    example="/run/kontrol/published.json",
    fallback="none: nothing published is received",
    used_by="agent",
)
LIVE = Variable[Path | None](
    "KONTROL_LIVE",
    _POD,
    values.path,
    "JSON file, at most 4 KiB, whose content keepalives carry as `live`, such as a replication "
    "offset. The callback sees it; its changes run nothing. It may appear, change and go at any "
    "time.",
    example="/run/kontrol/live.json",
    used_by="agent",
)
HOST = Variable[str | None](
    "KONTROL_HOST",
    _POD,
    values.host,
    "DNS name or address of the node. etcd is expected there, unless `KONTROL_ETCD` is set.",
    example="10.0.0.1",
    fallback="found by `kontrol boot`, or none",
    fact=True,
)
HOSTNAME = Variable[str | None](
    "KONTROL_HOSTNAME",
    _POD,
    values.name,
    "The node's name.",
    example="node-1",
    fallback="found by `kontrol boot`, or none",
    fact=True,
)
NODE_LABELS = Variable[Mapping[str, str]](
    "KONTROL_NODE_LABELS",
    _POD,
    values.node_labels,
    "The node's labels, a JSON object of strings.",
    example='{"topology.kubernetes.io/zone": "eu-1a"}',
    default="{}",
    fallback="found by `kontrol boot`, or none",
    fact=True,
)
NODE_ANNOTATIONS = Variable[Mapping[str, str]](
    "KONTROL_NODE_ANNOTATIONS",
    _POD,
    values.table,
    "The node's annotations, a JSON object of strings.",
    example='{"rack": "7"}',
    default="{}",
    fallback="found by `kontrol boot`, or none",
    fact=True,
)
EIP = Variable[str | None](
    "KONTROL_EIP",
    _POD,
    values.host,
    "The node's external address.",
    example="203.0.113.7",
    fallback="found by `kontrol boot`, or none",
    fact=True,
)
ZONE = Variable[str | None](
    "KONTROL_ZONE",
    _POD,
    values.name,
    "The zone that the node is in. Keepalives carry it.",
    example="eu-1a",
    fallback="found by `kontrol boot`, or none",
    fact=True,
)
REGION = Variable[str | None](
    "KONTROL_REGION",
    _POD,
    values.name,
    "The region that the node is in.",
    example="eu-1",
    fallback="found by `kontrol boot`, or none",
    fact=True,
)
INSTANCE_TYPE = Variable[str | None](
    "KONTROL_INSTANCE_TYPE",
    _POD,
    values.name,
    "The node's instance type, as its cloud names it.",
    example="m5.large",
    fallback="found by `kontrol boot`, or none",
    fact=True,
)

_ETCD = "etcd"
ETCD = Variable[values.Endpoints | None](
    "KONTROL_ETCD",
    _ETCD,
    values.endpoints,
    "Comma list of `host`, `host:port` or URL, `https://` for TLS (then all of them), "
    "`unix:///path` for a socket; port 2379 if none is given. "
    "`embedded` starts a private etcd under `KONTROL_DATA`: for one master on one host.",
    example="https://etcd-0.example.com,https://etcd-1.example.com",
    fallback="`$KONTROL_HOST`",
    debug=_debug_host,
    used_by="master",
    required="etcd's endpoints (or KONTROL_HOST for its host), or embedded",
)
ETCD_UNSAFE = Variable[bool](
    "KONTROL_ETCD_UNSAFE",
    _ETCD,
    values.truth,
    "`TRUE` lets the embedded etcd be 3.5.0 to 3.5.2, releases that can lose data in a crash. "
    "Without it they are refused, except in `debug` mode.",
    example="TRUE",
    default="FALSE",
    debug="TRUE",
    used_by="master",
)
ETCD_CA = Variable[Path | None](
    "KONTROL_ETCD_CA",
    _ETCD,
    values.path,
    "PEM file with the authorities that vouch for etcd. Requires `https://` endpoints.",
    example="/etc/kontrol/etcd-ca.pem",
    fallback="the system's",
    used_by="master",
    path="file",
)
ETCD_CERT = Variable[Path | None](
    "KONTROL_ETCD_CERT",
    _ETCD,
    values.path,
    "PEM file with the client certificate for etcd. Requires `KONTROL_ETCD_KEY`.",
    example="/etc/kontrol/etcd.pem",
    used_by="master",
    path="file",
)
ETCD_KEY = Variable[Path | None](
    "KONTROL_ETCD_KEY",
    _ETCD,
    values.path,
    "PEM file with that certificate's private key.",
    example="/etc/kontrol/etcd-key.pem",
    used_by="master",
    path="file",
    secrecy="file",
)
ETCD_USER = Variable[str | None](
    "KONTROL_ETCD_USER",
    _ETCD,
    values.user,
    "User to log in to etcd as. Requires `KONTROL_ETCD_PASSWORD_FILE`.",
    example="kontrol",
    used_by="master",
)
ETCD_PASSWORD_FILE = Variable[Path | None](
    "KONTROL_ETCD_PASSWORD_FILE",
    _ETCD,
    values.path,
    "File that holds that user's password.",
    example="/etc/kontrol/etcd-password",
    used_by="master",
    path="file",
    secrecy="file",
)
ETCD_PASSWORD = Variable[None](
    "KONTROL_ETCD_PASSWORD",
    _ETCD,
    _refused,
    "Refused, since other processes may read an environment. Use `KONTROL_ETCD_PASSWORD_FILE`.",
    used_by="master",
    secrecy="value",
)

_TIME = "Timing"
TTL = Variable[float](
    "KONTROL_TTL",
    _TIME,
    values.seconds(2),
    "Seconds after which a pod that does not report is removed; agents report every third of it. "
    "Agents use the leader's. At least 2, below which etcd grants no lease; a fraction is rounded "
    "up for etcd.",
    example="30",
    default="25",
)
DAMPER = Variable[float](
    "KONTROL_DAMPER",
    _TIME,
    values.seconds(0),
    "Seconds without a further change before the callback runs.",
    example="5",
    default="10",
    used_by="master",
)
DAMPER_MAX = Variable[float](
    "KONTROL_DAMPER_MAX",
    _TIME,
    values.seconds(0),
    "Seconds after the first change at which the callback runs, however many more follow.",
    example="45",
    default=_six_dampers,
    fallback="6 times `KONTROL_DAMPER`",
    used_by="master",
)
FOVER = Variable[float](
    "KONTROL_FOVER",
    _TIME,
    values.seconds(3),
    "Seconds after which an unresponsive leader is replaced, at least 3.",
    example="20",
    default="15",
    used_by="master",
)

_BOUNDS = "Bounds of what a tier stores"
PODS_BOUND = Variable[int](
    "KONTROL_MAX_PODS",
    _BOUNDS,
    values.count(1, 10_000_000),
    "How many pods a tier may have. Further pods are refused as `TooManyPods`; those that are "
    "registered stay, even if there are more, and those that were may return: twice as many are "
    "remembered, so pods that come and go in turn can be up to three times as many for a while. "
    "Give every master the same value, here and below.",
    example="10000",
    default="50000",
    used_by="master",
)
BYTES_BOUND = Variable[int](
    "KONTROL_MAX_BYTES",
    _BOUNDS,
    values.size,
    "How many bytes the records of a tier's pods may take, payloads included; `KiB`, `MiB` or "
    "`GiB` may follow the number. What would exceed it is refused as `TooManyBytes`: new pods, "
    "and larger records of over 4 KiB of pods that stay. etcd needs a quota (2 GiB by default) of "
    "several times what is really used, since it keeps former versions until it is compacted.",
    example="256MiB",
    default="1GiB",
    used_by="master",
)
JOINS_BOUND = Variable[int](
    "KONTROL_MAX_JOINS",
    _BOUNDS,
    values.count(1, 10_000_000),
    "How many unknown pods may join from one address (of IPv6, one /64) in a minute, at each "
    "master. More are refused as `TooManyJoins`, and accepted when they try again later. The "
    "default lets 20,000 pods start behind one address, as behind SNAT; where pods have addresses "
    "of their own, a few times the pods of one node suffice, and limit what unknown clients can "
    "do.",
    example="500",
    default="30000",
    used_by="master",
)

_CALLBACK = "The callback"
CALLBACK = Variable[str | None](
    "KONTROL_CALLBACK",
    _CALLBACK,
    values.command,
    "Command line to run when the ensemble changes, split into words as a shell would.",
    example="/usr/local/bin/on-change --verbose",
    fallback="none: nothing runs, and a warning says so",
    used_by="master",
)
SHELL_CALLBACK = Variable[bool](
    "KONTROL_SHELL_CALLBACK",
    _CALLBACK,
    values.truth,
    "`TRUE` gives the command line to `/bin/sh -c` instead.",
    example="TRUE",
    default="FALSE",
    used_by="master",
)
CALLBACK_TIMEOUT = Variable[float | None](
    "KONTROL_CALLBACK_TIMEOUT",
    _CALLBACK,
    values.timeout,
    "Seconds after which a run is ended and counts as failed.",
    example="120",
    fallback="no limit",
    used_by="master",
)
BRAKE = Variable[float](
    "KONTROL_BRAKE",
    _CALLBACK,
    values.percent,
    "Percentage of the pods that must be lost together for the callback to be held; 0 never holds "
    "it.",
    example="30",
    default="50",
    used_by="master",
)

EVERY = Variable[float | None](
    "KONTROL_EVERY",
    _CALLBACK,
    values.every,
    "Seconds, from 0.1, after the last acknowledged run at which the callback runs again although "
    "nothing has changed: for what drifts without any pod's record showing it. Give every master "
    "the same value.",
    example="300",
    fallback="never",
    used_by="master",
)
URGENT = Variable[Urgent | None](
    "KONTROL_URGENT",
    _CALLBACK,
    values.urgent,
    "Comma list of changes that do not wait for `KONTROL_DAMPER`: `joined`, `left`, `lost`, "
    "`changed` (any change of a pod's record), or a path such as `payload.state` (a change of that "
    "value). The brake and the wait for pods after an outage still hold. A mass loss comes pod by "
    "pod, over a third of `KONTROL_TTL`: with `lost` the callback runs for the first of them "
    "before the brake can see the others.",
    example="lost,left,payload.state",
    fallback="nothing is urgent",
    used_by="master",
)

_HOOKS = "Hooks of the pod"
ON_SILENT = Variable[tuple[str, ...] | None](
    "KONTROL_ON_SILENT",
    _HOOKS,
    values.hook,
    "Command that the agent runs once no tier has acknowledged a keepalive of the pod for two "
    "thirds of the TTL, before masters can treat the pod as lost: for a primary that is cut off "
    "and must demote itself. It is killed after a fifth of the TTL, and tried again until it "
    "succeeds or a tier acknowledges the pod. It makes the application depend on the masters.",
    example="/usr/local/bin/demote",
    fallback="none",
    used_by="agent",
)
ON_HEARD = Variable[tuple[str, ...] | None](
    "KONTROL_ON_HEARD",
    _HOOKS,
    values.hook,
    "Command that the agent runs once a tier acknowledges the pod again, and with the first "
    "acknowledgement after its start.",
    example="/usr/local/bin/rejoin --role replica",
    fallback="none",
    used_by="agent",
)
ON_PUBLISHED = Variable[tuple[str, ...] | None](
    "KONTROL_ON_PUBLISHED",
    _HOOKS,
    values.hook,
    "Command that the agent runs whenever the file of `KONTROL_PUBLISHED` was replaced, and "
    "when it starts. One runs at a time, for at most a minute; the latest version wins, and a "
    "failure is tried again.",
    example="/usr/local/bin/reload-haproxy",
    fallback="none",
    used_by="agent",
)

_SECURITY = "Security"
KEYS = Variable[Path | None](
    "KONTROL_KEYS",
    _SECURITY,
    values.path,
    "Folder with CURVE key pairs, as `kontrol keys` makes them. The ZeroRPC port is then encrypted "
    "and authenticated both ways. A callback may use it: `kontrol invoke` needs it. The files may "
    "change at any time.",
    example="/etc/kontrol/keys",
    fallback="none: the port is open to every client that reaches it",
    path="folder",
)
INVOKE = Variable[Literal["off", "insecure"] | None](
    "KONTROL_INVOKE",
    _SECURITY,
    values.invoke,
    "`insecure` lets every client that reaches the port run commands, `off` none.",
    example="off",
    fallback="on with `KONTROL_KEYS`, off without",
    used_by="agent",
)
INVOKE_ALLOW = Variable[Path | None](
    "KONTROL_INVOKE_ALLOW",
    _SECURITY,
    values.path,
    "File of named commands with patterns for their arguments; with it, nothing else runs.",
    example="/etc/kontrol/allow.json",
    used_by="agent",
    path="file",
)
TOKEN_FILE = Variable[Path | None](
    "KONTROL_TOKEN_FILE",
    _SECURITY,
    values.path,
    "File with the tokens that the REST endpoint requires: on its first line one that may change "
    "things, on an optional second line one that may only read. It may change at any time.",
    example="/etc/kontrol/token",
    fallback="none: only health and metrics leave loopback",
    path="file",
    secrecy="file",
)
TOKEN = Variable[None](
    "KONTROL_TOKEN",
    _SECURITY,
    _refused,
    "Refused, since other processes may read an environment. Use `KONTROL_TOKEN_FILE`.",
    secrecy="value",
)
TLS_CERT = Variable[Path | None](
    "KONTROL_TLS_CERT",
    _SECURITY,
    values.path,
    "PEM file with the REST endpoint's certificate. Requires `KONTROL_TLS_KEY`. It may change at "
    "any time.",
    example="/etc/kontrol/tls.pem",
    fallback="none: plain HTTP",
    path="file",
)
TLS_KEY = Variable[Path | None](
    "KONTROL_TLS_KEY",
    _SECURITY,
    values.path,
    "PEM file with that certificate's private key.",
    example="/etc/kontrol/tls-key.pem",
    path="file",
    secrecy="file",
)

_OUTPUT = "Log and metrics"
LOG = Variable[Literal["text", "json"]](
    "KONTROL_LOG",
    _OUTPUT,
    values.log_format,
    "Format of the log on standard output, `text` or `json`.",
    example="json",
    default="text",
)
STATSD = Variable[Tier | None](
    "KONTROL_STATSD",
    _OUTPUT,
    values.statsd,
    "`host` or `host:port` (8125) to send the counters `keepalive_emitted`, `callback_invoked`, "
    "`lock_obtained` and `md5_changed` to, each with `,tier=kontrol`.",
    example="statsd.example.com:8125",
)

_BOOT = "Boot (the image's entry point)"
CLOUD = Variable[str](
    "KONTROL_CLOUD",
    _BOOT,
    values.cloud,
    "The cloud whose metadata service is queried for facts of the node: `auto` detects it, `none` "
    "queries none, and a name (`aws`, ...; the page of `kontrol boot` has them all) that one.",
    example="none",
    default="auto",
    used_by="boot",
)
TELEGRAF_CONF = Variable[Path](
    "KONTROL_TELEGRAF_CONF",
    _BOOT,
    values.path,
    "Path to write telegraf's configuration to. Its folder must be writable.",
    example="/run/telegraf/telegraf.conf",
    default="/etc/telegraf/telegraf.conf",
    used_by="boot",
)

VARIABLES: tuple[Variable[object], ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Variable)
)
"""Every row above, in that order."""

FACTS = tuple(variable.name for variable in VARIABLES if variable.fact)
"""Names of the variables that `kontrol boot` finds and exports, in the order it shows them."""

SECRETS = frozenset(variable.name for variable in VARIABLES if variable.secrecy)
"""Names of the variables that no child process inherits."""
