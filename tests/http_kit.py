"""What do the tests of URLs share: bytes to serve, a provider that is closed afterwards, a certificate?"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lazymem.providers.http import HttpProvider

BODY = np.random.default_rng(7).bytes(300_000)
SECRETS = ("hidden-user", "hidden-password", "hidden-token", "hidden-header", "aGlkZGVu")  # the last: "hidden" in base64
STORAGE = {"headers": {"X-Api-Key": "hidden-header"}}


@contextlib.contextmanager
def provider_of(url: str, storage_options=None, redirects=False, **limits) -> Iterator[HttpProvider]:
    """A provider, closed afterwards; `limits` are storage options too."""
    provider = HttpProvider(url, storage_options={**(storage_options or {}), **limits}, redirects=redirects)
    with contextlib.closing(provider):
        yield provider


def read(provider: HttpProvider, offset: int, nbytes: int) -> bytes:
    """Through read_into, over a pattern: bytes that were not written show."""
    taken = bytearray(b"\xa5" * nbytes)
    with memoryview(taken) as view:
        provider.read_into(view, offset)
    return bytes(taken)


def with_secrets(url: str) -> str:
    """A URL with a user, a password and a token in its query."""
    return url.replace("://", "://hidden-user:hidden-password@") + "?token=hidden-token#hidden-token"


def check_shows_none(*texts: object) -> None:
    """No secret in any text, or exception, those included that it was raised from or while handling."""
    for text in texts:
        shown = str(text) + repr(text)
        error = text
        while isinstance(error, BaseException):
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
            shown += str(error) + repr(error)
        assert not [secret for secret in SECRETS if secret in shown], shown


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody trusts, and its key; or the test is skipped."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed, so there is no certificate to test with")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=lazymem test", "-addext", "subjectAltName=IP:127.0.0.1",
         "-addext", "keyUsage=critical,keyCertSign,digitalSignature", "-out", certificate, "-keyout", key],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return certificate, key
