"""Certificates that the webhook issues for itself."""

from __future__ import annotations

import dataclasses
import datetime
import ssl
import tempfile

import pytest
from cryptography import x509

from shoal.operator.webhook.certificates import (
    AUTHORITY_LIFETIME,
    SERVER_LIFETIME,
    Issued,
    Unusable,
    expiry_of,
    is_due,
    issue,
)

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
HOSTS = ("shoal-operator.shoal-system.svc", "127.0.0.1")
DAY = datetime.timedelta(days=1)


def authorities(issued: Issued) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(issued.ca_bundle)


def test_a_client_that_trusts_the_authority_connects() -> None:
    now = datetime.datetime.now(datetime.UTC)
    issued = issue(("localhost",), now)
    assert _handshake(issued, issued.ca_bundle, "localhost") == "localhost"
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        _handshake(issued, issued.ca_bundle, "elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self.signed|unable to get local issuer|verify failed"):
        _handshake(issued, issue(("localhost",), now).ca_bundle, "localhost")


def test_it_is_renewed_before_it_ends() -> None:
    issued = issue(HOSTS, NOW)
    assert not is_due(issued, HOSTS, NOW)
    assert not is_due(issued, HOSTS, NOW + SERVER_LIFETIME / 2)
    assert is_due(issued, HOSTS, NOW + SERVER_LIFETIME * 3 / 4)
    assert is_due(issued, HOSTS, NOW - DAY), "it is not valid yet: clocks were set back"
    assert is_due(issued, HOSTS[:1], NOW), "it is for other names"
    later = issue(HOSTS, NOW + SERVER_LIFETIME * 3 / 4, issued)
    assert later.ca_bundle == issued.ca_bundle, "who trusts the authority trusts the next one"
    assert later.certificate != issued.certificate
    assert expiry_of(later) - expiry_of(issued) == SERVER_LIFETIME * 3 / 4


def test_a_new_authority_is_trusted_beside_the_old_one() -> None:
    first = issue(HOSTS, NOW)
    later = NOW + AUTHORITY_LIFETIME * 3 / 4
    assert is_due(first, HOSTS, later)
    second = issue(HOSTS, later, first)
    assert authorities(second)[1:] == authorities(first)
    assert not is_due(second, HOSTS, later)
    third = issue(HOSTS, later + AUTHORITY_LIFETIME * 3 / 4, second)
    assert authorities(third)[1:] == authorities(second)[:1], "those that ended are left out"


@pytest.mark.parametrize("field", ["certificate", "key", "ca_bundle", "ca_key"])
@pytest.mark.parametrize("junk", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_junk_is_not_used(field: str, junk: bytes) -> None:
    with pytest.raises(Unusable):
        is_due(dataclasses.replace(issue(HOSTS, NOW), **{field: junk}), HOSTS, NOW)


@pytest.mark.parametrize("field", ["certificate", "key", "ca_bundle", "ca_key"])
def test_parts_of_another_are_not_used(field: str) -> None:
    other = getattr(issue(HOSTS, NOW), field)
    with pytest.raises(Unusable):
        is_due(dataclasses.replace(issue(HOSTS, NOW), **{field: other}), HOSTS, NOW)


def _handshake(issued: Issued, trusted: bytes, name: str) -> str:
    """In memory; the name that the client was satisfied with."""
    serving, connecting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with tempfile.NamedTemporaryFile() as file:
        file.write(issued.certificate + issued.key)
        file.flush()
        serving.load_cert_chain(file.name)
    connecting.load_verify_locations(cadata=trusted.decode())
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    client = connecting.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() is not None
    return str(client.server_hostname)
