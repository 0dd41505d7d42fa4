"""The command `serve`: `canopy serve`, and `python -m tiles.server` where only the tiler is installed."""

import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from tiles.errors import CanopyError, OutputError, one_line


def serve(
    path: Annotated[Path, typer.Argument(help="Height map, folder of maps, VRT or batch collection.")],
    others: Annotated[
        list[Path] | None,
        typer.Argument(metavar="LAYER", help="More maps, and products of them: cover.tif, trees.gpkg."),
    ] = None,
    imagery: Annotated[Path | None, typer.Option(help="Raster to show next to the maps.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8000,
) -> None:
    """Show height maps in the browser, in QGIS and to programs."""
    try:
        import uvicorn

        from tiles.server.app import LOOPBACK, create_app
    except ImportError as error:
        raise CanopyError(
            f"the server needs {error.name}, which is not installed: pip install titiler.core uvicorn"
        ) from error
    from tiles.server.catalog import open_catalog

    app = create_app(open_catalog(path, imagery, others or ()), local_only=host in LOOPBACK)
    listener = listen(host, port)
    name = f"[{host}]" if ":" in host else host
    typer.echo(f"http://{name}:{listener.getsockname()[1]}/")
    # Stopping is a server's normal end: uvicorn closes connections, then raises the signal again for these.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with listener:
        uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", server_header=False)).run(
            sockets=[listener]
        )


def listen(host: str, port: int) -> socket.socket:
    """Bind an address before the server starts, so that one in use is one line.

    Raises:
        OutputError: The address is in use, or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OutputError(
            f"cannot listen on {host} port {port} ({error.strerror or one_line(error)}); choose another with --port"
        ) from error


def main() -> None:
    """Run the command alone."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        typer.run(serve)
    except CanopyError as error:
        typer.echo(f"canopy: {one_line(error)}", err=True)
        sys.exit(1)
