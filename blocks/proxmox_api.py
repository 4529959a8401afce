"""
Virtual machines of a Proxmox VE cluster.

proxmoxer builds the paths and parses; the sending is ours, for its own has no
overall deadline, takes any page for an answer and raises `requests`' errors.
"""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from proxmoxer.core import ProxmoxResource

from blocks.errors import BadAnswer, Invalid, NotConverged, Transient
from blocks.http import Answer, Api

FIRST_POLL, LAST_POLL = 0.1, 1.0

# A task that finds its work done already fails; the type of the task is in its UPID.
_DONE_ALREADY = {
    "qmstart": "already running",
    "qmstop": "not running",
    "qmshutdown": "not running",
}


@dataclass(frozen=True)
class Vm:
    """One virtual machine and the node it is on."""

    vmid: int
    node: str
    status: str  # "running", "stopped"; "unknown" while its node is offline


@dataclass(frozen=True)
class Task:
    """One task of Proxmox VE; what it did to its work shows only in `exitstatus`."""

    status: str  # "running", "stopped"
    exitstatus: str  # "OK", "WARNINGS: 1", or why it failed; empty while it runs


class Pve:
    """
    The API of one cluster, as `ProxmoxCluster.api` gives it.

    `resource` is proxmoxer's own, for calls that have no method here:
    `pve.resource.nodes("pve1").qemu(100).config.get()`; its errors are ours.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._closer = weakref.finalize(self, api.close)
        self.server = api.server
        self.resource = ProxmoxResource(
            base_url=f"{api.base_url}/api2/json", session=_Session(api), serializer=_Serializer()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; they are closed too when the object is no longer used."""
        self._closer()

    def vms(self, names: Iterable[str] | None = None) -> dict[str, Vm]:
        """
        The virtual machines, templates excepted, by name; of these names only, if given.

        Raises:
            Invalid: two machines have the same name.
        """
        wanted = None if names is None else set(names)
        found: dict[str, Vm] = {}
        for entry in self._list(self.resource.cluster.resources.get(type="vm")):
            name = entry.get("name")
            if entry.get("type") != "qemu" or entry.get("template") or not isinstance(name, str):
                continue
            if wanted is not None and name not in wanted:
                continue
            try:
                vm = Vm(int(entry["vmid"]), str(entry["node"]), str(entry.get("status", "unknown")))
            except (KeyError, TypeError, ValueError):
                raise BadAnswer("the list of machines is malformed", where=self.server) from None
            if name in found:
                raise Invalid(
                    f"two machines are called {name}: {found[name].vmid} and {vm.vmid}",
                    where=self.server,
                    remedy="rename the one that is not this host",
                )
            found[name] = vm
        return found

    def start(self, vm: Vm) -> str:
        """Begin to start a machine; gives the task's UPID."""
        return self._upid(self._vm(vm).status.start.post())

    def stop(self, vm: Vm, *, hard: bool, timeout: int = 60) -> str:
        """
        Begin to stop a machine; gives the task's UPID.

        `hard` cuts its power; else its system is asked, and has `timeout`
        seconds before the task fails.
        """
        status = self._vm(vm).status
        return self._upid(status.stop.post() if hard else status.shutdown.post(timeout=timeout))

    def task(self, upid: str, deadline: float | None = None) -> Task:
        """How a task stands."""
        node = self._upid(upid).split(":")[1]
        path = f"/api2/json/nodes/{node}/tasks/{upid}/status"
        entry = self._api.get(path, deadline=deadline, absent_ok=False).json(dict).get("data")
        if not isinstance(entry, dict) or not isinstance(entry.get("status"), str):
            raise BadAnswer(f"task {upid}: the answer has no status", where=self.server)
        return Task(entry["status"], str(entry.get("exitstatus") or ""))

    def wait_task(self, upid: str, deadline: float) -> Task:
        """
        Wait until a task has ended well, or found its work done already.

        Raises:
            NotConverged: it still ran after `deadline` seconds, or nobody could tell.
            Transient: it failed for what passes by itself, such as a lock.
            Invalid: it failed.
        """
        kind = self._upid(upid).split(":")[5]
        ends = time.monotonic() + deadline
        pause, last = FIRST_POLL, "it still runs"
        while True:
            try:
                left = max(ends - time.monotonic(), FIRST_POLL)
                task = self.task(upid, deadline=min(left, self._api.deadline))
            except Transient as error:
                last = str(error)
            else:
                if task.status == "stopped":
                    return self._ended(kind, upid, task)
                last = "it still runs"
            if time.monotonic() + pause > ends:
                raise NotConverged(
                    f"task {kind}: not ended within {deadline:g} s ({last})",
                    where=self.server,
                    remedy=f"look at task {upid} in the cluster's task log",
                )
            time.sleep(pause)
            pause = min(pause * 1.5, LAST_POLL)

    def _ended(self, kind: str, upid: str, task: Task) -> Task:
        said = task.exitstatus
        if said == "OK" or said.startswith("WARNINGS") or _DONE_ALREADY.get(kind, "\0") in said:
            return task
        message = f"task {kind} failed: {said or 'without a reason'}"
        if "got timeout" in said or "got lock" in said:
            raise Transient(message, where=self.server)
        raise Invalid(
            message, where=self.server, remedy=f"look at task {upid} in the cluster's task log"
        )

    def agent_addresses(self, vm: Vm) -> list[str]:
        """Addresses that the guest agent names, without `lo`'s; none while no agent answers."""
        try:
            answer = self._vm(vm).agent("network-get-interfaces").get()
        except Invalid as error:
            if re.search("guest agent|not running", error.message, re.IGNORECASE):
                return []
            raise
        interfaces = answer.get("result") if isinstance(answer, dict) else None
        return [
            str(address["ip-address"])
            for interface in self._list(interfaces)
            if interface.get("name") != "lo"
            for address in self._list(interface.get("ip-addresses") or [])
            if "ip-address" in address
        ]

    def _vm(self, vm: Vm) -> Any:
        return self.resource.nodes(vm.node).qemu(vm.vmid)

    def _list(self, value: Any) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise BadAnswer("the answer is no list of objects", where=self.server)
        return value

    def _upid(self, value: Any) -> str:
        if not isinstance(value, str) or not re.match(r"UPID:([^:]+:){7}", value):
            raise BadAnswer("the answer is no UPID", where=self.server)
        return value


class _Session:
    """What proxmoxer takes for a `requests` session."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def request(
        self,
        method: str,
        url: str,
        data: dict[str, Any] | None = None,
        params: dict[str, Any] | None = None,
    ) -> _Response:
        answer = self._api.request(
            method,
            urlsplit(url).path,
            content=urlencode(data, doseq=True).encode()
            if data
            else b""
            if method == "POST"
            else None,
            params={key: str(value) for key, value in (params or {}).items()},
            headers={"Content-Type": "application/x-www-form-urlencoded"} if data else {},
            absent_ok=False,
            secrets=tuple(str(value) for value in (data or {}).values() if len(str(value)) > 5),
        )
        return _Response(answer)


class _Response:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.status_code = answer.status
        self.content = answer.body
        self.text = answer.text


class _Serializer:
    def loads(self, response: _Response) -> Any:
        body = response.answer.json(dict)
        if "data" not in body:
            raise BadAnswer(
                f"{response.answer.what}: the answer has no data", where=response.answer.where
            )
        return body["data"]
