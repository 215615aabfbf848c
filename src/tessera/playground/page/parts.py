"""What the tabs share: errors as messages, the choice of a picture, files for download."""

from __future__ import annotations

import base64
import functools
import html
import inspect
import io
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from tessera.core.errors import InputError, NonFiniteError
from tessera.playground import uploads
from tessera.playground.workspace import Picture, Workspace

NO_IMAGES = "no images to pick from before `dvc repro dataset`; upload one"
CHOICES = 4000  # names in a list, at most: the browser searches them
# of an image that is shown only, and of a row of them
PLAIN: dict[str, Any] = {"interactive": False, "buttons": [], "format": "png", "elem_classes": ["pixels"]}


def row(*classes: str, **options: Any) -> Any:
    """A row of pictures that can be clicked."""
    return gr.Gallery(interactive=False, buttons=[], format="png", elem_classes=["pixels", *classes], object_fit="contain",
                      height="auto", allow_preview=False, **options)  # fmt: skip


class Fresh(NamedTuple):
    """A part of the page, and what it becomes when the page is loaded."""

    part: Any
    make: Callable[[], Any]


class Tab(NamedTuple):
    """What a tab asks of the page. `opened` is given Gradio's tab, to listen to its events; `timer` runs while the tab is open, and
    `names` are lists that are filled while it is: with each answer of the server Gradio's page copies the lists of all tabs."""

    fresh: list[Fresh]
    opened: Callable[[Any], Any] | None = None
    timer: Any = None
    names: tuple[Any, ...] = ()


class Picker(NamedTuple):
    """A list of names, a button to upload, and the picture that was chosen by either (`Picture` or None)."""

    names: Any
    upload: Any
    picture: Any


def told(compute: Callable[..., Any]) -> Callable[..., Any]:
    """`compute` with the errors that a user can meet as messages on the page. All other errors are bugs, and stay short there."""
    if inspect.isgeneratorfunction(compute):

        @functools.wraps(compute)
        def run_parts(*given: Any) -> Iterator[Any]:
            try:
                yield from compute(*given)
            except (InputError, NonFiniteError) as error:
                raise message(error) from None

        return run_parts

    @functools.wraps(compute)
    def run(*given: Any) -> Any:
        try:
            return compute(*given)
        except (InputError, NonFiniteError) as error:
            raise message(error) from None

    return run


def message(error: Exception) -> gr.Error:
    return gr.Error(html.escape(str(error), quote=False), duration=None, print_exception=False)


def plain(name: object) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", html.escape(str(name), quote=False))


def picker(space: Workspace, label: str, key: str) -> Picker:
    """`key` begins the ids of its parts."""
    with gr.Row(elem_classes="bottom"):
        names = gr.Dropdown([], value=None, label=label, info="type to search", scale=3, elem_id=f"{key}-name")
        upload = gr.UploadButton("Upload a picture", size="md", scale=1, min_width=140, elem_id=f"{key}-upload")
    picture = gr.State(None)

    @told
    def by_name(chosen: str | None) -> Picture | None:
        return space.picture(chosen) if chosen else None

    @told
    def by_upload(path: str) -> tuple[Picture, None]:
        return uploads.picture(space, Path(path)), None

    names.input(by_name, names, picture, show_progress="hidden")
    upload.upload(by_upload, upload, [picture, names], show_progress="hidden")

    return Picker(names, upload, picture)


def filled(space: Workspace, is_open: bool) -> Any:
    """The list of names of a picker, which is empty while its tab is not open."""
    if not is_open:
        return gr.Dropdown([], value=None)
    found = space.names(CHOICES)
    return gr.Dropdown(found, value=None, info="type to search" if found else NO_IMAGES)


def in_address(picture: Image.Image) -> str:
    """A `data:` address that holds the picture, as PNG."""
    held = io.BytesIO()
    picture.save(held, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def to_download(content: bytes, name: str) -> str:
    """The path of a file of this name, which the page may hand out; Gradio's folder of such files is removed at the end."""
    path = Path(tempfile.mkdtemp(dir=gr.utils.get_upload_folder())) / name
    path.write_bytes(content)
    return str(path)
