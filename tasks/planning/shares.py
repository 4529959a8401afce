"""
Which key shares fit together, decided without showing them to Vault.

Vault splits its key with Shamir's scheme over GF(2^8) with the polynomial of
AES: a share is the value of one random polynomial per key byte at the point in
the share's last byte (hashicorp/vault, `shamir/shamir.go`). Any `threshold`
shares determine all others, so one share more than the threshold shows
whether they belong together, and two more show which one does not. A wrong
share then costs no failed attempt at all; without spare shares it costs one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations


def fitting(shares: Sequence[bytes], threshold: int) -> tuple[list[int], list[int]]:
    """
    Indices of shares to use, and of shares that certainly do not belong.

    Duplicates and shares of a different length than most are wrong. When there
    are too few to tell, all that could be right are offered and none is
    called wrong. Fewer usable shares than `threshold` yields ([], wrong).
    """
    wrong: list[int] = []
    lengths = [len(s) for s in shares]
    usual = max(set(lengths), key=lengths.count, default=0)
    points: dict[int, int] = {}
    for index, share in enumerate(shares):
        if len(share) != usual or usual < 2 or share[-1] == 0:
            wrong.append(index)
        elif share[-1] in points:
            if shares[points[share[-1]]] != share:
                # Two shares for one point: at least one is wrong, and which is unknown.
                continue
        else:
            points[share[-1]] = index
    usable = sorted(points.values())
    if len(usable) < threshold:
        return [], wrong
    if len(usable) == threshold:
        return usable, wrong
    best = max(
        (_agreeing(shares, usable, base) for base in combinations(usable, threshold)),
        key=len,
    )
    if len(best) == threshold:
        return usable[:threshold], wrong  # nothing agrees beyond chance: cannot tell
    return best, sorted({*wrong, *(set(usable) - set(best))})


def _agreeing(shares: Sequence[bytes], usable: Sequence[int], base: Sequence[int]) -> list[int]:
    """The shares that lie on the polynomials through `base`."""
    return [
        i
        for i in usable
        if i in base or _at([shares[b] for b in base], shares[i][-1]) == shares[i][:-1]
    ]


def _at(shares: Sequence[bytes], x: int) -> bytes:
    """The value at `x` of the polynomials through `shares` (Lagrange)."""
    points = [s[-1] for s in shares]
    weights = []
    for i, xi in enumerate(points):
        weight = 1
        for j, xj in enumerate(points):
            if i != j:
                weight = _multiply(weight, _multiply(x ^ xj, _inverse(xi ^ xj)))
        weights.append(weight)
    value = bytearray(len(shares[0]) - 1)
    for share, weight in zip(shares, weights, strict=True):
        for k in range(len(value)):
            value[k] ^= _multiply(share[k], weight)
    return bytes(value)


def _multiply(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= 0x11B
        b >>= 1
    return product


def _inverse(a: int) -> int:
    result = 1  # a^254, since a^255 == 1
    for _ in range(254):
        result = _multiply(result, a)
    return result
