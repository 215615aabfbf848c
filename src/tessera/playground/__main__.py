"""Opens a local page on which you can try what the run in artifacts/ made: reconstruct, sample, inpaint and more.

It needs the extra `playground`, in an environment of its own: `make playground` installs it there, and starts the page.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from collections.abc import Sequence

from tessera.core.errors import InputError
from tessera.core.params import Params, read
from tessera.runtime import process
from tessera.runtime.settings import Settings

PORT = 7860


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tessera.playground", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"of 127.0.0.1 (default {PORT})")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # through the clean-up, as Ctrl+C
    try:
        serve(options.port, options.open)
    except KeyboardInterrupt:
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def serve(port: int, inbrowser: bool) -> None:
    if not 1 <= port <= 65535:
        raise InputError(f"--port must be from 1 to 65535, got {port}")
    if importlib.util.find_spec("gradio") is None:
        raise InputError(
            "the playground needs the package gradio; `make playground` installs it in an environment of its own"
        )
    params = Params(read())
    process.prepare()
    process.use_threads(params.section("runtime", Settings).threads)  # before torch is loaded
    from tessera.playground import page
    from tessera.playground.workspace import Workspace

    page.serve(Workspace(params), port, inbrowser)


if __name__ == "__main__":
    sys.exit(main())
