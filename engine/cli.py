"""The command line: serve, generate, bench, inspect, probe.

Imports are late: what a command does not use it does not pay for.
"""

import os

# One BLAS thread for each of the engine's own: BLAS gives other bits for other thread counts.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import sys
import uuid
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Model = Annotated[Path, typer.Option("--model", "-m", help="The GGUF file.")]
Device = Annotated[str, typer.Option(help="cpu, or cuda:N.")]
ContextLength = Annotated[
    int, typer.Option(min=0, help="Tokens of prompt and completion together; 0: the model's own.")
]
KvCacheMb = Annotated[int, typer.Option(min=0, help="Budget of the KV cache in MiB; 0: none.")]
MemoryLimitMb = Annotated[
    int, typer.Option(min=0, help="Budget of weights + KV + workspace in MiB; 0: none.")
]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: one for each core.")]


@app.callback()
def engine(
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    """The reference engine of haikugate: one GGUF model on one device."""
    if version:
        from importlib.metadata import version as installed_version

        typer.echo(installed_version("haikugate"))
        raise typer.Exit


@app.command(
    epilog="Example: haikugate-engine serve --model model.gguf --port 8080 --context-length 2048"
)
def serve(
    model: Model,
    device: Device = "",
    gpu_device: Annotated[
        int | None, typer.Option(min=0, help="Short for --device cuda:N.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8080,
    uds: Annotated[Path | None, typer.Option(help="UNIX socket instead of a port.")] = None,
    worker_id: Annotated[str, typer.Option(help="A UUID; made up if omitted.")] = "",
    callback_url: Annotated[
        str | None, typer.Option(help="Receives one POST when the engine is ready.")
    ] = None,
    context_length: ContextLength = 0,
    max_tokens_out: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="The largest max_tokens of a request.")
    ] = 2048,
    inference_timeout_s: Annotated[
        float, typer.Option(min=0.001, help="How long one job may run.")
    ] = 300.0,
    kv_cache_mb: KvCacheMb = 0,
    memory_limit_mb: MemoryLimitMb = 0,
    residency_check_s: Annotated[
        float, typer.Option(min=0.0, help="Seconds between residency checks; 0: none.")
    ] = 60.0,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the API key that requests must carry.")
    ] = None,
    log_format: Annotated[
        str, typer.Option(help="json or human; human where stderr is a terminal.")
    ] = "",
    threads: Threads = 0,
) -> None:
    """Serve one model over HTTP until SIGTERM or POST /shutdown."""
    from engine.backends import LoadOptions
    from engine.service import ServeOptions
    from engine.service import serve as serve_model

    load = LoadOptions(
        device=_device(device, gpu_device),
        context_length=context_length,
        kv_cache_mb=kv_cache_mb,
        memory_limit_mb=memory_limit_mb,
        n_threads=threads,
    )
    api_key = _api_key(api_key_file)
    _check_address(host, uds, api_key)
    options = ServeOptions(
        model=model,
        load=load,
        host=host,
        port=port,
        uds=uds,
        worker_id=_worker_id(worker_id),
        callback_url=_callback_url(callback_url),
        max_tokens_out=max_tokens_out,
        inference_timeout_s=inference_timeout_s,
        residency_check_s=residency_check_s,
        api_key=api_key,
        log_format=_log_format(log_format),
    )
    raise typer.Exit(serve_model(options))


def _device(device: str, gpu_device: int | None) -> str:
    """The device asked for, in one form: cpu or cuda:N."""
    wanted = f"cuda:{gpu_device}" if gpu_device is not None else ""
    if device and wanted and device != wanted:
        raise typer.BadParameter(f"--device {device} and --gpu-device {gpu_device} disagree")
    device = device or wanted or "cpu"
    device = "cuda:0" if device == "cuda" else device
    kind, _, index = device.partition(":")
    if device != "cpu" and not (kind == "cuda" and index.isascii() and index.isdigit()):
        raise typer.BadParameter(f"--device: wanted cpu or cuda:N, got {device}")
    return device


def _api_key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--api-key-file {path}: cannot be read") from error
    if not key or not key.isascii() or not key.isprintable():
        raise typer.BadParameter(f"--api-key-file {path}: wanted one line of printable ASCII")
    return key


def _check_address(host: str, uds: Path | None, api_key: str | None) -> None:
    from engine.binding import is_loopback

    if uds is None and api_key is None and not is_loopback(host):
        raise typer.BadParameter(f"--host {host} is not loopback: it needs --api-key-file")
    if uds is not None and len(os.fsencode(uds)) > 107:
        raise typer.BadParameter("--uds: a UNIX socket's path has at most 107 bytes")


def _worker_id(worker_id: str) -> str:
    if not worker_id:
        return str(uuid.uuid4())
    try:
        return str(uuid.UUID(worker_id))
    except ValueError as error:
        raise typer.BadParameter("--worker-id: wanted a UUID") from error


def _callback_url(url: str | None) -> str | None:
    from engine.callback import is_callback_url

    if url is not None and not is_callback_url(url):
        raise typer.BadParameter("--callback-url: wanted an absolute http or https URL")
    return url


def _log_format(log_format: str) -> str:
    from engine.narration import FORMATS

    if log_format and log_format not in FORMATS:
        raise typer.BadParameter(f"--log-format: wanted json or human, got {log_format}")
    return log_format or ("human" if sys.stderr.isatty() else "json")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
