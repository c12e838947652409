"""What the tests use of trustme, by the command `openssl`: for interpreters that cryptography has no wheel for."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    import ssl


NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


class Blob:
    def __init__(self, text: str) -> None:
        self._text = text

    def write_to_path(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_text(self._text)


class LeafCert:
    def __init__(self, text: str) -> None:
        self.private_key_and_cert_chain_pem = Blob(text)

    def configure_cert(self, context: ssl.SSLContext) -> None:
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            self.private_key_and_cert_chain_pem.write_to_path(file.name)
            context.load_cert_chain(file.name)


class CA:
    """A certificate authority that only these tests trust."""

    def __init__(self) -> None:
        request = ("req", "-x509", *NEW_KEY, "-days", "7", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            openssl(folder, *request, "-subj", "/O=tests/CN=CA", "-keyout", "key.pem", "-out", "certificate.pem")
            self._key, self._certificate = ((folder / file).read_text() for file in ("key.pem", "certificate.pem"))
        self.cert_pem = Blob(self._certificate)

    def configure_trust(self, context: ssl.SSLContext) -> None:
        context.load_verify_locations(cadata=self._certificate)

    def issue_cert(self, name: str, *, common_name: str | None = None) -> LeafCert:
        subject = "/O=tests" if common_name is None else f"/O=tests/CN={common_name}"
        kind = "email" if "@" in name else "DNS"
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "ca.key").write_text(self._key)
            (folder / "ca.pem").write_text(self._certificate)
            (folder / "names").write_text(f"subjectAltName={kind}:{name}\n")
            openssl(folder, "req", *NEW_KEY, "-subj", subject, "-keyout", "key.pem", "-out", "request.pem")
            signed = ("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
            openssl(folder, *signed, "-days", "7", "-extfile", "names", "-out", "certificate.pem")
            return LeafCert((folder / "key.pem").read_text() + (folder / "certificate.pem").read_text())
