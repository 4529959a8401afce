"""Finding a mesh's topology by its name: in a file, or as a Prefect block."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, HttpUrl

from blocks import documents
from blocks.engine import Block
from blocks.errors import BadInput, MeshError
from blocks.nearest import did_you_mean
from blocks.topology import Mesh, parse

SUFFIXES = (".yaml", ".yml")
# Beside this package: in a checkout, and where the project is installed.
SHIPPED = Path(__file__).resolve().parent.parent / "deployments" / "meshes"


class MeshTopology(Block):
    """
    The topology of one mesh: what stands in git, without secrets.

    Example:
        ```python
        from blocks import MeshTopology

        topology = MeshTopology.load("BLOCK_NAME")
        mesh = topology.mesh()
        ```
    """

    _block_type_name = "Mesh Topology"
    _block_type_slug = "mesh-topology"
    _documentation_url = HttpUrl("https://developer.hashicorp.com/consul/docs/east-west")

    document: dict[str, Any] = Field(
        default={}, description="The topology, as its YAML file has it."
    )

    def mesh(self) -> Mesh:
        """The mesh; `BadInput` with one line a problem."""
        return parse(self.document)


def load_mesh(
    name_or_path: str, *, environ: Mapping[str, str] = os.environ, use_prefect: bool = True
) -> Mesh:
    """
    A mesh by its name, or by the path of its topology file.

    A name is looked for in `$MESH_TOPOLOGIES`, in the lab's state (`$MESH_LAB_DIR`,
    else `.lab`), in `deployments/meshes`, and among the Prefect blocks.

    Raises:
        BadInput: there is none such (with the places looked in), or it is
            wrong (one line a problem).
    """
    if "/" in name_or_path or name_or_path.endswith(SUFFIXES):
        file = Path(name_or_path).expanduser()
        if not file.is_file():
            raise BadInput(f"{name_or_path}: there is no such topology file")
        return read_mesh(file)
    if not re.fullmatch(r"[\w.-]+", name_or_path):
        raise BadInput(f"{name_or_path!r}: is neither the name of a mesh nor a path")
    places = _places(name_or_path, environ)
    for file in places:
        if file.is_file():
            return read_mesh(file)
    looked = ", ".join(str(file) for file in places)
    if use_prefect and documents.reachable():
        try:
            block = documents.load(MeshTopology, name_or_path)
        except MeshError as error:
            looked += f" and Prefect ({error})"
        else:
            if block is not None:
                return block.mesh()
            looked += f" and Prefect block {name_or_path}"
    known = sorted({file.stem for place in places for file in _topologies(place.parent)})
    raise BadInput(
        f"{name_or_path}: no such mesh{did_you_mean(name_or_path, known)} (looked in {looked})"
    )


def read_mesh(file: Path) -> Mesh:
    """The mesh of a topology file; `BadInput` with one line a problem, each with the file's name."""
    import yaml

    try:
        # Ten thousand declared tokens take the pure Python loader half a minute.
        document = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - safe
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: {getattr(error, 'strerror', None) or 'no text'}".lower()) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise BadInput(f"{file}: not YAML{line}: {getattr(error, 'problem', '')}") from None
    try:
        return parse(document).read_from(file.absolute())
    except BadInput as error:
        raise BadInput(f"{file.name}: {problem}" for problem in error.problems) from None


def _places(name: str, environ: Mapping[str, str]) -> list[Path]:
    lab = Path(environ.get("MESH_LAB_DIR") or ".lab")
    folders = [Path(environ["MESH_TOPOLOGIES"])] if environ.get("MESH_TOPOLOGIES") else []
    places = [folder / f"{name}.yaml" for folder in folders]
    if name == "lab":
        places.append(lab / "mesh.yaml")
    places += [lab / f"{name}.yaml", Path("deployments/meshes") / f"{name}.yaml"]
    if Path("deployments/meshes").absolute() != SHIPPED:
        places.append(SHIPPED / f"{name}.yaml")
    return places


def _topologies(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.yaml") if file.stem not in {"credentials", "mesh"}]
