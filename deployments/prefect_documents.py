"""The block documents of one mesh: its topology, and the credentials that are here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect.blocks.core import Block
from pydantic import ValidationError

from blocks.aws import AwsAccount
from blocks.credentials import AWS, HOSTS, PROXMOX, VAULT, Credentials, Kind, find_file
from blocks.errors import BadInput
from blocks.meshes import MeshTopology
from blocks.proxmox import ProxmoxCluster
from blocks.ssh import HostAccess
from blocks.topology import AwsCloud, Holder, Mesh
from blocks.vault import VaultCluster

# Files on the machine that runs the runbooks, as opposed to those on hosts' disks.
_FILES = {"ca_file", "journal", "directory"}
_CREDENTIAL_FILES = {"key_file", "cert_file"}


def topology_document(mesh: Mesh) -> tuple[str, Block]:
    """
    The mesh as a block document, under its own name.

    Relative paths become absolute: a worker starts each run in a fresh directory.
    """
    document = mesh.model_dump(mode="json", exclude_unset=True)
    return mesh.name, MeshTopology(document=_absolute(document, _folder(mesh)))


def credential_documents(
    mesh: Mesh, environ: Mapping[str, str] = os.environ
) -> tuple[list[tuple[str, Block]], list[tuple[str, type[Block]]]]:
    """
    A document for each connection whose credential is here, and those for which none is.

    Looked for in the environment and in the credentials file; never printed.

    Raises:
        BadInput: half a credential, or a file that others may read.
    """
    credentials = Credentials(mesh.name, environ, find_file(mesh.origin, environ), False)
    documents: list[tuple[str, Block]] = []
    missing: list[tuple[str, type[Block]]] = []
    for connection, kind, block, known in _connections(mesh):
        name = credentials.document_name(connection)
        fields = credentials.fields(connection, kind)
        if fields is None:
            if connection != "vault":  # its own credential lies in the store `vault.credential`
                missing.append((name, block))
            continue
        given = _absolute(fields, _folder(mesh), _CREDENTIAL_FILES)
        values = {"auth": _auth(given)} if connection == "vault" else {**known, **given}
        documents.append((name, _made(connection, block, values)))
    return documents, missing


def _connections(mesh: Mesh) -> Iterator[tuple[str, Kind, type[Block], dict[str, Any]]]:
    """Each connection of a mesh once, with what the topology knows of it."""
    seen = {"hosts", "vault"}
    yield "hosts", HOSTS, HostAccess, {}
    yield "vault", VAULT, VaultCluster, {}
    for cloud in (dc.cloud for dc in mesh.datacenters):
        if cloud.connection in seen:
            continue
        seen.add(cloud.connection)
        if isinstance(cloud, AwsCloud):
            yield cloud.connection, AWS, AwsAccount, {"region": cloud.region}
        else:
            known = {"address": cloud.address, "ca_file": cloud.ca_file}
            yield cloud.connection, PROXMOX, ProxmoxCluster, _absolute(known, _folder(mesh))
    for holder in _holders(mesh):
        if holder.store == "aws-secrets-manager" and holder.connection not in seen:
            seen.add(holder.connection)
            yield holder.connection, AWS, AwsAccount, {"region": holder.region}


def _holders(mesh: Mesh) -> list[Holder]:
    vault = mesh.vault
    return [*vault.holders, *(h for h in (vault.credential, vault.issuing_ca) if h)]


def _auth(fields: Mapping[str, str]) -> dict[str, str]:
    kind = "token" if "token" in fields else "approle" if "role_id" in fields else "cert"
    return {"kind": kind, **fields}


def _made(connection: str, block: type[Block], values: Mapping[str, Any]) -> Block:
    try:
        return block.model_validate(values)
    except ValidationError as error:
        # What was given stays out of the message.
        raise BadInput(
            f"{connection}.{'.'.join(map(str, e['loc']))}: {e['msg']}"
            for e in error.errors(include_input=False)
        ) from None


def _folder(mesh: Mesh) -> Path | None:
    return mesh.origin.parent if mesh.origin else None


def _absolute(value: Any, folder: Path | None, names: set[str] = _FILES) -> Any:
    """The same document with its relative paths made absolute, as seen from `folder`."""
    if isinstance(value, list):
        return [_absolute(entry, folder, names) for entry in value]
    if not isinstance(value, dict) or folder is None:
        return value
    file_store = value.get("store") == "file"
    return {
        key: str(folder / Path(entry).expanduser())
        if isinstance(entry, str) and entry and (key in names or (file_store and key == "path"))
        else _absolute(entry, folder, names)
        for key, entry in value.items()
    }
