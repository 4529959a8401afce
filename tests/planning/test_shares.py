"""Which shares fit together, without asking Vault."""

from __future__ import annotations

import secrets

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.planning.shares import fitting


def _times(a: int, b: int) -> int:
    """Multiplication in GF(2^8), written independently: carry-less, then reduced."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


def split(secret: bytes, shares: int, threshold: int) -> list[bytes]:
    """Shamir's scheme as Vault does it: one polynomial a byte, the point last."""
    polynomials = [bytes([byte]) + secrets.token_bytes(threshold - 1) for byte in secret]
    points = secrets.SystemRandom().sample(range(1, 256), shares)
    made = []
    for x in points:
        values = bytearray()
        for polynomial in polynomials:
            value, power = 0, 1
            for coefficient in polynomial:
                value ^= _times(coefficient, power)
                power = _times(power, x)
            values.append(value)
        made.append(bytes(values) + bytes([x]))
    return made


SECRET = secrets.token_bytes(32)


def test_all_shares_of_one_cluster_fit():
    """Five right shares are all offered."""
    assert fitting(split(SECRET, 5, 3), 3) == ([0, 1, 2, 3, 4], [])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4))
def test_one_wrong_share_among_five_is_found(place: int):
    """Whichever holder has it, it is named and not used: no failed attempt at Vault."""
    shares = split(SECRET, 5, 3)
    shares[place] = split(secrets.token_bytes(32), 1, 3)[0]
    while shares[place][-1] in {s[-1] for i, s in enumerate(shares) if i != place}:
        shares[place] = split(secrets.token_bytes(32), 1, 3)[0]

    assert fitting(shares, 3) == ([i for i in range(5) if i != place], [place])


def test_without_a_spare_share_nobody_is_accused():
    """Three shares of three cannot contradict each other; Vault decides, once."""
    shares = split(SECRET, 5, 3)[:2] + split(secrets.token_bytes(32), 1, 3)

    usable, wrong = fitting(shares, 3)

    assert len(usable) == 3
    assert wrong == []


def test_a_share_of_another_length_is_wrong():
    """A share cut in copying is named."""
    shares = split(SECRET, 5, 3)
    shares[1] = shares[1][:-4]

    assert fitting(shares, 3) == ([0, 2, 3, 4], [1])


def test_the_same_share_twice_counts_once():
    """Two holders with the same share do not make two."""
    shares = split(SECRET, 5, 3)[:2]

    assert fitting([*shares, shares[0]], 3) == ([], [])


def test_too_few_shares_yield_none():
    """Two of three are not offered: there is nothing to try."""
    assert fitting(split(SECRET, 5, 3)[:2], 3) == ([], [])


def test_what_is_no_share_is_wrong():
    """An empty or undecodable share is named, the rest still opens."""
    assert fitting([b"", *split(SECRET, 3, 3)], 3) == ([1, 2, 3], [0])
