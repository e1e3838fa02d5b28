"""The command line: serve, generate, bench, inspect, probe.

Imports are late: what a command does not use it does not pay for.
"""

import os

# One BLAS thread for each of the engine's own: BLAS gives other bits for other thread counts.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.sampling_ranges import RANGES
from engine.strict_command import StrictCommand
from engine.strict_command import run as run_command_line

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
MaxTokensOut = Annotated[
    int, typer.Option(min=1, max=1 << 20, help="The largest max_tokens of a request.")
]
TimeoutS = Annotated[float, typer.Option(min=0.001, help="How long one job may run.")]
MOST_THREADS = 512
Threads = Annotated[
    int, typer.Option(min=0, max=MOST_THREADS, help="CPU threads; 0: one for each core.")
]


def _ranged(name: str, said: str, *flags: str) -> Any:
    """An option that takes what the API takes of the same name."""
    range_ = RANGES[name]

    def within(value: float | None) -> float | None:
        if value is not None and not range_.holds(value):
            raise typer.BadParameter(f"wanted {range_}, got {value}")
        return value

    return typer.Option(*flags, help=f"{said}; {range_}.", callback=within)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"haikugate-engine {version('haikugate')}")
        raise typer.Exit


@app.callback()
def engine(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """The reference engine of haikugate: one GGUF model on one device."""


@app.command(
    cls=StrictCommand,
    epilog="Example: haikugate-engine serve --model model.gguf --port 8080 --context-length 2048",
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
    max_tokens_out: MaxTokensOut = 2048,
    inference_timeout_s: TimeoutS = 300.0,
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
    _leave(serve_model(options))


def _leave(code: int) -> None:
    """End the process now: Python's own way out waits for threads, and a late signal kills it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@app.command(
    cls=StrictCommand,
    epilog='Example: haikugate-engine generate -m model.gguf --prompt "Once upon a time" -n 64',
)
def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="One completion; omit to chat.")
    ] = None,
    max_tokens: Annotated[int, _ranged("max_tokens", "How many", "--max-tokens", "-n")] = 256,
    temperature: Annotated[float, _ranged("temperature", "0.0 is greedy")] = 0.7,
    top_p: Annotated[float, _ranged("top_p", "1.0 is off")] = 1.0,
    top_k: Annotated[int, _ranged("top_k", "0 is off")] = 0,
    seed: Annotated[int | None, _ranged("seed", "Omit for a random one")] = None,
    device: Device = "",
    context_length: ContextLength = 0,
    threads: Threads = 0,
) -> None:
    """Complete one prompt, or chat, streaming to the terminal; Ctrl-C ends it."""
    from engine.backends import LoadOptions
    from engine.terminal import GenerateOptions, run

    options = GenerateOptions(
        model=model,
        load=LoadOptions(
            device=_device(device, None), context_length=context_length, n_threads=threads
        ),
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
    )
    raise typer.Exit(_reported(lambda: run(options)))


@app.command(cls=StrictCommand, epilog="Example: haikugate-engine inspect -m model.gguf --json")
def inspect(
    model: Model,
    context_length: ContextLength = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show a file's metadata, its tensors by type and bytes, and the memory it would need."""
    from engine.inspect_model import show

    raise typer.Exit(_reported(lambda: show(model, context_length, as_json=as_json)))


@app.command(
    cls=StrictCommand,
    epilog="Example: haikugate-engine bench -m model.gguf -p 512 -n 128 -r 5 --json",
)
def bench(
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="The GGUF file; default: the cached one.")
    ] = None,
    prefill: Annotated[str, typer.Option("-p", help="Prompt lengths, comma-separated.")] = "512",
    n_decode: Annotated[int, typer.Option("-n", min=1, help="Tokens to decode.")] = 128,
    depths: Annotated[str, typer.Option("-d", help="Context before decode.")] = "0",
    repeats: Annotated[int, typer.Option("-r", min=1)] = 5,
    device: Device = "",
    threads: Threads = 0,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="No model: GB/s of each block type's CPU kernel.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure prefill and decode speed, bytes a token, and the share of the memory roofline."""
    from engine.backends import LoadOptions
    from engine.bench import BenchOptions, default_model, run

    if kernels:
        from engine.bench_kernels import run as run_kernels

        raise typer.Exit(_reported(lambda: run_kernels(threads, repeats, as_json=as_json)))
    options = BenchOptions(
        model=model or default_model(),
        load=LoadOptions(device=_device(device, None), n_threads=threads),
        prefill_lengths=_numbers("-p", prefill),
        depths=_numbers("-d", depths),
        n_decode=n_decode,
        repeats=repeats,
    )
    raise typer.Exit(_reported(lambda: run(options, as_json=as_json)))


@app.command(cls=StrictCommand, epilog="Example: haikugate-engine probe dequant --seed 7")
def probe(
    name: Annotated[str, typer.Argument(help="Such as dequant; a wrong name lists all.")],
    model: Annotated[Path | None, typer.Option("--model", "-m", help="The GGUF file.")] = None,
    texts: Annotated[Path | None, typer.Option(help="JSON list of texts (tokenizer).")] = None,
    ids: Annotated[str, typer.Option(help="Token ids, comma-separated (logits).")] = "",
    rows: Annotated[str, typer.Option(help="Positions to print in full (logits).")] = "",
    arch: Annotated[str, typer.Option(help="Such as sm_80,sm_90 (kernels-compile).")] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "",
) -> None:
    """Print raw numbers of a white-box check as one JSON object."""
    import json

    from engine.probe import PROBES, ProbeOptions, run_probe

    if name not in PROBES:
        raise typer.BadParameter(f"no probe {name!r}; there are {', '.join(PROBES)}")
    options = ProbeOptions(
        device=_device(device, None),
        model=model,
        texts=texts,
        token_ids=_numbers("--ids", ids),
        rows=_numbers("--rows", rows),
        architectures=tuple(filter(None, arch.split(","))),
        seed=seed,
    )

    def run() -> int:
        typer.echo(json.dumps(run_probe(name, options), allow_nan=False))
        return 0

    raise typer.Exit(_reported(run))


def _reported(work: Callable[[], int]) -> int:
    """Run a command; an engine error is one line on stderr and exit code 1, Ctrl-C is 130."""
    from engine.errors import EngineError

    try:
        return work()
    except EngineError as error:
        typer.echo(f"haikugate-engine: {error.code}: {error.message}", err=True)
        return 1
    except KeyboardInterrupt:
        typer.echo("", err=True)
        return 130


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"{option}: wanted numbers like 1,2,3") from error
    if any(number < 0 for number in numbers):
        raise typer.BadParameter(f"{option}: wanted numbers >= 0")
    return numbers


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
    run_command_line(app, "haikugate-engine")


if __name__ == "__main__":
    main()
