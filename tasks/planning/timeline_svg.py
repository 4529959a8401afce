"""
The timeline of a run as one self-contained SVG, made by hand.

It carries its own background and both colour schemes, so that it reads in a
light and a dark page, as a file and as an image inside Markdown. The colours
are Okabe and Ito's, told apart without colour vision by their lightness too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal

from tasks.planning.timeline import MEANING, PHASES, Bar, natural

Theme = Literal["auto", "light", "dark"]

WIDTH = 960
ROW, THICK = 20, 12
HEAD, FOOT, GROUP = 72, 34, 30
_CHAR = 6.7  # a letter's mean width at 12 px, generously

_LIGHT = {
    "page": "#ffffff",
    "edge": "#d9dee5",
    "ink": "#1f2733",
    "soft": "#5c6675",
    "grid": "#e6eaef",
    "off": "#eceff3",
    "hatch": "#c3cad4",
    "booting": "#e69f00",
    "up": "#a6d4f2",
    "serving": "#00805e",
    "mark": "#ffffff",
    "bad": "#b3261e",
}
_DARK = {
    "page": "#161b22",
    "edge": "#30363d",
    "ink": "#e6edf3",
    "soft": "#9aa5b1",
    "grid": "#262d36",
    "off": "#21272f",
    "hatch": "#414a56",
    "booting": "#d99a1c",
    "up": "#2c5d84",
    "serving": "#1fae84",
    "mark": "#10151b",
    "bad": "#ff8a80",
}
_STYLE = """
text{{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:{ink}}}
.h{{font-size:16px;font-weight:600}}.s{{fill:{soft}}}.g{{font-weight:600;fill:{soft}}}
.page{{fill:{page};stroke:{edge}}}.grid{{stroke:{grid}}}.end{{stroke:{soft};stroke-dasharray:3 3}}
.off{{fill:{off}}}.hatch{{stroke:{hatch};stroke-width:1.5}}
.booting{{fill:{booting}}}.up{{fill:{up}}}.serving{{fill:{serving}}}
.mark{{fill:{mark}}}.bad{{fill:{bad}}}
"""


def svg(
    rows: Sequence[Bar],
    *,
    title: str = "What was up when",
    subtitle: str = "",
    groups: Mapping[str, str] | None = None,
    theme: Theme = "auto",
) -> str:
    """
    The picture of some bars; empty text if there are none.

    `groups` gives the heading that each host stands under, such as its
    datacenter; hosts in none stand last.
    """
    if not rows:
        return ""
    until = max(bar.segments[-1].end for bar in rows) or 1.0
    sections = _sections(rows, groups or {})
    name = min(max(len(bar.subject) for bar in rows), 30) * _CHAR + 34
    note = max(len(bar.note) for bar in rows) * _CHAR * 0.94 + 30
    left, right = name, WIDTH - max(note, 60)
    scale = (right - left) / until
    heads = sum(1 for heading, _ in sections if heading)
    height = HEAD + heads * GROUP + len(rows) * ROW + FOOT
    bottom = height - FOOT + 4

    parts = [_opening(height, theme, title, _described(rows, until))]
    parts.append(_head(title, subtitle, rows))
    step = tick(until, (right - left) / 64)
    for number in range(int(until / step + 1e-9) + 1):
        at = number * step
        x = left + at * scale
        parts.append(
            f'<line class="grid" x1="{x:.1f}" y1="{HEAD - 8}" x2="{x:.1f}" y2="{bottom}"/>'
        )
        unit = " s" if number == 0 else ""
        parts.append(
            f'<text class="s" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{at:g}{unit}</text>'
        )
    y = float(HEAD)
    for heading, members in sections:
        if heading:
            parts.append(f'<text class="g" x="20" y="{y + 19}">{escape(heading)}</text>')
            y += GROUP
        for bar in members:
            parts.append(_row(bar, y, left, scale, right))
            y += ROW
    return "\n".join([*parts, "</svg>\n"])


def tick(until: float, most: float) -> float:
    """The distance of the axis' marks in seconds: 1, 2 or 5 times a power of ten."""
    size = 0.1
    while True:
        for step in (size, size * 2, size * 5):
            if until / step <= max(most, 2):
                return round(step, 1)
        size *= 10


def _sections(rows: Sequence[Bar], groups: Mapping[str, str]) -> list[tuple[str, list[Bar]]]:
    found: dict[str, list[Bar]] = {}
    for bar in rows:
        found.setdefault(groups.get(bar.subject, ""), []).append(bar)
    order = list(dict.fromkeys(groups.values()))
    return sorted(
        found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)
    )


def _opening(height: float, theme: Theme, title: str, described: str) -> str:
    style = _STYLE.format(**(_DARK if theme == "dark" else _LIGHT))
    if theme == "auto":
        style += f"@media (prefers-color-scheme:dark){{{_STYLE.format(**_DARK)}}}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}"'
        f' height="{height:g}" role="img" aria-labelledby="t d">\n'
        f'<title id="t">{escape(title)}</title>\n<desc id="d">{escape(described)}</desc>\n'
        f"<style>{style}</style>\n"
        '<defs><pattern id="dark" width="6" height="6" patternUnits="userSpaceOnUse">'
        '<rect class="off" width="6" height="6"/>'
        '<path class="hatch" d="M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2"/></pattern></defs>\n'
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8"/>'
    )


def _described(rows: Sequence[Bar], until: float) -> str:
    """What the picture shows, for whoever does not see it."""
    lines = [f"{bar.subject}: {bar.note}" for bar in sorted(rows, key=lambda b: natural(b.subject))]
    return f"{len(rows)} hosts over {until:.1f} seconds. " + "; ".join(lines) + "."


def _head(title: str, subtitle: str, rows: Sequence[Bar]) -> str:
    parts = [f'<text class="h" x="20" y="30">{escape(title)}</text>']
    if subtitle:
        parts.append(f'<text class="s" x="20" y="50">{escape(subtitle)}</text>')
    used = [p for p in PHASES if any(s.phase == p for bar in rows for s in bar.segments)]
    entries = [(MEANING[p], _fill(p)) for p in used]
    if any(bar.leads_at is not None for bar in rows):
        entries.append(("leads", ""))
    x = WIDTH - 20 - sum(len(text) * _CHAR + 36 for text, _ in entries) + 14
    # Beside the title if it is short, under it if not.
    y = 20 if 20 + len(title) * 9.6 < x else 40
    for text, fill in entries:
        if fill:
            parts.append(f'<rect {fill} x="{x:.1f}" y="{y}" width="16" height="{THICK}" rx="2"/>')
        else:
            parts.append(
                f'<rect {_fill("serving")} x="{x:.1f}" y="{y}" width="16" height="{THICK}" rx="2"/>'
            )
            parts.append(_diamond(x + 8, y + 6))
        parts.append(f'<text x="{x + 22:.1f}" y="{y + 10}">{escape(text)}</text>')
        x += len(text) * _CHAR + 36
    return "\n".join(parts)


def _fill(phase: str) -> str:
    return 'fill="url(#dark)"' if phase == "off" else f'class="{phase}"'


def _diamond(x: float, y: float) -> str:
    return f'<path class="mark" d="M{x:.1f},{y - 4:g} l4,4 l-4,4 l-4,-4 z"/>'


def _row(bar: Bar, y: float, left: float, scale: float, right: float) -> str:
    middle = y + ROW / 2
    top = middle - THICK / 2
    label = bar.subject if len(bar.subject) <= 30 else bar.subject[:29] + "…"
    parts = [
        f"<g><title>{escape(bar.subject)}: {escape(bar.note)}</title>",
        f'<text x="{left - 12:.1f}" y="{middle + 4}" text-anchor="end">{escape(label)}</text>',
    ]
    for segment in bar.segments:
        x = left + segment.start * scale
        # A phase too short to draw is still shown; a gap parts it from the next.
        width = max((segment.end - segment.start) * scale - 1, 1.5)
        parts.append(
            f'<rect {_fill(segment.phase)} x="{x:.1f}" y="{top:g}" width="{width:.1f}" height="{THICK}"'
            f' rx="2"><title>{escape(bar.subject)}: {MEANING[segment.phase]},'
            f" {segment.start:.1f} s to {segment.end:.1f} s</title></rect>"
        )
    if bar.leads_at is not None:
        parts.append(_diamond(min(left + bar.leads_at * scale + 7, right - 7), middle))
    kind = "s" if bar.served_at is not None else "bad"
    parts.append(
        f'<text class="{kind}" x="{right + 12:.1f}" y="{middle + 4}">{escape(bar.note)}</text></g>'
    )
    return "\n".join(parts)
