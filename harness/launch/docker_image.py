"""The image that is launched: found here or pulled, and named by its digest."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.errors import LaunchError
from harness.launch.docker_daemon import explained
from harness.observation import Json

OnPull = Callable[[int, int], None]
"""Pull progress: (bytes received, bytes known so far)."""


@dataclass(frozen=True)
class Image:
    """An image by what it contains: `id` is the SHA-256 of its configuration and layers."""

    name: str
    id: str
    repo_digests: tuple[str, ...]
    labels: Mapping[str, str]
    user: str

    def facts(self) -> dict[str, Json]:
        """What a bundle records of the image."""
        return {
            "image": self.name,
            "image_id": self.id,
            "repo_digests": list(self.repo_digests),
            "image_labels": dict(self.labels),
        }


def find_or_pull(client: Any, name: str, on_pull: OnPull | None = None) -> Image:
    """The image of this name or id; pulled, with progress, where it is not on this machine."""
    import docker.errors

    with explained(f"docker: image {name}"):
        try:
            return _image(name, client.images.get(name))
        except docker.errors.ImageNotFound:
            pass
    _pull(client, name, on_pull)
    with explained(f"docker: image {name}"):
        return _image(name, client.images.get(name))


def _image(name: str, found: Any) -> Image:
    config = found.attrs.get("Config") or {}
    return Image(
        name=name,
        id=str(found.id),
        repo_digests=tuple(found.attrs.get("RepoDigests") or ()),
        labels=dict(found.labels or {}),
        user=str(config.get("User") or ""),
    )


def _pull(client: Any, name: str, on_pull: OnPull | None) -> None:
    import docker.errors
    import requests.exceptions
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(name)
    try:
        stream = client.api.pull(repository, tag=tag or "latest", stream=True, decode=True)
        if on_pull is not None:
            _follow(stream, on_pull)
        else:
            with pull_bar(name) as on_bar:
                _follow(stream, on_bar)
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise LaunchError(
            f"docker: image {name} is not on this machine and cannot be pulled: "
            f"{str(error)[:300]}; build it (`docker build --file Dockerfile.gpu --tag {name} .`) "
            f"or name one that `docker image ls` shows"
        ) from None


def _follow(stream: Iterator[Mapping[str, Any]], on_pull: OnPull) -> None:
    import docker.errors

    received: dict[str, int] = {}
    totals: dict[str, int] = {}
    for message in stream:
        if "error" in message:
            raise docker.errors.DockerException(str(message["error"]))
        detail = message.get("progressDetail") or {}
        if message.get("status") == "Downloading" and "current" in detail:
            layer = str(message.get("id"))
            received[layer] = int(detail["current"])
            totals[layer] = max(int(detail.get("total") or 0), received[layer])
            on_pull(sum(received.values()), sum(totals.values()))


@contextmanager
def pull_bar(name: str) -> Iterator[OnPull]:
    """A progress bar on stderr while an image is pulled."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("pulling {task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)

        def advance(received_bytes: int, total_bytes: int) -> None:
            progress.update(task, completed=received_bytes, total=total_bytes or None)

        yield advance
