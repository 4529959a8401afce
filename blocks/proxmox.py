"""The connection to one Proxmox VE cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from pydantic import Field, HttpUrl, SecretStr

from blocks.engine import Block
from blocks.errors import BadAnswer, BadInput, Invalid
from blocks.http import Api

if TYPE_CHECKING:
    from blocks.proxmox_api import Pve


class ProxmoxCluster(Block):
    """
    Address and credential of one Proxmox VE cluster.

    An API token is better than a password: it needs no login, and can be
    limited to the power management of single machines.

    Example:
        ```python
        from blocks import ProxmoxCluster

        cluster = ProxmoxCluster.load("BLOCK_NAME")
        with cluster.api() as pve:
            vm = pve.vms(["vault-1"])["vault-1"]
            pve.wait_task(pve.start(vm), deadline=60)
        ```
    """

    _block_type_name = "Proxmox Cluster"
    _block_type_slug = "proxmox-cluster"
    _documentation_url = HttpUrl("https://pve.proxmox.com/pve-docs/api-viewer/")

    address: str = Field(default="https://localhost:8006", description="Base URL of the API.")
    user: str = Field(default="root@pam", description="User with its realm.")
    token_name: str | None = Field(default=None, description="Name of the user's API token.")
    token_value: SecretStr | None = Field(default=None, description="Value of the API token.")
    password: SecretStr | None = Field(
        default=None, description="The user's password, where there is no API token."
    )
    ca_file: str | None = Field(
        default=None, description="File with the CA that signed the nodes' certificates."
    )
    ca_pem: str | None = Field(default=None, description="The same CA as text.")
    timeout_seconds: float = Field(
        default=10.0, gt=0, description="Limit on each whole call, in seconds."
    )

    def api(self, deadline: float | None = None) -> Pve:
        """
        The cluster's API, logged in; `deadline` is in seconds for each call.

        It may be used in a `with`, which closes its connections at once.

        Raises:
            Forbidden: the password is wrong. A wrong token shows at the first call.
            BadInput: the block holds no credential.
        """
        from blocks.proxmox_api import Pve

        limit = deadline or self.timeout_seconds
        return Pve(self._api(self._credential(limit), limit))

    def _api(self, headers: dict[str, str], limit: float) -> Api:
        return Api(
            f"proxmox {urlsplit(self.address).hostname or ''}".strip(),
            self.address,
            ca_file=self.ca_file,
            ca_pem=self.ca_pem,
            headers=headers,
            deadline=limit,
        )

    def _credential(self, limit: float) -> dict[str, str]:
        if self.token_name and self.token_value:
            value = self.token_value.get_secret_value()
            return {"Authorization": f"PVEAPIToken={self.user}!{self.token_name}={value}"}
        if not self.password:
            raise BadInput("proxmox: this connection holds neither an API token nor a password")
        password = self.password.get_secret_value()
        with self._api({}, limit) as api:
            answer = api.post(
                "/api2/json/access/ticket",
                content=urlencode({"username": self.user, "password": password}).encode(),
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                mutates=False,
                absent_ok=False,
                secrets=(password,),
            )
            data = answer.json(dict).get("data")
            if not isinstance(data, dict) or not isinstance(data.get("ticket"), str):
                raise BadAnswer(f"{answer.what}: it gives no ticket", where=api.server)
            if data.get("NeedTFA"):
                raise Invalid(
                    f"{self.user} needs a second factor",
                    where=api.server,
                    remedy="make an API token for this connection",
                )
        return {
            "Cookie": f"PVEAuthCookie={data['ticket']}",
            "CSRFPreventionToken": str(data.get("CSRFPreventionToken", "")),
        }
