"""The Kubernetes API, as a pod's service account may use it.

The token and the authorities are read again for every request: kubelet replaces the token in its
file long before it expires. The certificate is always verified, against the service account's
authorities and no others.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from kontrol.boot import ACCOUNT, Misconfigured, Refused
from kontrol.ensemble.canonical import JSON, NotJSON, parse
from kontrol.ensemble.numbers import whole
from kontrol.httpclient import MIB, Response, Untrusted, request

_MOST = 8 * MIB  # octets of an object: etcd takes 1.5 MiB, JSON makes it longer
_DEPTH = 100  # levels: managedFields are deep
_TOKEN = re.compile(r"[!-~]+\Z")
_SUBJECT = re.compile(r"system:serviceaccount:([0-9a-z.-]+):([0-9a-z.-]+)")
_LONGEST = 300  # characters of the server's own message


class Unavailable(Exception):
    """The API has no usable answer now, and may have one later; the message says why."""


class Absent(Refused):
    """The API has no such object."""


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """The folder with `token`, `ca.crt` and `namespace` that Kubernetes mounts in a pod."""

    folder: Path = ACCOUNT

    def present(self) -> bool:
        """Return whether there is a token at all."""
        return (self.folder / "token").exists()

    def token(self) -> str:
        """Return the current token. Raises `Misconfigured`."""
        path = self.folder / "token"
        token = _read(path).strip()
        if not _TOKEN.match(token):
            raise Misconfigured(f"{path}: expected a token, one line of printable characters")
        return token

    def namespace(self) -> str | None:
        """Return the pod's namespace, None if the folder does not have it."""
        path = self.folder / "namespace"
        return _read(path).strip() or None if path.exists() else None

    def context(self) -> ssl.SSLContext:
        """Return a context that verifies the server. Raises `Misconfigured`."""
        path = self.folder / "ca.crt"
        try:
            context = ssl.create_default_context(cadata=_read(path))
        except (ssl.SSLError, ValueError) as error:
            raise Misconfigured(f"{path}: {error}; expected PEM certificates") from None
        # Python 3.13 requires extensions that the CAs of many clusters lack (Authority Key
        # Identifier, Key Usage). Chain, name and dates are verified all the same.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context


class Api:
    """The API at `base` (`https://host:port`). Each request is one connection."""

    def __init__(self, base: str, account: ServiceAccount) -> None:
        self.base = base
        self.account = account

    async def get(self, path: str, timeout: float) -> JSON:
        """Return an object.

        Raises `Unavailable` if a retry may help; `HTTPError` of `kontrol.httpclient` if there was
        no complete answer; `Absent`, `Refused` and `Misconfigured` if a retry will not help.
        """
        token = self.account.token()
        context = self.account.context()
        try:
            answer = await request(
                self.base + path,
                headers={
                    "Authorization": f"Bearer {token}",
                    "Accept": "application/json",
                    "User-Agent": "kontrol-boot",
                },
                tls=context,
                timeout=timeout,
                limit=_MOST,
            )
        except Untrusted as error:
            raise Refused(
                f"the Kubernetes API cannot be trusted ({error}): {self.account.folder / 'ca.crt'}"
                " does not vouch for it; is KUBERNETES_SERVICE_HOST this cluster's?"
            ) from None
        if answer.status == 200:
            try:
                return parse(answer.body, depth=_DEPTH)
            except NotJSON as error:
                raise Unavailable(f"{self.base}{path}: not JSON: {error}") from None
        self._refuse(path, answer, token)
        words = _words(answer, token)
        raise Unavailable(f"{self.base}{path}: status {answer.status}{words}")

    def _refuse(self, path: str, answer: Response, token: str) -> None:
        """Raise if the status is a final refusal."""
        words = _words(answer, token)
        if answer.status == 401:
            if self.account.token() != token:
                raise Unavailable("the service account's token has just been replaced")
            raise Refused(
                f"the Kubernetes API does not accept the token in {self.account.folder / 'token'}"
                f" (401{words}): has it expired (is the clock right?), is it of another cluster?"
            )
        if answer.status == 403:
            fix = f"To allow it: {grant(path, words)}"
            raise Refused(f"the Kubernetes API forbids it (403{words}). {fix}")
        if answer.status == 404:
            raise Absent(f"the Kubernetes API has no {path} (404{words})")


def grant(path: str, words: str) -> str:
    """Return the commands that allow to get the object at `path`.

    `words` are the API's and name the service account. The names of what is created contain it too,
    so that the commands also work for a second account.
    """
    parts = path.split("/")
    match = _SUBJECT.search(words)
    if "nodes" in parts:
        account = f"{match[1]}:{match[2]}" if match else "NAMESPACE:SERVICEACCOUNT"
        name = f"kontrol-node:{account}"
        return (
            f"kubectl create clusterrole {name} --verb=get --resource=nodes && "
            f"kubectl create clusterrolebinding {name} --clusterrole={name} "
            f"--serviceaccount={account}"
        )
    namespace = parts[parts.index("namespaces") + 1]
    account = f"{match[1]}:{match[2]}" if match else f"{namespace}:SERVICEACCOUNT"
    name = f"kontrol-boot:{account}"
    return (
        f"kubectl -n {namespace} create role {name} --verb=get --resource=pods && "
        f"kubectl -n {namespace} create rolebinding {name} --role={name} "
        f"--serviceaccount={account}"
    )


def pod_path(namespace: str, name: str) -> str:
    """Return the path of a pod."""
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"


def node_path(name: str) -> str:
    """Return the path of a node."""
    return f"/api/v1/nodes/{quote(name, safe='')}"


def base(environ: Mapping[str, str]) -> str | None:
    """Return the API's URL, which Kubernetes gives every pod; None outside Kubernetes."""
    host = environ.get("KUBERNETES_SERVICE_HOST", "").strip()
    port = environ.get("KUBERNETES_SERVICE_PORT", "").strip() or "443"
    if not host:
        return None
    try:
        whole(port, 1, 65535)
    except ValueError:
        raise Misconfigured(f"KUBERNETES_SERVICE_PORT={port!r}: expected a TCP port") from None
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def _words(answer: Response, token: str) -> str:
    """Return the message of the Status object in a refusal, as `: message`."""
    try:
        document = parse(answer.body, depth=_DEPTH)
    except NotJSON:
        return ""
    message = document.get("message") if isinstance(document, dict) else None
    if not isinstance(message, str) or not message:
        return ""
    return f": {message.replace(token, '***')[:_LONGEST]}"


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"the service account cannot be read: {path}: {error}") from None
