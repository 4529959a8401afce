"""The verdict of a runbook that only looks: its findings, and what they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it stands, and what to do if it does not."""

    level: Level
    subject: str
    text: str
    do: str = ""


@dataclass(frozen=True)
class Verdict:
    """All findings, the worst first."""

    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """Whether no finding fails."""
        return not any(f.level == "fail" for f in self.findings)

    @property
    def ready(self) -> bool:
        """Whether the mesh would come back from the dark."""
        return self.good

    def as_rows(self) -> list[dict[str, Any]]:
        """The findings as a table."""
        return [
            {"level": f.level, "subject": f.subject, "text": f.text, "do": f.do}
            for f in self.findings
        ]


@dataclass(frozen=True)
class Closer:
    """What a readiness run looks at besides the survey."""

    ca_token: timedelta | None = None  # life left of the token that Consul signs with
    gateways: Mapping[str, str] = field(default_factory=dict)  # by host: "" or why not dialled
