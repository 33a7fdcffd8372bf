"""The cryptography of secure aggregation: X25519, HKDF, masks by AES-CTR, sealed shares, Shamir's sharing, signatures.

The one idea: every primitive is a function of bytes, and random bytes are an argument. The package `cryptography`, the extra
`shoal[secagg]`, computes all but Shamir's sharing, imported in the functions that need it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Randomness: TypeAlias = Callable[[int], bytes]
"""How many bytes -> that many random bytes: os.urandom, but in tests."""

Words: TypeAlias = npt.NDArray[np.uint64]

KEY = 32  # bytes of a private key, a public key, a mask's seed and a signing seed
PRIME = 2**256 + 297  # the smallest prime above 2**256: every secret of 32 bytes is an element of its field
SHARE = 33  # bytes of an element
PIECE = 1 << 22  # bytes of a mask made at a time


def public_of(private: bytes) -> bytes:
    """The X25519 public key of a private key (RFC 7748)."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return bytes(X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw())


def agreed(private: bytes, public: bytes) -> bytes:
    """The secret that both owners compute (RFC 7748). Raises ValueError for a public key of low order."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    return bytes(X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public)))


def derived(secret: bytes, salt: bytes, info: bytes, length: int = KEY) -> bytes:
    """HKDF with SHA-256 (RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return bytes(HKDF(SHA256(), length, salt, info).derive(secret))


def mask(seed: bytes, n: int) -> Words:
    """`n` pseudorandom words of 64 bits: the key stream of AES-256-CTR under `seed`, 32 bytes that serve for this alone."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR

    stream = Cipher(AES(seed), CTR(bytes(16))).encryptor()
    words, zeros = np.empty(n, "<u8"), bytes(min(8 * n, PIECE))
    raw = words.view(np.uint8)
    for at in range(0, raw.size, PIECE):
        end = min(at + PIECE, raw.size)
        raw[at:end] = np.frombuffer(stream.update(zeros[: end - at]), np.uint8)
    return words if sys.byteorder == "little" else words.astype(np.uint64)


def sealed(key: bytes, nonce: bytes, plain: bytes, about: bytes) -> bytes:
    """AES-256-GCM of `plain`, which also vouches for `about`. nonce: 12 bytes, never used twice with this key."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return bytes(AESGCM(key).encrypt(nonce, plain, about))


def opened(key: bytes, nonce: bytes, cipher: bytes, about: bytes) -> bytes:
    """The bytes that were sealed. Raises ValueError if a byte of it, or of `about`, is another."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return bytes(AESGCM(key).decrypt(nonce, cipher, about))
    except InvalidTag:
        raise ValueError("a sealed share was changed on its way, or is another client's") from None


def signer_of(seed: bytes) -> bytes:
    """The Ed25519 public key of a signing seed (RFC 8032)."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return bytes(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())


def signed_by(seed: bytes, message: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return bytes(Ed25519PrivateKey.from_private_bytes(seed).sign(message))


def vouches(public: bytes, signature: bytes, message: bytes) -> bool:
    """True if the owner of this public key signed the message."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def shares_of(secret: bytes, threshold: int, places: Sequence[int], random: Randomness) -> dict[int, bytes]:
    """Shamir's shares of a secret of at most 32 bytes, one for each place, a number from 1 (Shamir 1979).

    Any `threshold` of them give the secret back, fewer tell nothing. Raises ValueError for a threshold that no set of places
    reaches.
    """
    if not 1 <= threshold <= len(set(places)) or min(places) < 1 or len(secret) > KEY:
        raise ValueError(f"threshold={threshold} of {len(places)} places, and {len(secret)} bytes: no such sharing")
    terms = [int.from_bytes(secret, "big"), *(_element(random) for _ in range(threshold - 1))]
    shares = {}
    for place in places:
        value = 0
        for term in reversed(terms):
            value = (value * place + term) % PRIME
        shares[place] = value.to_bytes(SHARE, "big")
    return shares


def _element(random: Randomness) -> int:
    """A uniform element of the field: 48 bytes reduced, off by less than 2**-127."""
    return int.from_bytes(random(48), "big") % PRIME


def joined(shares: Mapping[int, bytes], length: int = KEY) -> bytes:
    """The secret of `length` bytes that these shares give. Raises ValueError if they are not shares of one such secret."""
    total = 0
    for place, share in shares.items():
        above = below = 1
        for other in shares:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        total += int.from_bytes(share, "big") * above * pow(below, -1, PRIME)
    secret = total % PRIME
    if secret >> (8 * length):
        raise ValueError("these shares are not of one secret")
    return secret.to_bytes(length, "big")
