"""`haikugate keys`: make and show signing keys."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from harness.keys import (
    KEY_VARIABLE,
    PASSPHRASE_VARIABLE,
    generate_key,
    parse_private_key,
    parse_public_key,
    public_path,
    read_pem,
)

app = typer.Typer(help="Make and show signing keys.", no_args_is_help=True)


@app.command()
def generate(
    path: Annotated[Path, typer.Argument(help="Where the private key goes.")] = Path(
        "haikugate-key.pem"
    ),
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Do not protect the key.")
    ] = False,
) -> None:
    """Make an ECDSA P-256 key, mode 0600, and its public half beside it."""
    signer = generate_key(path, None if no_passphrase else _new_passphrase())
    console = Console(soft_wrap=True)
    console.print(Text(f"private key  {path}"))
    console.print(Text(f"public key   {public_path(path)}"))
    console.print(Text(f"key id       {signer.public.key_id}"))
    console.print(Text(f"sign with it: export {KEY_VARIABLE}={shlex.quote(str(path))}"))


@app.command()
def show(path: Annotated[Path, typer.Argument(help="A public or private key in PEM.")]) -> None:
    """Print a key's id and its public half."""
    pem = read_pem(path)
    if b"PRIVATE KEY" in pem:
        public = parse_private_key(pem, _passphrase(pem), str(path)).public
    else:
        public = parse_public_key(pem, str(path))
    typer.echo(f"key id {public.key_id}")
    typer.echo(public.pem.decode(), nl=False)


def _new_passphrase() -> str | None:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    return given or typer.prompt(
        "passphrase (empty: none)",
        hide_input=True,
        confirmation_prompt=True,
        err=True,
        default="",
        show_default=False,
    )


def _passphrase(pem: bytes) -> str | None:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given or b"ENCRYPTED" not in pem:
        return given
    return str(typer.prompt("passphrase", hide_input=True, err=True))
