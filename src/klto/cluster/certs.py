"""A small certificate authority for a cluster: one authority, a certificate for each role.

Made with the cryptography library, X.509 version 3 (RFC 5280). Dask checks that the other side's certificate is of
the authority and not the host name (distributed/security.py), so certificates carry the role alone.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from klto.errors import UsageError
from klto.files import make_directory, write_whole

ROLES = ("client", "scheduler", "worker")


def make_certificates(folder: Path, days: int, begin: datetime.datetime | None = None) -> list[Path]:
    """Make an authority, or use the one that is in ``folder``, and a new certificate for each role.

    :param begin: when they begin to be valid; now when None.
    :raises UsageError: when the folder cannot be written.
    """
    make_directory(folder)
    folder.chmod(0o700)
    # Clocks of machines differ a little.
    begin = begin or datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=10)
    until = begin + datetime.timedelta(days=days)
    key, authority = _authority(folder, begin, until)
    made = [folder / "ca.pem"]
    for role in ROLES:
        own = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(f"klto {role}", own, begin, until)
            .issuer_name(authority.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                # A worker and a scheduler speak to each other in both directions.
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        path = folder / f"{role}.pem"
        write_whole(path, _pem(own) + certificate.public_bytes(serialization.Encoding.PEM), mode=0o600)
        made.append(path)
    return made


def _authority(
    folder: Path, begin: datetime.datetime, until: datetime.datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key_path, path = folder / "ca-key.pem", folder / "ca.pem"
    if key_path.exists():
        try:
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except (ValueError, TypeError, OSError) as error:
            raise UsageError(f"cannot read the authority in {folder}: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UsageError(f"{key_path} is not a key that klto made")
        return key, certificate
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder("klto cluster authority", key, begin, until)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "klto cluster authority")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_signs_certificates(), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_whole(key_path, _pem(key), mode=0o600)
    write_whole(path, certificate.public_bytes(serialization.Encoding.PEM))
    return key, certificate


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, begin: datetime.datetime, until: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signs_certificates() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
