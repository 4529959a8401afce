"""
Where the credentials of a connection come from.

In this order: the environment, a file beside the topology, a Prefect block.
The first place that has a whole credential gives all of it; half of one is an
error, for mixing a key with another key's secret is worse than having none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blocks import documents
from blocks.errors import BadInput, MeshError
from blocks.files import read_secret
from blocks.nearest import did_you_mean

if TYPE_CHECKING:
    from blocks.engine import Block

B = TypeVar("B", bound="Block")

FILE_NAME = "credentials.yaml"


@dataclass(frozen=True)
class Kind:
    """What makes a whole credential of a connection: all fields of any one of `either`."""

    either: tuple[tuple[str, ...], ...]
    others: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that may be given."""
        return tuple(dict.fromkeys([*(f for group in self.either for f in group), *self.others]))

    def missing(self, given: Mapping[str, str]) -> tuple[str, ...]:
        """Fields that the begun credential still needs; none if one is whole."""
        lacking = [tuple(f for f in group if not given.get(f)) for group in self.either]
        begun = [
            rest for rest, group in zip(lacking, self.either, strict=True) if len(rest) < len(group)
        ]
        return min(begun or lacking, key=len)

    def begun(self, given: Mapping[str, str]) -> bool:
        """Whether any of its secrets is given."""
        return any(given.get(f) for group in self.either for f in group)


AWS = Kind(
    (("access_key_id", "secret_access_key"), ("profile",), ("default_chain",)),
    ("session_token", "region"),
)
PROXMOX = Kind((("user", "token_name", "token_value"), ("user", "password")))
HOSTS = Kind((("private_key",), ("key_file",)), ("user", "certificate"))
VAULT = Kind((("token",), ("role_id", "secret_id"), ("cert_file", "key_file")), ("mount", "name"))
CONSUL = Kind((("token",),))


@dataclass
class Credentials:
    """The places to look in for one mesh."""

    mesh: str
    environ: Mapping[str, str] = field(repr=False)
    file: Path | None
    use_prefect: bool
    _in_file: dict[str, Any] | None = field(default=None, repr=False)
    _prefect_fails: str = ""

    def fields(self, connection: str, kind: Kind) -> dict[str, str] | None:
        """
        The credential's fields from the environment or the file, `None` if neither has any.

        Raises:
            BadInput: a credential is given by half, or with unknown fields.
        """
        names = {f: variable(connection, f) for f in kind.fields}
        given = {f: self.environ[n] for f, n in names.items() if self.environ.get(n)}
        if kind.begun(given):
            if lacking := kind.missing(given):
                raise BadInput(
                    f"{names[f]}: is not set, though {_list(names[g] for g in given)} is"
                    for f in lacking
                )
            return given
        found = self._entry(connection, kind)
        if found is not None and (lacking := kind.missing(found)):
            raise BadInput(f"{self.file}: {connection}.{f}: is missing" for f in lacking)
        return found

    def document(self, connection: str, kind: type[B]) -> B | None:
        """
        The Prefect block document of a connection, `None` if there is none or no Prefect.

        A Prefect API that fails is none too, and not asked again: it may be
        down with the mesh. `missing` says so.
        """
        if self._prefect_fails or not (self.use_prefect and documents.reachable()):
            return None
        try:
            return documents.load(kind, self.document_name(connection))
        except MeshError as error:
            self._prefect_fails = str(error)
            return None

    def document_name(self, connection: str) -> str:
        """What the Prefect block document of a connection is called."""
        return f"{self.mesh}-{connection}"

    def missing(self, connection: str, kind: Kind) -> str:
        """One line that says where the credential could be put."""
        ways = (" and ".join(variable(connection, f) for f in group) for group in kind.either)
        first = " or ".join(ways)
        file = f"{connection} in {self.file}" if self.file else f"a {FILE_NAME} (MESH_CREDENTIALS)"
        block = f"Prefect block {self.document_name(connection)}"
        if self._prefect_fails:
            block += f" ({self._prefect_fails})"
        elif not (self.use_prefect and documents.reachable()):
            block += " (no Prefect API is in use)"
        return f"{connection}: no credentials: neither ({first}) in the environment, nor {file}, nor {block}"

    def _entry(self, connection: str, kind: Kind) -> dict[str, str] | None:
        entry = self._document().get(connection)
        if entry is None:
            return None
        if not isinstance(entry, dict):
            raise BadInput(f"{self.file}: {connection}: must be a mapping")
        if unknown := [str(name) for name in entry if name not in kind.fields]:
            raise BadInput(
                f"{self.file}: {connection}.{name}: unknown field{did_you_mean(name, kind.fields)}"
                for name in unknown
            )
        if nested := [str(name) for name, value in entry.items() if isinstance(value, dict | list)]:
            raise BadInput(f"{self.file}: {connection}.{name}: must be a text" for name in nested)
        return {name: str(value) for name, value in entry.items() if value is not None}

    def _document(self) -> dict[str, Any]:
        if self._in_file is None:
            self._in_file = {} if self.file is None else read_yaml_secret(self.file)
        return self._in_file


def find_file(origin: Path | None, environ: Mapping[str, str]) -> Path | None:
    """
    The credentials file of a mesh: the one named in the environment, or that beside its topology.

    Raises:
        BadInput: the environment names one that is not there.
    """
    if named := environ.get("MESH_CREDENTIALS"):
        file = Path(named).expanduser()
        if not file.exists():
            raise BadInput(f"MESH_CREDENTIALS={named}: there is no such file")
        return file
    beside = origin.parent / FILE_NAME if origin else None
    return beside if beside and beside.exists() else None


def read_yaml_secret(file: Path) -> dict[str, Any]:
    """A YAML mapping from a file with secrets; `BadInput` without quoting it."""
    import yaml

    data = read_secret(file)
    if data is None:
        raise BadInput(f"{file}: there is no such file")
    try:
        value = yaml.safe_load(data)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise BadInput(f"{file}: not YAML{line}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadInput(f"{file}: must be a mapping")
    return value


def variable(connection: str, name: str) -> str:
    """The environment variable of one field: `MESH_AWS_ACCESS_KEY_ID`."""
    return f"MESH_{connection}_{name}".upper().replace("-", "_")


def _list(names: Any) -> str:
    return " and ".join(names)
