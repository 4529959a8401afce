"""A line about a name that nobody knows, with the nearest that somebody does."""

from __future__ import annotations

from collections.abc import Iterable


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """`rn: unknown command; did you mean run?`, or what there is if nothing is near."""
    names = list(known)
    if not names:
        return f"{name}: unknown {what}; there are none"
    return f"{name}: unknown {what}{did_you_mean(name, names) or '; there are ' + ', '.join(names)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean cold-boot?`, or nothing if nothing is near."""
    import difflib

    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.55)
    return f"; did you mean {' or '.join(near)}?" if near else ""
