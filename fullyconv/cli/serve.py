"""`fullyconv serve`: a network behind HTTP, for this machine or, with a key, for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fullyconv.cli.options import Device

__all__ = ["serve"]


def serve(
    model: Annotated[str, typer.Argument(help="Model or run directory, or an exported file.")],
    host: Annotated[str, typer.Option(help="Address to listen on; others than this need a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File of keys, one a line, readable by its owner alone; clients send one as Bearer."),
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Let everybody in, at any address.")] = False,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="A name by which clients call the server, such as labels.example.org.")
    ] = None,
    waiting: Annotated[int, typer.Option(min=1, max=64, help="Images that may wait while one is labelled.")] = 1,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds that labelling one image may take.")] = 30.0,
    connections_per_address: Annotated[
        int, typer.Option(min=1, help="Connections from one address; raise it behind a proxy.")
    ] = 16,
    tile: Annotated[
        int, typer.Option(min=0, help="Larger images are computed in tiles of this many pixels; 0: whole.")
    ] = 2048,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16, as for predict.")] = "auto",
    device: Device = "auto",
) -> None:
    """Label images that are sent over HTTP, and on a page to drop them on. Nothing is stored."""
    from fullyconv.cli.evaluate import device_for
    from fullyconv.errors import UsageError
    from fullyconv.serving.gate import Gate
    from fullyconv.serving.request_limits import Limits
    from fullyconv.serving.server import is_loopback, read_keys, run_server
    from fullyconv.terminal import say

    keys = read_keys(api_key_file) if api_key_file else ()
    if keys and no_auth:
        raise UsageError("Give either --api-key-file or --no-auth, not both.")
    if not is_loopback(host) and not keys and not no_auth:
        raise UsageError(
            f"At {host} everybody who reaches this machine could use the server; give --api-key-file FILE, or "
            "--no-auth to let them."
        )
    limits = Limits(
        waiting=waiting, work_seconds=deadline, wait_seconds=max(10.0, deadline * waiting),
        per_address=connections_per_address, drain_seconds=max(20.0, deadline),
    )  # fmt: skip
    names = frozenset(name.lower() for name in allowed_host or ())
    gate = Gate(limits, names, any_address=not is_loopback(host), keys=keys)
    settings = {"model": model, "tile": tile, "device": device_for(model, device), "precision": precision}

    def listening(address: str) -> None:
        print(address, flush=True)
        say("loading the network; Ctrl-C or SIGTERM answers what was accepted, then ends.")

    run_server(settings, host, port, gate, listening)
