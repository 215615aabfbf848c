"""The page: tabs on Gradio, each thin over the module of its name in `tessera.playground`. Nothing here computes.

The server listens on 127.0.0.1 alone. Gradio's share links, analytics, API page, monitoring and web fonts are off, so no request
leaves the machine. What a visitor makes stands in their own `gr.State`; files for download stand in a folder that is removed
when the server ends.
"""

from __future__ import annotations

import os
import socket
import tempfile
import webbrowser
from collections.abc import Callable
from functools import partial
from typing import Any

OFF = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "GRADIO_SSR_MODE": "False", "GRADIO_SHARE": "False",
       "GRADIO_ALLOW_FLAGGING": "never"}  # fmt: skip
os.environ.update(OFF)  # Gradio reads them when it is imported

import fastapi  # noqa: E402
import gradio as gr  # noqa: E402
import uvicorn  # noqa: E402
from PIL import Image  # noqa: E402

from tessera.core.errors import InputError  # noqa: E402
from tessera.decoding.compressed import MAX_PIXELS  # noqa: E402
from tessera.playground import uploads  # noqa: E402
from tessera.playground.page import blend, compare, inpaint, judge, reconstruct, samples, style, training  # noqa: E402
from tessera.playground.page.parts import Fresh, Tab, filled, plain  # noqa: E402
from tessera.playground.workspace import Workspace  # noqa: E402

HOST = "127.0.0.1"
AT_ONCE = 4  # visitors whose same request is computed at once
HOUR = 3600
TABS = (reconstruct, samples, inpaint, judge, blend, style, training, compare)
FONTS = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}  # none from the web
# Pixels stay squares; titles and captions stand beside pictures, not on them; rows of pictures are as high as the pictures.
CSS = """
footer { display: none !important; }
.bottom { align-items: flex-end; }
.pixels img { image-rendering: pixelated; }
.pixels > label.float { position: static; display: inline-flex; }
.pixels .image-container { height: auto; }
.pixels .grid-wrap { min-height: 0; max-height: none; overflow: visible; }
.pixels .grid-container { grid-template-rows: none; grid-auto-rows: auto; align-items: start; }
.pixels .thumbnail-item { aspect-ratio: auto; height: auto; background: none; display: flex; flex-direction: column; }
.pixels .thumbnail-item > img { height: auto; }
.pixels .thumbnail-item .caption-label { position: static; max-width: none; width: 100%; white-space: normal; border: 0;
  background: none; text-align: center; overflow-wrap: anywhere; }
.pixels .thumbnail-lg:hover .caption-label { opacity: 1; }
.one .grid-container { grid-template-columns: minmax(0, 1fr); }
.missing { padding: 1rem 0; }
@media (max-width: 700px) {
  .pixels .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)); }
  .pixels.wide .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .pixels.one .grid-container { grid-template-columns: minmax(0, 1fr); }
  .pixels.whole .grid-container { grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 2px; }
  .pixels.whole .caption-label { display: none; }
}
"""


def build(space: Workspace) -> Any:
    """All tabs. What they need is looked up whenever the page is loaded, so a page that is loaded again sees a new run."""
    with gr.Blocks(title="tessera playground", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        gr.Markdown("# Playground\nWhat the codes of this run can do. Everything is computed on this machine.")
        fresh = [Fresh(gr.Markdown(elem_id="models"), lambda: _models(space))]
        lists: list[tuple[str, Any]] = []  # of names, each with the title of its tab
        with gr.Tabs() as tabs:
            for module in TABS:
                with gr.Tab(module.TITLE, elem_id=f"tab-{module.__name__.rpartition('.')[2]}") as tab:
                    found, own = _tab(space, module)
                fresh += own
                lists += [(module.TITLE, each) for each in found.names]
                if found.opened is not None:
                    found.opened(tab)
                if found.timer is not None:
                    tabs.select(_runs_while_open(module.TITLE), None, found.timer, show_progress="hidden")
        fresh += [Fresh(each, partial(filled, space, title == TABS[0].TITLE)) for title, each in lists]
        page.load(lambda: [_made(each) for each in fresh], None, [each.part for each in fresh], show_progress="hidden")

        page.load(None, None, None, js=reconstruct.REDRAW)

        def fill(at: gr.SelectData) -> list[Any]:
            return [_made(Fresh(each, partial(filled, space, at.value == title))) for title, each in lists]

        tabs.select(fill, None, [each for _, each in lists], show_progress="hidden")
    return page


def _models(space: Workspace) -> str:
    try:
        return space.models
    except InputError as error:
        return plain(error)


def _made(each: Fresh) -> Any:
    """What a part becomes; it stays as it is where the files that it needs are damaged, which the line on the models tells."""
    try:
        return each.make()
    except InputError:
        return gr.skip()


def _runs_while_open(title: str) -> Callable[[gr.SelectData], Any]:
    """What starts the timer of the tab `title` when that is opened, and stops it when another one is."""

    def run(at: gr.SelectData) -> Any:
        return gr.Timer(active=at.value == title)

    return run


def _tab(space: Workspace, module: Any) -> tuple[Tab, list[Fresh]]:
    """A tab, or in its place the sentence that says what is missing; and all that is looked up when the page is loaded."""
    note = gr.Markdown(visible=False, elem_classes="missing")
    with gr.Column() as body:
        found: Tab = module.build(space)

    def missing() -> Any:
        reason = module.why_not(space)
        return gr.Markdown(reason or "", visible=reason is not None)

    body_seen = Fresh(body, lambda: gr.Column(visible=module.why_not(space) is None))
    return found, [Fresh(note, missing), body_seen, *found.fresh]


def serve(space: Workspace, port: int, inbrowser: bool) -> None:
    """Serve the page until the process is stopped.

    Gradio's own `launch` asks the server over the network whether it is up, and wants a public link if it is slow to answer; so
    the page is mounted on a server of ours.

    Raises:
        InputError: the port is taken.
    """
    # of what Gradio itself decodes, the editor's layers; Pillow refuses what has twice as many
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    with socket.socket() as listening, tempfile.TemporaryDirectory(prefix="tessera-playground-") as folder:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} of {HOST} cannot be had ({error.strerror}); choose another one by --port"
            ) from None
        os.environ["GRADIO_TEMP_DIR"] = folder  # each component asks for it when it is made
        app = mounted(space, build(space), port)
        listening.listen()
        print(f"playground: http://{HOST}:{port}, stop it by Ctrl+C", flush=True)
        if inbrowser:
            webbrowser.open(f"http://{HOST}:{port}")
        # an open page keeps a connection for ever, which must not keep the server
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listening])


def mounted(space: Workspace, page: Any, port: int) -> Any:
    """The page as an ASGI application, with everything off that would reach beyond this machine or keep what visitors do."""
    page.queue(default_concurrency_limit=AT_ONCE, api_open=False)
    app = fastapi.FastAPI(openapi_url=None)
    app.post("/redraw")(reconstruct.redrawing(space))
    return gr.mount_gradio_app(
        app, page, path="/", server_name=HOST, server_port=port, footer_links=[],
        run_history=False, show_error=False, max_file_size=uploads.MAX_BYTES, ssr_mode=False, enable_monitoring=False,
        pwa=False, mcp_server=False, theme=gr.themes.Default(**FONTS), css=CSS,
    )  # fmt: skip
