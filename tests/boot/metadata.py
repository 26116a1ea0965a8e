"""Metadata servers that follow the providers' documents, and some that follow none.

- AWS: a PUT of /latest/api/token with X-aws-ec2-metadata-token-ttl-seconds (1 to 21600) gives a
  token; a GET without X-aws-ec2-metadata-token is a 401, unless version 1 is still on.
- Google: `Metadata-Flavor: Google` is asked for (403 without) and answered; unknown paths are 404.
- Azure: `Metadata: true` and a known api-version are asked for (400 without).
"""

import json
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from tests.boot.server import Reply, Request

AWS_IDENTITY = {
    "accountId": "123456789012",
    "architecture": "x86_64",
    "availabilityZone": "us-west-2b",
    "imageId": "ami-5fb8c835",
    "instanceId": "i-1234567890abcdef0",
    "instanceType": "t2.micro",
    "privateIp": "10.158.112.84",
    "region": "us-west-2",
}
AZURE_INSTANCE: dict[str, dict[str, object]] = {
    "compute": {
        "azEnvironment": "AZUREPUBLICCLOUD",
        "location": "westus",
        "name": "examplevmname",
        "osProfile": {"adminUsername": "admin", "computerName": "examplevmname"},
        "vmSize": "Standard_A3",
        "zone": "1",
    },
    "network": {
        "interface": [
            {
                "ipv4": {
                    "ipAddress": [
                        {"privateIpAddress": "10.144.133.132", "publicIpAddress": "203.0.113.9"}
                    ],
                    "subnet": [{"address": "10.144.133.128", "prefix": "26"}],
                },
                "ipv6": {"ipAddress": []},
                "macAddress": "0011AAFFBB22",
            }
        ]
    },
}
GOOGLE_INSTANCE = {
    "zone": "projects/1234/zones/europe-west1-b",
    "machine-type": "projects/1234/machineTypes/e2-medium",
    "hostname": "node-1.europe-west1-b.c.games.internal",
    "network-interfaces/0/access-configs/0/external-ip": "198.51.100.7",
}
_TOKEN = "AQAEAK6xQ=="


class AwsServer:
    """`version_1` says whether a GET without a token is answered."""

    def __init__(self, *, version_1: bool = False) -> None:
        self.version_1 = version_1
        self.paths = {
            "/latest/dynamic/instance-identity/document": json.dumps(AWS_IDENTITY),
            "/latest/meta-data/public-ipv4": "203.0.113.25",
            "/latest/meta-data/local-hostname": "ip-10-158-112-84.us-west-2.compute.internal",
        }

    async def __call__(self, request: Request) -> Reply:
        if request.path == "/latest/api/token":
            if request.method != "PUT":
                return Reply(405)
            ttl = request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
            if not ttl.isdecimal() or not 1 <= int(ttl) <= 21600:
                return Reply(400)
            return Reply(200, _TOKEN)
        token = request.headers.get("x-aws-ec2-metadata-token")
        if token != _TOKEN and not (token is None and self.version_1):
            return Reply(401)
        text = self.paths.get(request.path)
        return Reply(404) if text is None else Reply(200, text)


class GoogleServer:
    """The server of Compute Engine; `hidden` paths are those that GKE keeps to itself."""

    def __init__(self, hidden: tuple[str, ...] = ()) -> None:
        self.paths = {k: text for k, text in GOOGLE_INSTANCE.items() if k not in hidden}

    async def __call__(self, request: Request) -> Reply:
        if request.headers.get("metadata-flavor") != "Google":
            return Reply(403)
        text = self.paths.get(request.path.removeprefix("/computeMetadata/v1/instance/"))
        flavor = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
        return Reply(404, "", flavor) if text is None else Reply(200, text, flavor)


class AzureServer:
    """The instance metadata service, with `instance` as its document."""

    def __init__(self, instance: Mapping[str, object] | None = None) -> None:
        self.instance = AZURE_INSTANCE if instance is None else instance

    async def __call__(self, request: Request) -> Reply:
        url = urlsplit(request.target)
        if request.headers.get("metadata") != "true" or "x-forwarded-for" in request.headers:
            return Reply(400)
        if parse_qs(url.query).get("api-version") != ["2021-02-01"]:
            return Reply(400, json.dumps({"error": "Bad request. api-version is invalid"}))
        if url.path != "/metadata/instance":
            return Reply(404)
        return Reply(200, json.dumps(self.instance))


async def captive(_request: Request) -> Reply:
    """A portal: whatever is asked, it answers with its page."""
    return Reply(200, "<html><body>Please log in</body></html>")
