"""What `prefect.yaml` declares, for one mesh."""

from __future__ import annotations

import re
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from blocks.errors import BadInput

_MESH = re.compile(r"\{\{\s*\$MESH\s*\}\}")
_OTHER = re.compile(r"\{\{.*?\}\}")
_KNOWN = {
    "name",
    "entrypoint",
    "description",
    "tags",
    "parameters",
    "enforce_parameter_schema",
    "concurrency_limit",
    "work_pool",
    "schedules",
}


@dataclass(frozen=True)
class Declared:
    """One deployment as the file declares it."""

    name: str
    entrypoint: str  # a module's path and the flow in it: flows.snapshot.snapshot
    description: str
    work_pool: str
    work_queue: str = "default"
    job_variables: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    enforce_parameter_schema: bool = True
    limit: int | None = None
    collision_strategy: str = "ENQUEUE"
    schedules: list[dict[str, Any]] = field(default_factory=list)


def path() -> Path:
    """
    The file: the checkout's, or the one that came with the installed package.

    Raises:
        BadInput: it is at neither place.
    """
    places = [
        Path(__file__).resolve().parents[1] / "prefect.yaml",
        Path(sysconfig.get_path("data")) / "share" / "mesh-runbooks" / "prefect.yaml",
    ]
    for place in places:
        if place.is_file():
            return place
    raise BadInput(f"prefect.yaml: not found at {' or '.join(map(str, places))}")


def read(mesh: str, file: Path | None = None) -> list[Declared]:
    """
    The deployments of one mesh, `{{ $MESH }}` filled in.

    Raises:
        BadInput: the file is none, or declares what `mesh deploy` does not know.
    """
    file = file or path()
    try:
        text = _MESH.sub(mesh, file.read_text(encoding="utf-8"))
        document = yaml.safe_load(text)
    except OSError as error:
        raise BadInput(f"{file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise BadInput(f"{file}{line}: not YAML") from None
    entries = document.get("deployments") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise BadInput(f"{file}: `deployments` must be a list")
    problems = [p for number, entry in enumerate(entries) for p in _problems(number, entry)]
    if problems:
        raise BadInput(f"{file.name}: {problem}" for problem in problems)
    return [_declared(entry) for entry in entries]


def _problems(number: int, entry: dict[str, Any]) -> list[str]:
    where = f"deployments[{entry.get('name', number)}]"
    problems = [f"{where}.{key}: missing" for key in ("name", "entrypoint") if not entry.get(key)]
    problems += [f"{where}.{key}: not known to `mesh deploy`" for key in entry.keys() - _KNOWN]
    if ":" in str(entry.get("entrypoint", "")):
        problems.append(f"{where}.entrypoint: must be a module's path, such as flows.x.x")
    if not (entry.get("work_pool") or {}).get("name"):
        problems.append(f"{where}.work_pool.name: missing")
    problems += [
        f"{where}: {placeholder}: only $MESH is filled in"
        for placeholder in dict.fromkeys(_OTHER.findall(str(entry)))
    ]
    for schedule in entry.get("schedules") or []:
        if not schedule.get("cron") or not schedule.get("timezone") or not schedule.get("slug"):
            problems.append(f"{where}.schedules: each needs slug, cron and timezone")
    return problems


def _declared(entry: dict[str, Any]) -> Declared:
    limit = entry.get("concurrency_limit")
    limits = limit if isinstance(limit, dict) else {"limit": limit}
    pool = entry["work_pool"]
    return Declared(
        name=entry["name"],
        entrypoint=entry["entrypoint"],
        description=(entry.get("description") or "").strip(),
        work_pool=pool["name"],
        work_queue=pool.get("work_queue_name") or "default",
        job_variables=pool.get("job_variables") or {},
        tags=[str(tag) for tag in entry.get("tags") or []],
        parameters=entry.get("parameters") or {},
        enforce_parameter_schema=entry.get("enforce_parameter_schema", True),
        limit=limits.get("limit"),
        collision_strategy=limits.get("collision_strategy") or "ENQUEUE",
        schedules=entry.get("schedules") or [],
    )
