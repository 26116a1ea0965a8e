"""TLS for the endpoint. The certificate is read again when its files change.

OpenSSL is loaded here, so this module is imported only where a certificate is configured.
"""

import ssl
from pathlib import Path

from kontrol.reloading import ReloadingFile


class Certificate:
    """A certificate and its key, as the context for the next connection.

    Raises `OSError` for files that cannot be read, or are not a certificate with its key.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._context = ReloadingFile("KONTROL_TLS_CERT", [cert, key], self._load)

    def __call__(self) -> ssl.SSLContext:
        """Return the context with the current certificate; connections keep the one they have."""
        return self._context.value

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except ssl.SSLError as error:
            raise OSError(
                f"{self._cert} and {self._key} are not a certificate with its key, in PEM and "
                f"without a password: {error.reason or error}"
            ) from None
        except OSError as error:
            raise OSError(f"{self._cert} or {self._key} cannot be read: {error.strerror}") from None
        return context


def _no_password() -> str:
    """Answer OpenSSL, which would otherwise ask on the terminal."""
    return ""
