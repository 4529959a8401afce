"""
Making a Prefect server hold what is declared, one kind of object a function.

Each looks first and writes only on a difference, so that a second run changes
nothing: not even the ids of schedules and the runs already scheduled by them.
What an operator switched off in the UI (a schedule, a deployment) stays off.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from prefect.blocks.core import Block
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from blocks import documents
from blocks.errors import BadInput, Invalid
from deployments.prefect_file import Declared

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

Did = Literal["created", "updated", "unchanged"]
POOL_TYPE = "process"


class Applied(NamedTuple):
    """One object of the server, and what was done to it."""

    kind: str
    name: str
    did: Did


def block_types() -> list[type[Block]]:
    """Every block type of this project."""
    from blocks import collection

    return [getattr(collection, name) for name in collection.__all__]


def register(client: SyncPrefectClient, kinds: list[type[Block]]) -> Iterator[Applied]:
    """The server knows these block types, with their fields as they are now."""
    types = {known.slug for known in client.read_block_types()}
    schemas = {known.checksum for known in client.read_block_schemas()}
    for kind in kinds:
        kind.register_type_and_schema()
        slug = kind.get_block_type_slug()
        did: Did = "created" if slug not in types else "unchanged"
        yield Applied("block type", slug, did)
    # A type that was there may have got new fields; each set of fields is a schema of its own.
    new = {
        known.block_type_id
        for known in client.read_block_schemas()
        if known.checksum not in schemas
    }
    for known in client.read_block_types():
        if known.id in new and known.slug in types:
            yield Applied("block type", known.slug, "updated")


def save(name: str, block: Block) -> Applied:
    """A block document of this name holds this block's values, secrets included."""
    did: Did = "updated"
    try:
        found = documents.load(type(block), name)
    except Invalid:
        found = None  # stored by another version of its type; written anew
    else:
        if found is None:
            did = "created"
        elif _values(found) == _values(block):
            return Applied("block document", name, "unchanged")
    documents.save(block, name)
    return Applied("block document", name, did)


def is_stored(name: str, kind: type[Block]) -> bool:
    """Whether there is a block document of this name and kind, readable or not."""
    try:
        return documents.load(kind, name) is not None
    except Invalid:
        return True


def _values(block: Block) -> dict[str, Any]:
    return {name: getattr(block, name) for name in type(block).model_fields}


def ensure_limit(client: SyncPrefectClient, name: str, slots: int = 1) -> Applied:
    """A global concurrency limit of this name has so many slots and is on."""
    kind = "limit"
    try:
        found = client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))
        return Applied(kind, name, "created")
    if found.limit == slots and found.active:
        return Applied(kind, name, "unchanged")
    client.update_global_concurrency_limit(
        name, GlobalConcurrencyLimitUpdate(limit=slots, active=True)
    )
    return Applied(kind, name, "updated")


def ensure_pool(client: SyncPrefectClient, name: str) -> Applied:
    """
    A work pool of this name exists, and its workers start processes.

    Raises:
        BadInput: it exists and is of another type.
    """
    try:
        found = client.read_work_pool(name)
    except ObjectNotFound:
        from prefect.workers.process import ProcessWorker

        client.create_work_pool(
            WorkPoolCreate(
                name=name,
                type=POOL_TYPE,
                description="Runs the mesh's runbooks as processes of a worker.",
                base_job_template=ProcessWorker.get_default_base_job_template(),
            )
        )
        return Applied("work pool", name, "created")
    if found.type != POOL_TYPE:
        raise BadInput(f"work pool {name}: it is of type {found.type}, must be {POOL_TYPE}")
    return Applied("work pool", name, "unchanged")


def flow_of(entrypoint: str) -> Flow[..., Any]:
    """
    The flow behind a module entrypoint.

    Raises:
        BadInput: there is none.
    """
    module, _, attribute = entrypoint.rpartition(".")
    try:
        flow = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"prefect.yaml: {entrypoint}: {error}") from None
    from prefect import Flow

    if not isinstance(flow, Flow):
        raise BadInput(f"prefect.yaml: {entrypoint} is no flow")
    return cast("Flow[..., Any]", flow)


def deploy(client: SyncPrefectClient, declared: Declared) -> Applied:
    """
    A deployment as declared stands on the server.

    Raises:
        BadInput: its entrypoint leads to no flow, or a parameter is none of the flow's.
    """
    flow = flow_of(declared.entrypoint)
    schema = parameter_schema(flow)
    if strange := declared.parameters.keys() - schema.properties.keys():
        raise BadInput(
            f"prefect.yaml: {declared.name}: {flow.name} has no parameter {', '.join(sorted(strange))}"
        )
    found: DeploymentResponse | None = None
    with suppress(ObjectNotFound):
        found = client.read_deployment_by_name(f"{flow.name}/{declared.name}")
    wanted = _wanted(declared, schema.model_dump(mode="json"))
    if found is not None and _stands(found) == wanted:
        return Applied("deployment", declared.name, "unchanged")
    switched = {s.slug: s.active for s in found.schedules} if found else {}
    client.create_deployment(
        flow_id=client.create_flow_from_name(flow.name),
        name=declared.name,
        entrypoint=declared.entrypoint,
        description=declared.description,
        tags=declared.tags,
        parameters=declared.parameters,
        parameter_openapi_schema=wanted["schema"],
        enforce_parameter_schema=declared.enforce_parameter_schema,
        work_pool_name=declared.work_pool,
        work_queue_name=declared.work_queue,
        job_variables=declared.job_variables,
        concurrency_limit=declared.limit,
        concurrency_options=ConcurrencyOptions(
            collision_strategy=ConcurrencyLimitStrategy(declared.collision_strategy)
        ),
        schedules=[_schedule(given, switched) for given in declared.schedules],
        pull_steps=[],
    )
    return Applied("deployment", declared.name, "updated" if found else "created")


def _schedule(given: dict[str, Any], switched: dict[str | None, bool]) -> DeploymentScheduleCreate:
    slug = given["slug"]
    return DeploymentScheduleCreate(
        schedule=CronSchedule(cron=given["cron"], timezone=given["timezone"]),
        slug=slug,
        active=switched.get(slug, given.get("active", True)),
        parameters=given.get("parameters") or {},
    )


def _wanted(declared: Declared, schema: dict[str, Any]) -> dict[str, Any]:
    """What is to stand, in the shape of `_stands`."""
    return {
        "entrypoint": declared.entrypoint,
        "description": declared.description,
        "tags": declared.tags,
        "parameters": declared.parameters,
        "schema": _filled(schema),
        "enforced": declared.enforce_parameter_schema,
        "pool": (declared.work_pool, declared.work_queue),
        "job_variables": declared.job_variables,
        "limit": (declared.limit, declared.collision_strategy),
        "schedules": {
            s["slug"]: (s["cron"], s["timezone"], s.get("parameters") or {})
            for s in declared.schedules
        },
        "pull_steps": [],
    }


def _stands(found: DeploymentResponse) -> dict[str, Any]:
    limit, options = found.global_concurrency_limit, found.concurrency_options
    return {
        "entrypoint": found.entrypoint,
        "description": found.description or "",
        "tags": found.tags,
        "parameters": found.parameters,
        "schema": _filled(found.parameter_openapi_schema or {}),
        "enforced": found.enforce_parameter_schema,
        "pool": (found.work_pool_name, found.work_queue_name),
        "job_variables": found.job_variables,
        "limit": (
            limit.limit if limit else None,
            options.collision_strategy.value if options else "ENQUEUE",
        ),
        "schedules": {
            s.slug: (
                getattr(s.schedule, "cron", None),
                getattr(s.schedule, "timezone", None),
                s.parameters,
            )
            for s in found.schedules
        },
        "pull_steps": found.pull_steps or [],
    }


def _filled(schema: dict[str, Any]) -> dict[str, Any]:
    # Whether what is empty is left away depends on who wrote it: we, or `prefect deploy`.
    return {key: value for key, value in schema.items() if value not in ([], {}, None)}
