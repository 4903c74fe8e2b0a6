"""An authority and a server's certificate, made for one test."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def make_certificate(folder, host):
    """Make an authority and a broker's certificate for `host`; return the paths (ca, certificate, key)."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)

    def certificate(subject, public, issuer_key, extension, critical):
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(name).public_key(public)
        made = made.serial_number(x509.random_serial_number()).not_valid_before(begin)
        made = made.not_valid_after(begin + datetime.timedelta(days=1)).add_extension(extension, critical)
        return made.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    alternative = x509.SubjectAlternativeName([x509.DNSName(host)])
    own = x509.BasicConstraints(ca=True, path_length=None)
    (folder / "ca.pem").write_bytes(certificate(name, authority.public_key(), authority, own, True))
    (folder / "broker.pem").write_bytes(certificate(subject, key.public_key(), authority, alternative, False))
    (folder / "broker.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return [str(folder / each) for each in ("ca.pem", "broker.pem", "broker.key")]
