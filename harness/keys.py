"""Signing keys: ECDSA P-256 in PEM, from a file, from the environment, or made for one run."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from harness.errors import SignatureError

KEY_VARIABLE = "HAIKUGATE_SIGNING_KEY"
PASSPHRASE_VARIABLE = "HAIKUGATE_SIGNING_KEY_PASSPHRASE"  # noqa: S105
EPHEMERAL = "ephemeral"
LONG_LIVED = "key"
MAX_PEM_BYTES = 16 * 1024


@dataclass(frozen=True)
class PublicKey:
    """A verifier's key; `key_id` is the SHA-256 of its SubjectPublicKeyInfo in DER."""

    key: ec.EllipticCurvePublicKey

    @property
    def key_id(self) -> str:
        """Hex digest that names the key in envelopes and reports."""
        der = self.key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(der).hexdigest()

    @property
    def pem(self) -> bytes:
        """The key as openssl reads it."""
        return self.key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verify(self, signature: bytes, message: bytes) -> None:
        """Return if the DER signature holds over the message; raises SignatureError."""
        try:
            self.key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise SignatureError(f"the signature is not of key {self.key_id[:16]}") from None


@dataclass(frozen=True)
class Signer:
    """A private key and what is known of it: `key` from the user, or `ephemeral`."""

    key: ec.EllipticCurvePrivateKey
    kind: str

    @property
    def public(self) -> PublicKey:
        """The other half."""
        return PublicKey(self.key.public_key())

    def sign(self, message: bytes) -> bytes:
        """A DER-encoded ECDSA signature over SHA-256 of the message."""
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))


def ephemeral_signer() -> Signer:
    """A key that lives as long as this run: integrity only, it proves nobody's identity."""
    return Signer(ec.generate_private_key(ec.SECP256R1()), EPHEMERAL)


def parse_public_key(pem: bytes, where: str) -> PublicKey:
    """Read a PEM public key; raises SignatureError for anything but ECDSA P-256."""
    try:
        key = serialization.load_pem_public_key(pem[:MAX_PEM_BYTES])
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{where}: not a PEM public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SignatureError(f"{where}: wanted an ECDSA P-256 key, got another kind")
    return PublicKey(key)


def read_public_key(path: Path) -> PublicKey:
    """Read a PEM public key file."""
    return parse_public_key(read_pem(path), str(path))


def parse_private_key(pem: bytes, passphrase: str | None, where: str) -> Signer:
    """Read a PEM private key; raises SignatureError saying what is wrong with it."""
    secret = passphrase.encode() if passphrase else None
    try:
        key = serialization.load_pem_private_key(pem, secret)
    except TypeError as error:
        wanted = "needs no passphrase" if secret else f"needs a passphrase ({PASSPHRASE_VARIABLE})"
        raise SignatureError(f"{where}: the key {wanted}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{where}: not a PEM private key, or a wrong passphrase") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SignatureError(f"{where}: wanted an ECDSA P-256 key, got another kind")
    return Signer(key, LONG_LIVED)


def read_private_key(path: Path, passphrase: str | None = None) -> Signer:
    """Read a PEM private key file that nobody else may read."""
    pem = read_pem(path)
    if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SignatureError(f"{path}: others may read this private key; run chmod 600 on it")
    return parse_private_key(pem, passphrase, str(path))


def read_pem(path: Path) -> bytes:
    """The bytes of a key file; raises SignatureError."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_PEM_BYTES)
    except OSError as error:
        raise SignatureError(f"{path}: cannot read the key: {error.strerror}") from error


def signer_from_environment() -> Signer:
    """The key HAIKUGATE_SIGNING_KEY names (a path, or the PEM itself), else an ephemeral one."""
    value = os.environ.get(KEY_VARIABLE, "")
    passphrase = os.environ.get(PASSPHRASE_VARIABLE) or None
    if not value:
        return ephemeral_signer()
    if value.startswith("-----BEGIN"):
        return parse_private_key(value.encode(), passphrase, KEY_VARIABLE)
    return read_private_key(Path(value), passphrase)


def generate_key(path: Path, passphrase: str | None = None) -> Signer:
    """Write a new private key (mode 0600) and `<path>.pub` beside it; never overwrites."""
    signer = Signer(ec.generate_private_key(ec.SECP256R1()), LONG_LIVED)
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        protection = serialization.BestAvailableEncryption(passphrase.encode())
    pem = signer.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
    )
    _write_new(path, pem, 0o600)
    _write_new(public_path(path), signer.public.pem, 0o644)
    return signer


def public_path(path: Path) -> Path:
    """Where `generate_key` puts the public half."""
    return path.with_name(path.name + ".pub")


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise SignatureError(f"{path}: exists already; keys are never overwritten") from error
    except OSError as error:
        raise SignatureError(f"{path}: cannot write the key: {error.strerror}") from error
    with os.fdopen(file, "wb") as stream:
        stream.write(content)
