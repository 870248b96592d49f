"""Self-issued certificates: an authority of our own, and what it signs for the webhook's names.

The authority lives long and its key only signs; the server's certificate lives three months. Either is replaced after
two thirds of its life. A new authority is trusted beside the old one until that ends, so that operators which still
serve the old certificate are trusted as well.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME: Final = datetime.timedelta(days=3650)
SERVER_LIFETIME: Final = datetime.timedelta(days=90)
_CLOCK_SKEW: Final = datetime.timedelta(minutes=5)
_MAX_AUTHORITIES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """All of it in PEM."""

    certificate: bytes
    key: bytes
    ca_bundle: bytes
    """Who is trusted: the authority that signed the certificate first, then earlier ones."""
    ca_key: bytes


class Unusable(Exception):
    """What was kept is no certificate, key or authority of ours, or they do not belong together."""


def issue(hosts: Sequence[str], now: datetime.datetime, before: Issued | None = None) -> Issued:
    """A certificate for `hosts`, DNS names and IP addresses, by the authority of `before` as long as that is young.

    Raises Unusable when `before` is.
    """
    if before is not None and not _is_old(_authorities(before)[0], now):
        ca, ca_key = _authorities(before)[0], _load_key(before.ca_key)
        bundle = before.ca_bundle
    else:
        ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = _make_authority(ca_key, now)
        earlier = [] if before is None else _authorities(before)
        trusted = [ca, *(found for found in earlier if found.not_valid_after_utc > now)]
        bundle = b"".join(_pem(found) for found in trusted[:_MAX_AUTHORITIES])
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _make_server_certificate(key, hosts, ca, ca_key, now)
    return Issued(certificate=_pem(certificate), key=_pem_key(key), ca_bundle=bundle, ca_key=_pem_key(ca_key))


def is_due(issued: Issued, hosts: Iterable[str], now: datetime.datetime) -> bool:
    """Whether it is time for another: it, or its authority, is old, or it is for other names. Raises Unusable."""
    certificate, authority = _load(issued.certificate), _authorities(issued)[0]
    pairs = ((certificate, issued.key), (authority, issued.ca_key))
    if any(found.public_key() != _load_key(key).public_key() for found, key in pairs):
        raise Unusable("a key is not that of its certificate")
    with contextlib.suppress(Exception):  # what the library raises for a wrong signer depends on the key
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        given = {str(name.value) for name in names}
        return _is_old(certificate, now) or _is_old(authority, now) or given != set(hosts)
    raise Unusable("the certificate is not signed by the first authority")


def expiry_of(issued: Issued) -> datetime.datetime:
    """When the server's certificate ends. Raises Unusable."""
    return _load(issued.certificate).not_valid_after_utc


def _is_old(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return now < certificate.not_valid_before_utc or now >= certificate.not_valid_before_utc + lifetime * 2 / 3


def _make_authority(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shoal-operator webhook authority")])
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    builder = _builder(name, name, key.public_key(), now, AUTHORITY_LIFETIME).add_extension(constraints, critical=True)
    # Authorities have one name: this tells them apart.
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())


def _make_server_certificate(
    key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shoal-operator webhook")])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _builder(name, ca.subject, key.public_key(), now, SERVER_LIFETIME)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _authorities(issued: Issued) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(issued.ca_bundle)
    except ValueError as error:
        raise Unusable(f"the authorities cannot be read: {error}") from error


def _load(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise Unusable(f"the certificate cannot be read: {error}") from error


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise Unusable(f"the key cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Unusable("the key is of another kind")
    return key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
