"""Looking at a lab's servers from the outside, without the runbooks' own word for it."""

from __future__ import annotations

import secrets

import httpx
from pydantic import SecretStr

from tasks import survey
from tests.harness.lab import Lab


def client(lab: Lab, host: str, token: str = "", timeout: float = 3.0) -> httpx.Client:
    """A plain client of the Consul agent on a host."""
    address = lab.layout.host(host).address
    return httpx.Client(
        base_url=f"https://{address}:8501",
        verify=str(lab.layout.ca_file),
        timeout=timeout,
        headers={"X-Consul-Token": token} if token else {},
    )


def consistent(lab: Lab, host: str) -> bool:
    """Whether a read confirmed by a leader with its quorum comes through."""
    try:
        with client(lab, host) as consul:
            return consul.get("/v1/catalog/nodes?consistent").status_code == 200
    except httpx.HTTPError:
        return False


def management_token(lab: Lab) -> SecretStr:
    """Consul's management token, out of the lab's Vault."""
    with lab.connections() as connections:
        _, access = survey.look(connections)
    assert access.consul is not None
    return access.consul


def leaf_in(lab: Lab, datacenter: str, token: SecretStr) -> None:
    """A leaf for a name nobody used before is signed."""
    server = lab.layout.with_role("consul-server", datacenter)[0].name
    with client(lab, server, token.get_secret_value(), timeout=10.0) as consul:
        name = f"probe-{secrets.token_hex(4)}"
        answer = consul.get(f"/v1/agent/connect/ca/leaf/{name}")
        assert answer.status_code == 200, answer.text[:200]
        assert "BEGIN CERTIFICATE" in answer.json()["CertPEM"]


def verified(lab: Lab) -> None:
    """The mesh stands: asked of the servers, each datacenter for itself and of the other."""
    token = management_token(lab)
    for datacenter, other in (("us-east-1", "eu-west-1"), ("eu-west-1", "us-east-1")):
        servers = [h.name for h in lab.layout.with_role("consul-server", datacenter)]
        assert all(consistent(lab, host) for host in servers)
        leaf_in(lab, datacenter, token)
        with client(lab, servers[0], token.get_secret_value(), timeout=10.0) as consul:
            across = consul.get(f"/v1/catalog/nodes?dc={other}")
            assert across.status_code == 200, across.text[:200]
            assert len(across.json()) >= len(servers)
    portal, reporting = lab.layout.host("us-app-1").address, lab.layout.host("us-app-1").address
    assert httpx.get(f"http://{portal}:9191/", timeout=5.0).status_code == 200
    assert httpx.get(f"http://{portal}:9192/", timeout=5.0).status_code == 200
    assert httpx.get(f"http://{reporting}:9193/", timeout=5.0).status_code == 403
