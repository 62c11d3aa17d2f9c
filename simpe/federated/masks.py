"""Secure aggregation: clients' vectors are added up modulo 2^b, and the server sees nothing but the sum.

The protocol is that of Bonawitz et al. (CCS 2017, "Practical secure aggregation for privacy-preserving machine
learning", Fig. 4) for a server that follows it. Every pair of clients agrees on a mask that one adds and the other
subtracts, and each client adds one of its own. The secrets behind the masks are shared out among all (Shamir, CACM
1979), so that those who stay can take off the own masks of all who answered, and the pairwise ones of those who fell
silent; of one client they never give both. Keys are fresh for each release.

Masks are ChaCha20 streams, keys are agreed on by X25519 and derived by HKDF-SHA256. A ``secret`` that all clients hold
and the server does not, if there is one, enters the keys that seal the shares, together with both clients' public keys;
a client masks its vector with those alone whose shares it could open, so a server that swaps keys for its own learns
nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from simpe.federated.wire import Refused

Masked = NDArray[np.unsignedinteger[Any]]

KEYS = 64  # bytes of a client's two public keys
_PRIME = 2**521 - 1
_SHARE = 66  # bytes of a number below it
SEALED = 2 * _SHARE + 16  # bytes of two shares, sealed


def split(secret: bytes, n: int, threshold: int) -> list[int]:
    """n shares of a secret of 32 bytes; any ``threshold`` of them give it, and fewer say nothing."""
    terms = [int.from_bytes(secret, "big"), *(secrets.randbelow(_PRIME) for _ in range(threshold - 1))]
    shares = []
    for x in range(1, n + 1):
        value = 0
        for term in reversed(terms):
            value = (value * x + term) % _PRIME
        shares.append(value)
    return shares


def join(shares: Mapping[int, int]) -> bytes:
    """The secret, from shares by their places (counted from 1).

    Raises Refused where they do not belong together.
    """
    total = 0
    for x, value in shares.items():
        above = below = 1
        for other in shares:
            if other != x:
                above, below = above * other % _PRIME, below * (other - x) % _PRIME
        total = (total + value * above * pow(below, -1, _PRIME)) % _PRIME
    if total >= 2**256:
        raise Refused("a client's shares do not fit together")
    return total.to_bytes(32, "big")


class Party:
    """A client in one release: keys, sealed shares, a masked vector, and shares of what is to be taken off; each once.

    ``about`` names the release. A client is known by its public keys. ``threshold`` clients are to stay to the end.
    """

    def __init__(self, about: str, threshold: int, most: int, secret: bytes = b""):
        self.about, self.threshold, self.most, self.secret = about, threshold, most, secret
        self._talk, self._mask = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = secrets.token_bytes(32)
        self.keys = self._talk.public_key().public_bytes_raw() + self._mask.public_key().public_bytes_raw()
        self._all: list[bytes] = []
        self._held: dict[bytes, tuple[int, int]] = {}  # shares of seed and key, by whose they are
        self._masked = False

    def seal(self, everybody: Sequence[bytes]) -> dict[bytes, bytes]:
        """Shares of this client's secrets for each of the others, sealed. Raises Refused."""
        if self._all:
            raise Refused("keys were given before")
        self._all = sorted(everybody)
        if len(set(self._all)) < len(self._all) or self.keys not in self._all:
            raise Refused("a key is there twice, or this client's own is not")
        if not self.threshold <= len(self._all) <= self.most or any(len(key) != KEYS for key in self._all):
            raise Refused("there are fewer clients than agreed, or more")
        key = self._mask.private_bytes_raw()
        shares = zip(
            self._all,
            split(self._seed, len(self._all), self.threshold),
            split(key, len(self._all), self.threshold),
            strict=True,
        )
        sealed = {}
        for other, of_seed, of_key in shares:
            if other == self.keys:
                self._held[other] = (of_seed, of_key)
            else:
                content = of_seed.to_bytes(_SHARE, "big") + of_key.to_bytes(_SHARE, "big")
                sealed[other] = self._box(self.keys, other).encrypt(bytes(12), content, None)
        return sealed

    def mask(self, vector: NDArray[np.int64], bits: int) -> Masked:
        """The vector modulo 2^bits, under its own mask and the pairwise ones. Raises Refused."""
        if self._masked or len(self._held) < self.threshold:
            raise Refused("a vector was masked before, or there are no shares")
        self._masked = True
        dtype: type[np.unsignedinteger[Any]] = np.uint32 if bits == 32 else np.uint64
        total: Masked = vector.astype(np.uint64).astype(dtype) + stream(self._seed, len(vector), dtype)
        for other in self._held:
            if other != self.keys:
                pair = stream(self._agree(other), len(vector), dtype)
                total = total + pair if self.keys < other else total - pair
        return total

    def open(self, sealed: Mapping[bytes, bytes]) -> None:
        """Take in the shares that the others sent here. Raises Refused."""
        if self._masked or not self._all:
            raise Refused("a vector was masked before, or there are no keys")
        for other, content in sealed.items():
            if other not in self._all or other == self.keys:
                raise Refused("a share is from nobody here")
            try:
                plain = self._box(other, self.keys).decrypt(bytes(12), content, None)
            except InvalidTag:
                raise Refused("a share was altered on its way") from None
            self._held[other] = (int.from_bytes(plain[:_SHARE], "big"), int.from_bytes(plain[_SHARE:], "big"))
        if len(self._held) < self.threshold:
            raise Refused("there are fewer clients than agreed")

    def reveal(self, stayed: Sequence[bytes]) -> dict[bytes, int]:
        """A share of the own mask of each that stayed, and of the key of each that did not; once. Raises Refused."""
        if not self._masked or not self._held:
            raise Refused("there is nothing to take off, or it was done before")
        if len(set(stayed)) < max(self.threshold, len(stayed)) or not {*stayed, self.keys} <= set(self._held):
            raise Refused("there are fewer clients than agreed, or others")
        if self.keys not in stayed:
            raise Refused("this client's vector was not taken in")
        held, self._held = self._held, {}
        return {other: shares[0 if other in stayed else 1] for other, shares in held.items()}

    def _box(self, sender: bytes, receiver: bytes) -> ChaCha20Poly1305:
        other = receiver if sender == self.keys else sender
        shared = self._talk.exchange(_public(other[:32]))
        return ChaCha20Poly1305(derive(shared, self.secret, f"seal {self.about}", sender + receiver))

    def _agree(self, other: bytes) -> bytes:
        shared = self._mask.exchange(_public(other[32:]))
        return pair_key(shared, self.about, self.keys, other)


def _public(raw: bytes) -> X25519PublicKey:
    return X25519PublicKey.from_public_bytes(raw)


def derive(shared: bytes, secret: bytes, what: str, who: bytes) -> bytes:
    """A key for one purpose."""
    info = f"simpe federated {what} ".encode() + who
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=secret or None, info=info).derive(shared)


def pair_key(shared: bytes, about: str, one: bytes, other: bytes) -> bytes:
    """The key of the mask of two clients, the same for both."""
    return derive(shared, b"", f"mask {about}", min(one, other) + max(one, other))


def stream(key: bytes, n: int, dtype: type[np.unsignedinteger[Any]]) -> Masked:
    """n uniform numbers from a key that is used once."""
    size = n * np.dtype(dtype).itemsize
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    found: Masked = np.frombuffer(encryptor.update(bytes(size)), dtype).copy()
    return found


def unmask(
    about: str,
    vectors: Mapping[bytes, Masked],
    listed: Sequence[bytes],
    masked_with: Sequence[bytes],
    revealed: Mapping[bytes, Mapping[bytes, int]],
    threshold: int,
) -> NDArray[np.int64]:
    """The sum of the vectors that came, as signed numbers.

    ``vectors`` by clients' keys; ``listed`` are all whose keys were given out, in whose order shares were made,
    ``masked_with`` those whose masks the vectors bear; ``revealed``: who gave which shares. Raises Refused.
    """
    if len(revealed) < threshold:
        raise Refused("fewer clients than agreed stayed to the end")
    place = {key: i + 1 for i, key in enumerate(sorted(listed))}
    first = next(iter(vectors.values()))
    total, kind = np.zeros_like(first), first.dtype.type
    for vector in vectors.values():
        total += vector
    for whose in masked_with:
        given = {place[who]: shares[whose] for who, shares in revealed.items() if whose in shares}
        if len(given) < threshold:
            raise Refused("fewer clients than agreed stayed to the end")
        found = join(dict(list(given.items())[:threshold]))
        if whose in vectors:
            total -= stream(found, len(total), kind)
            continue
        key = X25519PrivateKey.from_private_bytes(found)
        if key.public_key().public_bytes_raw() != whose[32:]:
            raise Refused("a client's shares do not fit together")
        for who in vectors:  # it is gone; they still bear the masks that they share with it
            pair = stream(pair_key(key.exchange(_public(who[32:])), about, who, whose), len(total), kind)
            total = total - pair if who < whose else total + pair
    signed: NDArray[np.int64] = total.view(np.int32 if kind is np.uint32 else np.int64).astype(np.int64)
    return signed
