"""`.ci/trustme.py`, which stands in for trustme where cryptography has no wheel, issues what trustme issues."""

from __future__ import annotations

import importlib.util
import shutil
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the stand-in asks the command openssl")


@pytest.fixture(scope="module")
def stand_in() -> ModuleType:
    path = Path(__file__).parents[1] / ".ci" / "trustme.py"
    spec = importlib.util.spec_from_file_location("stand_in", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(module: Any, *arguments: str, **named: str) -> dict[str, Any]:
    """The certificate that a client sees, whose trust in the authority is configured by it."""
    authority = module.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    authority.issue_cert(*arguments, **named).configure_cert(server)
    authority.configure_trust(client)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    for _ in range(2):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate = ends[0].getpeercert()
    assert certificate is not None
    names = dict(part for parts in certificate["subject"] for part in parts)  # type: ignore[union-attr]
    return {"alternatives": certificate["subjectAltName"], "common name": names.get("commonName")}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("localhost",), {}),
        (("client@example.org",), {}),
        (("localhost",), {"common_name": "chosen"}),
    ],
)
def test_the_stand_in_issues_what_trustme_issues(
    stand_in: ModuleType, arguments: tuple[str, ...], named: dict[str, str]
) -> None:
    assert shown(stand_in, *arguments, **named) == shown(trustme, *arguments, **named)
