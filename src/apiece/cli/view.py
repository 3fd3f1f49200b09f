"""`apiece view`: a report in the browser, served on this machine alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apiece.cli import app


@app.command(short_help="Look at a report in the browser.")
def view(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `apiece report` wrote.", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Also open the browser.")] = False,
) -> None:
    """Serve a report on this machine alone (127.0.0.1), until Ctrl-C.

    The page opens from disk as well; serving is for a machine that you reach through a tunnel
    (`ssh -L 8000:127.0.0.1:PORT HOST`), or a browser that opens no files.

    Example: `apiece view report`
    """
    from apiece.report.serve import serve

    def ready(url: str) -> None:
        typer.echo(f"{url}  (Ctrl-C ends)")
        if open_:
            typer.launch(url)

    serve(folder, port, ready)
