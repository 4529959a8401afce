"""The smallest mesh there can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ACME: dict[str, Any] = {
    "name": "acme",
    "primary": "us-east-1",
    "datacenters": [
        {
            "name": "us-east-1",
            "cloud": {"kind": "aws", "region": "us-east-1"},
            "hosts": [{"name": "a-1", "address": "127.0.0.1"}],
            "consul": {"servers": ["a-1"], "intermediate_pki_path": "connect-us"},
        }
    ],
    "vault": {
        "nodes": ["a-1"],
        "address": "https://127.0.0.1:8200",
        "key_shares": 3,
        "key_threshold": 2,
        "holders": [{"name": f"ops-{n}", "store": "prompt", "shares": 1} for n in "abc"],
    },
}
CREDENTIALS = {
    "aws": {"access_key_id": "AKIA", "secret_access_key": "s3cr3t-of-aws", "region": "us-east-1"},
    "hosts": {"key_file": "id_ed25519"},
}


def write_topology(file: Path, **changes: Any) -> Path:
    """A topology file of the smallest mesh, with these fields of its own, and its credentials."""
    file.write_text(yaml.safe_dump(ACME | changes))
    credentials = file.parent / "credentials.yaml"
    if not credentials.exists():
        credentials.touch(0o600)
        credentials.write_text(yaml.safe_dump(CREDENTIALS))
    return file
