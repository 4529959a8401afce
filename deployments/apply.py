"""`mesh deploy`: a bare Prefect server gets everything that the runbooks of one mesh need there."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, NoReturn

from blocks.errors import BadInput, Forbidden, Transient
from deployments import engine

if TYPE_CHECKING:
    from blocks.topology import Mesh
    from deployments.prefect_objects import Applied

DONE, FAILED = 0, 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The arguments of `mesh deploy`."""
    made = _Parser(
        prog="mesh deploy",
        description="Register everything with a Prefect server: block types, the mesh's block "
        "documents, its limit, the work pool, and the deployments of prefect.yaml. "
        "PREFECT_API_URL says where the server is.",
        epilog="exit status: 0 all is as declared, 1 the server failed meanwhile, 2 bad input",
    )
    made.add_argument(
        "--mesh", default=os.environ.get("MESH", "lab"), metavar="NAME",
        help="name of the mesh or path to its topology file (default: $MESH, else lab)",
    )  # fmt: skip
    return made


def main(arguments: Sequence[str]) -> int:
    """
    Deploy for one mesh; the exit status.

    Holds afterwards: the server has the block types, the block documents, the
    limit, the work pool and the deployments as they are declared. A second run
    changes nothing and says so.

    Raises:
        BadInput: no or no answering Prefect server, no such mesh, or a wrong file.
    """
    given = parser().parse_args(arguments)
    url = _server()
    from blocks.mesh import load_mesh

    mesh = load_mesh(given.mesh)
    print(f"Prefect at {url}")
    applied: list[Applied] = []
    notices: list[str] = []
    try:
        with _told(url):
            for kind, objects in groupby(
                _apply(mesh, notices), key=lambda one: (one.kind, one.did)
            ):
                found = list(objects)
                applied += found
                print(f"  {kind[0]:<15} {kind[1]:<10} {' '.join(one.name for one in found)}")
    except (Transient, Forbidden) as error:
        print(f"mesh: {error}; what was applied stands, run it again", file=sys.stderr)
        return FAILED
    for notice in notices:
        print(f"  ! {notice}")
    print(_summary(mesh.name, applied))
    return DONE


def _server() -> str:
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        raise BadInput(
            "PREFECT_API_URL is not set: say where the Prefect server is, "
            "such as http://127.0.0.1:4200/api"
        )
    if reason := engine.unanswered(url):
        raise BadInput(
            f"Prefect at {url} {reason}: start it (prefect server start), or correct PREFECT_API_URL"
        )
    return url


def _apply(mesh: Mesh, notices: list[str]) -> Iterator[Applied]:
    # Only now: Prefect takes a second to import.
    from prefect.client.orchestration import get_client

    from deployments import prefect_documents, prefect_file, prefect_objects

    declared = prefect_file.read(mesh.name)
    for deployment in declared:
        prefect_objects.flow_of(deployment.entrypoint)
    documents, missing = prefect_documents.credential_documents(mesh)
    with get_client(sync_client=True) as client:
        yield from prefect_objects.register(client, prefect_objects.block_types())
        for name, block in [prefect_documents.topology_document(mesh), *documents]:
            yield prefect_objects.save(name, block)
        if absent := [name for name, kind in missing if not prefect_objects.is_stored(name, kind)]:
            notices.append(
                f"no block document {' '.join(absent)}, for neither the environment nor the "
                "credentials file has these credentials: workers need their own"
            )
        yield prefect_objects.ensure_limit(client, f"mesh-{mesh.name}")
        for pool in dict.fromkeys(d.work_pool for d in declared):
            yield prefect_objects.ensure_pool(client, pool)
        for deployment in declared:
            yield prefect_objects.deploy(client, deployment)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Give what goes wrong with the API one line; its own text may quote what was sent."""
    import httpx

    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        what = f"{error.request.method} {error.request.url.path}: {status}"
        if status in {401, 403}:
            raise Forbidden(
                what, where=f"Prefect at {url}", remedy="set PREFECT_API_AUTH_STRING"
            ) from None
        raise Transient(what, where=f"Prefect at {url}") from None
    except httpx.HTTPError as error:
        raise Transient(type(error).__name__, where=f"Prefect at {url}") from None


def _summary(mesh: str, applied: Sequence[Applied]) -> str:
    done = [one.did for one in applied]
    if set(done) <= {"unchanged"}:
        return f"{mesh}: nothing changed, all {len(done)} are as declared"
    pools = " ".join(dict.fromkeys(one.name for one in applied if one.kind == "work pool"))
    return (
        f"{mesh}: {done.count('created')} created, {done.count('updated')} updated, "
        f"{done.count('unchanged')} unchanged\n"
        f"Start a worker where the package is installed: prefect worker start --pool {pools}"
    )
