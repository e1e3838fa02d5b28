"""The sealed container: what is asked of Docker, and what Docker says it really got."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness.launch.docker_files import SOCKET_DIRECTORY, User
from harness.observation import Json

GUEST_UID: Final = 10001
TMPFS_OPTIONS: Final = "rw,nosuid,nodev,noexec,size=512m,mode=1777"
PIDS_LIMIT: Final = 512
MIN_MEMORY_BYTES: Final = 4 << 30


@dataclass(frozen=True)
class DockerOptions:
    """How the docker launcher runs an image.

    `gpus` None = none, () = all, else indices or UUIDs. `sealed` False = with a network and a
    published port. `memory_bytes` 0 = three times the model's size and at least 4 GiB.
    """

    image: str
    gpus: tuple[str, ...] | None = None
    sealed: bool = True
    memory_bytes: int = 0
    pids_limit: int = PIDS_LIMIT


def guest_user(security_options: Sequence[str]) -> tuple[User, str]:
    """The container's user on this machine's side, and `user` as Docker is to be told.

    The harness's own user, so that both can use the socket; an unprivileged number where the
    harness is root. Under rootless Docker number 0 *is* the harness's own, unprivileged user.
    """
    uid, gid = os.geteuid(), os.getegid()
    if any("name=rootless" in option for option in security_options):
        return User(uid, gid), "0:0"
    user = User(uid, gid) if uid != 0 else User(GUEST_UID, GUEST_UID)
    return user, f"{user.uid}:{user.gid}"


def confinement(options: DockerOptions, memory_bytes: int) -> dict[str, Any]:
    """The arguments of `containers.create` that confine a container.

    Without the seal the image keeps its network, its user's rights and a writable root, so that
    images which need them can run; the limits stay.
    """
    from docker.types import LogConfig

    limits = {
        "network_mode": "bridge",
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": options.pids_limit,
        "mem_limit": memory_bytes,
        "memswap_limit": memory_bytes,
        "ipc_mode": "private",
        "init": True,
        "healthcheck": {"test": ["NONE"]},
        "log_config": LogConfig(type="json-file", config={"max-size": "64m", "max-file": "1"}),
        "device_requests": device_requests(options.gpus),
    }
    sealing = {
        "network_mode": "none",
        "read_only": True,
        "tmpfs": {"/tmp": TMPFS_OPTIONS},  # noqa: S108
        "cap_drop": ["ALL"],
        "userns_mode": "host",
    }
    return {**limits, **sealing} if options.sealed else limits


def device_requests(gpus: tuple[str, ...] | None) -> list[Any]:
    """Docker's words for no GPU (None), all of them (()), or these."""
    from docker.types import DeviceRequest

    if gpus is None:
        return []
    capabilities = [["gpu"]]
    if not gpus:
        return [DeviceRequest(count=-1, capabilities=capabilities)]
    return [DeviceRequest(device_ids=list(gpus), capabilities=capabilities)]


def image_user(user: str) -> User:
    """The user that an image's configuration names; -1 where it is a name, not a number."""
    uid, _, gid = user.partition(":")
    if not user or uid in ("0", "root"):
        return User(0, 0)
    return User(int(uid), int(gid) if gid.isdecimal() else -1) if uid.isdecimal() else User(-1, -1)


def memory_limit(options: DockerOptions, model_bytes: int) -> int:
    """The container's memory limit in bytes."""
    return options.memory_bytes or max(MIN_MEMORY_BYTES, 3 * model_bytes)


def seal(inspected: Mapping[str, Any]) -> dict[str, Json]:
    """Each property of the seal as `docker inspect` reports it, and `sealed`: whether all hold."""
    host = inspected.get("HostConfig") or {}
    config = inspected.get("Config") or {}
    networks = (inspected.get("NetworkSettings") or {}).get("Networks") or {}
    writable = [mount["Destination"] for mount in inspected.get("Mounts") or () if mount.get("RW")]
    holds = {
        "no_network": host.get("NetworkMode") == "none" and set(networks) <= {"none"},
        "no_published_port": not host.get("PortBindings"),
        "read_only_root": host.get("ReadonlyRootfs") is True,
        "mounts_read_only_but_socket": set(writable) <= {SOCKET_DIRECTORY},
        "no_capabilities": host.get("CapDrop") == ["ALL"] and not host.get("CapAdd"),
        "no_new_privileges": _no_new_privileges(host.get("SecurityOpt") or ()),
        "not_privileged": host.get("Privileged") is False,
        "no_host_namespace": not any(host.get(k) == "host" for k in ("PidMode", "IpcMode")),
        "no_host_device": not host.get("Devices"),
        "pids_limited": int(host.get("PidsLimit") or 0) > 0,
        "memory_limited": int(host.get("Memory") or 0) > 0,
        "user_named": bool(config.get("User")),
    }
    return {"sealed": all(holds.values()), "seal": holds, "user": config.get("User", "")}


def _no_new_privileges(options: Sequence[str]) -> bool:
    return any(option.replace("=", ":") in _NO_NEW_PRIVILEGES for option in options)


_NO_NEW_PRIVILEGES: Final = ("no-new-privileges", "no-new-privileges:true")
