"""
Checksums as texts, ``"sha256:HEX"``, and a CRC of the whole from those of its parts.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

_TEXT = re.compile(r"([a-z0-9_]+):([0-9a-fA-F]+)")
_CRC32 = "crc32"
_POLYNOMIAL = 0xEDB88320
"""CRC-32 of ISO-HDLC, bits reversed: zlib's, gzip's and S3's."""


class Hasher(Protocol):
    """What :mod:`hashlib` offers, too."""

    def update(self, data: Any, /) -> None:
        """Go on with *data*."""
        ...

    def hexdigest(self) -> str:
        """Return the checksum so far."""
        ...


class _Crc32:
    def __init__(self) -> None:
        self.value = 0

    def update(self, data: Any, /) -> None:
        self.value = zlib.crc32(data, self.value)

    def hexdigest(self) -> str:
        return f"{self.value:08x}"


class Checksum(NamedTuple):
    """
    What data are expected to have.

    Attributes:
        algorithm: ``"crc32"``, or a name of :mod:`hashlib`.
        digest: In hexadecimal, lower case; None where it is only asked for.
    """

    algorithm: str
    digest: str | None

    @property
    def is_crc32(self) -> bool:
        """Whether it can be combined from those of parts."""
        return self.algorithm == _CRC32

    def hasher(self) -> Hasher:
        """Return what computes it."""
        return _Crc32() if self.is_crc32 else hashlib.new(self.algorithm, usedforsecurity=False)

    def text(self, hasher: Hasher) -> str:
        """Return what *hasher* found, as text."""
        return f"{self.algorithm}:{hasher.hexdigest()}"

    def matches(self, text: str) -> bool:
        """Tell whether *text* is what is expected."""
        return self.digest is None or hmac.compare_digest(text, str(self))

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


def parse_checksum(text: str) -> Checksum:
    """
    Return what *text* expects: ``"sha256:HEX"``, ``"crc32:HEX"``; or only asks for: ``"sha256"``.

    Raises:
        TypeError: It is no text.
        ValueError: The algorithm is unknown here, or the digest is not of its length.
    """
    if not isinstance(text, str):
        raise TypeError(f"a checksum is text such as 'sha256:HEX', got {text!r}")
    match = _TEXT.fullmatch(text)
    algorithm, digest = match.groups() if match else (text, None)
    length = _hex_length(algorithm)
    if length is None:
        raise ValueError(f"{text!r} is no checksum; write 'sha256:HEX', 'crc32:HEX' or another of hashlib's")
    if digest is not None and len(digest) != length:
        raise ValueError(f"{text!r}: {algorithm} has {length} hexadecimal digits, got {len(digest)}")
    return Checksum(algorithm, None if digest is None else digest.lower())


def crc32_text(value: int) -> str:
    """Return a CRC-32 as text."""
    return f"{_CRC32}:{value:08x}"


def _hex_length(algorithm: str) -> int | None:
    if algorithm == _CRC32:
        return 8
    if algorithm not in hashlib.algorithms_available:
        return None
    try:
        size = hashlib.new(algorithm, usedforsecurity=False).digest_size
    except ValueError:  # known to OpenSSL, but switched off
        return None
    return size * 2 or None  # those of any length have none


def combine_crc32(first: int, second: int, second_bytes: int) -> int:
    """
    Return the CRC-32 of data whose first part has *first* and the rest, of *second_bytes*, has *second*.

    So chunks may come in any order, and the file need not be read again. Half a microsecond where several second parts
    have the same size.

    See:
        crc32_combine of zlib: the first CRC is moved on by as many zero bytes, a multiplication modulo the polynomial.
    """
    return combine_all(first, (second,), second_bytes)


def combine_all(first: int, others: Iterable[int], nbytes: int) -> int:
    """Return the CRC-32 of data whose first part has *first*, followed by parts of *nbytes* each that have *others*."""
    a, b, c, d, e, f, g, h = _moved(nbytes)
    whole = first
    for other in others:
        whole = (
            a[whole & 15]
            ^ b[whole >> 4 & 15]
            ^ c[whole >> 8 & 15]
            ^ d[whole >> 12 & 15]
            ^ e[whole >> 16 & 15]
            ^ f[whole >> 20 & 15]
            ^ g[whole >> 24 & 15]
            ^ h[whole >> 28]
            ^ other
        )
    return whole


@functools.lru_cache(maxsize=64)
def _moved(nbytes: int) -> tuple[tuple[int, ...], ...]:
    """Return, for each four bits of a CRC, lowest first, what each of their values is once moved on by *nbytes*."""
    of_bit = [_power_of_x(nbytes)]  # that of the highest bit, which stands for 1; the others for powers of x
    while len(of_bit) < 32:
        of_bit.append(of_bit[-1] >> 1 ^ (_POLYNOMIAL if of_bit[-1] & 1 else 0))
    of_bit.reverse()
    tables = []
    for at in range(0, 32, 4):
        table = [0]
        for bit in of_bit[at : at + 4]:
            table += [bit ^ other for other in table]
        tables.append(tuple(table))
    return tuple(tables)


def _power_of_x(nbytes: int) -> int:
    """Return x to the power of 8 * *nbytes*, modulo the polynomial, bits reversed."""
    result, factor, bits = 1 << 31, 1 << 30, 8 * nbytes
    while bits:
        if bits & 1:
            result = _times(factor, result)
        factor = _times(factor, factor)
        bits >>= 1
    return result


def _times(a: int, b: int) -> int:
    """Return a times b modulo the polynomial, bits reversed."""
    product, bit = 0, 1 << 31
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product
