"""
Initialising Vault once, and a root token for the declared set-up.

Init cannot be made idempotent: its answer is the only copy of the keys. So the
holders' stores are proven first and say `intended`; a lost answer is found by
the next run, which builds nothing on keys nobody has.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from blocks.errors import BadAnswer, MeshError, Refused, Transient, Unsafe
from tasks import hosts, record, stopping, vault, vault_keys
from tasks.step import fan_out, step

if TYPE_CHECKING:
    from blocks.http import Api
    from blocks.mesh import Connections
    from tasks.vault import Share

INIT_DEADLINE = 120.0  # a slow init that answers late must not look like a lost one


@step("initialise vault")
def initialise(connections: Connections, *, discard: bool = False) -> SecretStr:
    """
    Initialise the cluster, store every share, and give the initial root token.

    Holds afterwards: one node is initialised, each holder's store has its
    shares and was read back. The root token is in memory only; the caller
    revokes it.

    Raises:
        Unsafe: some node is initialised already (B1), or a holder has shares.
        Refused: the answer to init was lost, or a share could not be stored;
            nothing was built on the keys, and the remedy is in the error.
    """
    mesh = connections.topology
    nodes = vault.look_at_all(connections)
    if strangers := [n for n in nodes if n.state != "uninitialised"]:
        seen = ", ".join(f"{n.host} is {n.state}" for n in strangers)
        raise Unsafe(
            f"not every node says uninitialised: {seen}",
            where="vault",
            remedy="run it again: it plans from what is there now",
        )
    for holder in mesh.vault.holders:
        vault_keys.intend(connections, holder, discard=discard)

    host = mesh.vault.nodes[0]
    answer = _send_init(connections, host)
    record.current().change(
        host,
        f"vault initialised, {mesh.vault.key_shares} shares, threshold {mesh.vault.key_threshold}",
        before="uninitialised",
    )
    keys = [
        SecretStr(str(k))
        for k in answer.get("keys_base64") or answer.get("recovery_keys_base64") or []
    ]
    if len(keys) != mesh.vault.key_shares or not answer.get("root_token"):
        raise Refused("init answered without all keys", where=host, remedy=lost_remedy())
    with stopping.shielded():  # this is the only copy there will ever be
        _hand_out(connections, keys)
    return SecretStr(str(answer["root_token"]))


def _hand_out(connections: Connections, keys: list[SecretStr]) -> None:
    """
    Give each holder its shares. One store that fails does not keep the others from theirs.

    Raises:
        Refused: some holder's shares could not be stored or read back.
    """
    vault = connections.topology.vault
    failed: list[str] = []
    kept = 0
    for holder in vault.holders:
        mine, keys = keys[: holder.shares], keys[holder.shares :]
        try:
            vault_keys.keep(connections, holder, mine)
            kept += holder.shares
        except MeshError as error:
            failed.append(f'holder "{holder.name}": {error}')
    if failed:
        enough = kept >= vault.key_threshold
        raise Refused(
            f"Vault is initialised, and {kept} of {vault.key_shares} key shares could be stored "
            f"({'; '.join(failed)})",
            where="vault",
            remedy=(
                f"correct that store and run it again: {kept} shares open Vault, rekey it then"
                if enough
                else f"correct that store; {lost_remedy()}"
            ),
        )


def lost_remedy() -> str:
    """What to do when nobody has the keys of a cluster nothing was built on."""
    return (
        "nothing was built on these keys: run again with --set initialise=true "
        "--set discard_lost_init=true, which sets the empty data directory aside and initialises anew"
    )


def _send_init(connections: Connections, host: str) -> dict[str, Any]:
    spec = connections.topology.vault
    auto = spec.seal != "shamir"
    kind = "recovery" if auto else "secret"
    body = {f"{kind}_shares": spec.key_shares, f"{kind}_threshold": spec.key_threshold}
    try:
        with connections.vault().node(host, deadline=INIT_DEADLINE) as api:
            answer: dict[str, Any] = api.put("/v1/sys/init", json=body).json(dict)
            return answer
    except Transient as error:
        # Did it arrive? Only the server knows, and it may still be at it.
        try:
            with connections.vault().node(host, deadline=10.0) as api:
                initialised = api.get("/v1/sys/init").json(dict).get("initialized")
        except MeshError:
            initialised = None
        if initialised is False:
            raise  # it never arrived: the step may try again
        raise Refused(
            "the answer to init was lost, so nobody has its keys", where=host, remedy=lost_remedy()
        ) from error


@step("set aside vault's empty data on {host}")
def set_aside(connections: Connections, host: str) -> None:
    """
    Move a node's data directory aside and start it empty; nothing is deleted.

    Only for a cluster whose init was lost: see `initialise`. A node that has
    no data is left as it is.
    """
    spec = connections.topology.vault
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    aside = f"{{root}}{spec.data_dir}.lost-{stamp}"
    with connections.hosts().connect(connections.topology.host(host)) as ssh:
        if hosts.active_units(ssh, [spec.unit])[spec.unit]:
            if vault.await_listening(connections, host).state == "uninitialised":
                return
            hosts.systemctl(ssh, "stop", [spec.unit])
        ssh.run(
            f'if [ -n "$(ls -A {{root}}{spec.data_dir})" ]; then mv {{root}}{spec.data_dir} {aside}; fi && '
            f"mkdir -p {{root}}{spec.data_dir} && "
            f"if [ -d {aside} ]; then chown --reference={aside} {{root}}{spec.data_dir} && "
            f"chmod --reference={aside} {{root}}{spec.data_dir}; fi",
            mutates=True,
            deadline=20.0,
        )
        hosts.systemctl(ssh, "start", [spec.unit])
    record.current().change(host, f"empty data set aside as {spec.data_dir}.lost-{stamp}")
    vault.await_listening(connections, host)


@contextmanager
def root_token(
    connections: Connections, shares: list[Share], initial: SecretStr | None = None
) -> Iterator[SecretStr]:
    """
    A root token for the length of a `with`, revoked at its end also on failure (B11).

    Either the one that init just gave, or one generated from key shares. An
    attempt that stands already is somebody's and is not cancelled here.

    Raises:
        Unsafe: another attempt to generate a root token is under way.
    """
    token = initial or _generate(connections, shares)
    try:
        yield token
    finally:
        with stopping.shielded():  # a run told to stop still takes its key with it
            revoke(connections, token)


@step("generate a root token")
def _generate(connections: Connections, shares: list[Share]) -> SecretStr:
    host = vault.await_active(connections)
    path = "/v1/sys/generate-root"
    with connections.vault().node(host) as api:
        attempt = api.get(f"{path}/attempt").json(dict)
        if attempt.get("started"):
            raise Unsafe(
                "an attempt to generate a root token is under way",
                where=host,
                remedy="let its owner finish it or cancel it: vault operator generate-root -cancel; "
                "one left by a killed run of this runbook is safe to cancel",
            )
        attempt = api.put(f"{path}/attempt", json={}).json(dict)
        record.current().change("vault", "generation of a root token begun")
        try:
            return _complete(api, attempt, shares)
        except BaseException:
            with stopping.shielded():
                _cancel(api, f"{path}/attempt")  # our own: its nonce is this attempt's
            raise


def _cancel(api: Api, path: str, tries: int = 3) -> None:
    # What stopped the attempt may stop this too, and nobody else may take it for his own.
    for left in reversed(range(tries)):
        try:
            api.delete(path)
        except Transient:
            if not left:
                raise
        else:
            return


def _complete(api: Api, attempt: dict[str, object], shares: list[Share]) -> SecretStr:
    status = attempt
    for share in shares:
        status = api.put(
            "/v1/sys/generate-root/update",
            json={"key": share.value.get_secret_value(), "nonce": attempt["nonce"]},
        ).json(dict)
        if status.get("complete"):
            break
    encoded = str(status.get("encoded_token") or status.get("encoded_root_token") or "")
    otp = str(attempt.get("otp") or "").encode()
    if not encoded or not otp:
        raise BadAnswer("generate-root did not complete", where="vault")
    # Unpadded base64 of the token, XORed with the one-time password.
    masked = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
    return SecretStr(bytes(a ^ b for a, b in zip(masked, otp, strict=True)).decode())


@step("cancel the generation of a root token")
def cancel_attempt(connections: Connections) -> None:
    """Cancel an attempt to generate a root token, if one is under way."""
    host = vault.await_active(connections)
    with connections.vault().node(host) as api:
        if api.get("/v1/sys/generate-root/attempt").json(dict).get("started"):
            api.delete("/v1/sys/generate-root/attempt")
            record.current().change("vault", "abandoned generation of a root token cancelled")


@step("revoke the root token")
def revoke(connections: Connections, token: SecretStr, *, deadline: float = 60.0) -> None:
    """Revoke a token by itself; one that is dead already is fine."""
    host = vault.await_active(connections, deadline=deadline)
    with connections.vault().node(host, token=token) as api:
        api.post("/v1/auth/token/revoke-self", answers=(204, 200, 403))
    record.current().change("vault", "root token revoked")


@step("revoke forgotten root tokens")
def revoke_forgotten(connections: Connections, root: SecretStr) -> int:
    """
    Revoke root tokens that a killed day-0 run left alive; how many there were.

    Only for a cluster whose set-up was never finished: nobody else works there.
    """
    host = vault.await_active(connections)
    with connections.vault().node(host, token=root) as api:
        own = api.get("/v1/auth/token/lookup-self").json(dict)["data"]["accessor"]
        listed = api.request("LIST", "/v1/auth/token/accessors", mutates=False).json(dict)
        accessors = [a for a in listed["data"]["keys"] if a != own]

        def is_root(accessor: str) -> bool:
            found = api.post(
                "/v1/auth/token/lookup-accessor",
                json={"accessor": accessor},
                mutates=False,
                answers=(200, 403, 404),
            )
            return found.status == 200 and "root" in (
                found.json(dict)["data"].get("policies") or []
            )

        roots = [a for a, yes in zip(accessors, fan_out(is_root, accessors), strict=True) if yes]
        for accessor in roots:
            api.post(
                "/v1/auth/token/revoke-accessor",
                json={"accessor": accessor},
                answers=(200, 204, 403, 404),
            )
            record.current().change("vault", "forgotten root token revoked", before=accessor)
    return len(roots)
