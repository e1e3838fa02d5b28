"""DSSE envelopes in Sigstore bundles (v0.3 JSON, public-key hint, no transparency log).

Sources: secure-systems-lab/dsse `protocol.md` (pre-authentication encoding), in-toto Statement v1,
sigstore `protobuf-specs` (`Bundle`). A bundle has one spelling: reading refuses any other.
"""

import base64
import binascii
from dataclasses import dataclass

from harness.errors import BundleError, SignatureError
from harness.keys import PublicKey, Signer
from harness.observation import Json
from harness.strict_json import as_object, dumps_file, dumps_line, loads

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """What DSSE really signs: type and payload with their lengths."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class SignedStatement:
    """A statement's bytes, their DER signature, and the id of the key that made it."""

    payload: bytes
    signature: bytes
    key_id: str

    def to_bytes(self) -> bytes:
        """The Sigstore bundle file."""
        return dumps_file(
            {
                "mediaType": MEDIA_TYPE,
                "verificationMaterial": {"publicKey": {"hint": self.key_id}, "tlogEntries": []},
                "dsseEnvelope": {
                    "payload": base64.b64encode(self.payload).decode(),
                    "payloadType": PAYLOAD_TYPE,
                    "signatures": [
                        {"sig": base64.b64encode(self.signature).decode(), "keyid": self.key_id}
                    ],
                },
            }
        )

    def verify(self, key: PublicKey, where: str) -> dict[str, Json]:
        """The statement, once the key's signature over it holds; raises SignatureError."""
        if self.key_id != key.key_id:
            raise SignatureError(
                f"{where}: signed by key {self.key_id[:16]}, wanted {key.key_id[:16]}"
            )
        try:
            key.verify(self.signature, pre_authentication_encoding(PAYLOAD_TYPE, self.payload))
        except SignatureError as error:
            raise SignatureError(f"{where}: {error}") from error
        return as_object(loads(self.payload, where), where)


def sign_statement(statement: dict[str, Json], signer: Signer) -> SignedStatement:
    """Sign a statement's one-line JSON."""
    payload = dumps_line(statement)
    signature = signer.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
    return SignedStatement(payload, signature, signer.public.key_id)


def parse_signed_statement(content: bytes, where: str) -> SignedStatement:
    """Read a Sigstore bundle of exactly our spelling; raises SignatureError naming `where`."""
    try:
        envelope = as_object(loads(content, where), where)["dsseEnvelope"]
        (signature,) = envelope["signatures"]
        signed = SignedStatement(
            payload=base64.b64decode(envelope["payload"], validate=True),
            signature=base64.b64decode(signature["sig"], validate=True),
            key_id=signature["keyid"],
        )
        same = signed.to_bytes() == content
    except (BundleError, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise SignatureError(
            f"{where}: not a Sigstore bundle with one envelope: {error}"
        ) from error
    if not same:
        raise SignatureError(f"{where}: a Sigstore bundle, but not spelled as haikugate writes it")
    return signed
