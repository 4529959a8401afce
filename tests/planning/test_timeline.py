"""What was up when, from a run's events: bars, lines and a picture."""

from __future__ import annotations

from itertools import count
from xml.etree import ElementTree as ET

import pytest

from tasks.planning.survey import dark, healthy
from tasks.planning.timeline import ASCII, Segment, bars, natural, opening, terminal
from tasks.planning.timeline_svg import svg, tick
from tasks.record import Event, Recorder
from tests.planning.meshes import NOW, mesh
from tests.planning.model import World

SVG = "{http://www.w3.org/2000/svg}"


def seen(*states: tuple[float, str, str]) -> list[Event]:
    return [Event(at, "seen", host, text) for at, host, text in states]


BOOT = seen(
    (0.2, "vault-1", "off"),
    (0.2, "us-app-1", "off"),
    (0.2, "us-consul-1", "off"),
    (1.0, "vault-1", "powered"),
    (1.0, "us-consul-1", "powered"),
    (1.0, "us-app-1", "powered"),
    (4.2, "vault-1", "ssh"),
    (4.5, "us-consul-1", "ssh"),
    (4.6, "us-app-1", "ssh"),
    (5.0, "vault-1", "vault listening"),
    (7.9, "vault-1", "unsealed"),
    (8.4, "vault-1", "active"),
    (10.3, "us-consul-1", "leader"),
    (12.0, "us-app-1", "consul up"),
    (20.9, "us-app-1", "serving"),
)


def test_a_host_goes_from_off_to_serving():
    bar = next(b for b in bars(BOOT, end=21.4) if b.subject == "vault-1")
    assert bar.segments == (
        Segment(0.0, 1.0, "off"),
        Segment(1.0, 4.2, "booting"),
        Segment(4.2, 7.9, "up"),
        Segment(7.9, 21.4, "serving"),
    )
    assert bar.note == "up at 4.2 s, unsealed at 7.9 s"
    assert bar.leads_at == 8.4


def test_an_agent_below_a_service_is_on_the_way_not_there():
    bar = next(b for b in bars(BOOT, end=21.4) if b.subject == "us-app-1")
    assert bar.served_at == 20.9
    assert bar.note == "up at 4.6 s, answers at 20.9 s"


def test_whoever_serves_first_stands_on_top():
    assert [b.subject for b in bars(BOOT)] == ["vault-1", "us-consul-1", "us-app-1"]


def test_hosts_named_alike_stand_together_in_the_order_of_their_numbers():
    events = seen((3, "a-10", "leader"), (2, "b-1", "leader"), (1, "a-9", "leader"))
    assert [b.subject for b in bars(events)] == ["a-9", "a-10", "b-1"]
    assert natural("a-9") < natural("a-10")


def test_a_host_that_never_came_back_says_so():
    (bar,) = bars(seen((0, "us-app-1", "off"), (1, "us-app-1", "powered")), end=60)
    assert bar.served_at is None
    assert bar.note == "does not let us in"
    (bar,) = bars(seen((0, "us-app-1", "off"), (1, "us-app-1", "ssh")), end=60)
    assert bar.note == "up at 1.0 s, does not serve"


def test_a_host_that_falls_starts_anew():
    events = seen((1, "h", "powered"), (2, "h", "leader"), (5, "h", "off"), (9, "h", "leader"))
    (bar,) = bars(events, end=10)
    assert [s.phase for s in bar.segments] == ["off", "booting", "serving", "off", "serving"]
    assert bar.served_at == 9
    assert bar.note == "leads at 9.0 s"


def test_a_host_on_before_the_run_was_up_and_did_not_serve():
    """The storm: nothing is powered on, and leaders appear."""
    (bar,) = bars(seen((5, "us-consul-1", "leader")), end=10)
    assert [s.phase for s in bar.segments] == ["up", "serving"]


def test_who_served_all_along_is_left_out():
    usual = mesh()
    recorder = Recorder(clock=count().__next__)
    for host, state in opening(usual, healthy(usual, NOW)).items():
        recorder.seen(host, state)
    recorder.seen("us-consul-1", "leader")
    assert len(recorder.events) == len(list(usual.hosts())) + 1
    assert bars(recorder.events, end=5) == []


def test_the_opening_tells_the_dark_from_the_serving():
    usual = mesh()
    assert set(opening(usual, dark(usual, NOW)).values()) == {"off"}

    world = World.up(usual)
    world.open.discard("vault-2")
    world.services.discard("web-portal@us-app-1")
    world.cut({"eu-app-1"})
    found = opening(usual, world.survey())
    assert found["vault-1"] == "already serving"
    assert "vault-2" not in found
    assert "us-app-1" not in found
    assert found["eu-app-1"] == "off"


def test_other_events_are_not_hosts_states():
    events = [
        Event(1, "seen", "", "a notice"),
        Event(2, "seen", "consul us-east-1", "signs leaves"),
        Event(3, "change", "vault-1", "unsealed"),
    ]
    assert bars(events) == []
    assert terminal([]) == []
    assert svg([]) == ""


def test_the_lines_have_bars_of_one_length_and_their_notes():
    lines = terminal(bars(BOOT, end=21.4), width=80)
    assert lines[0].startswith("  vault-1     ▕░▒▒")
    assert lines[0].endswith("█▏ up at 4.2 s, unsealed at 7.9 s")
    assert len({line.index("▏") for line in lines[:-1]}) == 1
    assert "21.4 s" in lines[-1]
    assert all(len(line) <= 80 for line in lines[:-1])


@pytest.mark.parametrize("width", [20, 40, 59, 80, 200])
def test_the_lines_fit_their_terminal(width: int):
    lines = terminal(bars(BOOT, end=21.4), width=width)
    assert len(lines) == 4
    assert all(len(line) <= max(width, 40) for line in lines[:-1])


def test_of_many_hosts_the_last_are_shown():
    events = seen(*((float(n), f"h{n}-x", "leader") for n in range(1, 101)))
    lines = terminal(bars(events), limit=30)
    assert lines[0].strip() == "70 hosts were up before these"
    assert len(lines) == 32
    assert any("h100-x" in line for line in lines)


def test_the_lines_can_do_without_unicode():
    line = terminal(bars(BOOT), glyphs=ASCII)[0]
    assert {"-", "#"} <= set(line)
    assert "█" not in line


def test_the_picture_is_well_formed_and_tells_what_it_shows():
    rows = bars(BOOT, end=21.4)
    groups = {"vault-1": "us & them", "us-consul-1": "us & them"}
    root = ET.fromstring(svg(rows, title="a <b>", subtitle="31 changes", groups=groups))
    assert root.get("role") == "img"
    assert root.find(f"{SVG}title").text == "a <b>"  # type: ignore[union-attr]
    described = root.find(f"{SVG}desc").text or ""  # type: ignore[union-attr]
    assert "vault-1: up at 4.2 s, unsealed at 7.9 s" in described
    words = [t.text for t in root.iter(f"{SVG}text")]
    assert {"us & them", "vault-1", "serving", "0 s", "20"} <= set(words)
    assert words.index("us & them") < words.index("vault-1") < words.index("us-app-1")


def test_the_picture_has_both_colour_schemes_and_needs_nothing_from_outside():
    text = svg(bars(BOOT))
    assert "prefers-color-scheme:dark" in text
    assert "href" not in text
    assert "script" not in text


def test_nothing_of_the_picture_is_outside_it():
    rows = bars(seen(*((n / 3, f"host-{n}", "leader") for n in range(1, 61))), end=30)
    root = ET.fromstring(svg(rows, title="x" * 70))
    _, _, width, height = map(float, (root.get("viewBox") or "").split())
    drawn = [r for r in root.iter(f"{SVG}rect") if r.get("x")]
    assert len(drawn) > 120
    for rect in drawn:
        left, top = float(rect.get("x", 0)), float(rect.get("y", 0))
        assert 0 <= left <= left + float(rect.get("width", 0)) <= width
        assert 0 <= top <= top + float(rect.get("height", 0)) <= height


@pytest.mark.parametrize(
    ("until", "step"), [(0.4, 0.1), (4, 0.5), (21.4, 2), (60, 5), (300, 50), (4000, 500)]
)
def test_the_axis_has_round_marks(until: float, step: float):
    assert tick(until, 12) == step
