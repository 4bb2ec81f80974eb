"""The page's own gradio components, the files that they accept, and what a request may send to each.

The components pass values on unchecked: cliploc checks them itself, and its error messages are sentences.
"""

from __future__ import annotations

from abc import ABCMeta
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.utils import get_upload_folder

from cliploc.demo import demo_folder
from cliploc.web.requests import NOT_UPLOADED, Endpoint, Slot


class _WithoutStub(ComponentMeta):
    """Creates a component's class as Python does; gradio's metaclass would write a .pyi file beside this one."""

    def __new__(cls, *parts: Any) -> Any:
        return ABCMeta.__new__(cls, *parts)


class Photograph(gr.Image, metaclass=_WithoutStub):
    """An upload, handed on as a file that is not decoded yet.

    Only files that were uploaded to this server, and its examples, are accepted: a request may not name any other path
    or address.
    """

    is_template = True

    def move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """Refuses all other files; gradio would copy or fetch them."""
        _check_place(url_or_file_path)
        return super().move_resource_to_block_cache(url_or_file_path)

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """Refuses all other files; gradio would copy or fetch them."""
        _check_place(url_or_file_path)
        return await super().async_move_resource_to_block_cache(url_or_file_path)

    def preprocess(self, payload: Any) -> str | None:
        """Returns the file's path."""
        path = None if payload is None else payload.path
        _check_place(path)
        return path


def _as_sent(_: Any, payload: Any) -> Any:
    """Preprocesses nothing: returns the value as it was sent."""
    return payload


class Text(gr.Textbox, metaclass=_WithoutStub):
    """A text field; gradio's own would turn any value of a request into a text."""

    is_template = True
    preprocess = _as_sent


class Slider(gr.Slider, metaclass=_WithoutStub):
    """A number with a slider; gradio's own would not say in a sentence which values are allowed."""

    is_template = True
    preprocess = _as_sent


class Choice(gr.Dropdown, metaclass=_WithoutStub):
    """A menu with one value.

    While a visitor changes the model, a request may still name a method of the previous one, which gradio's own menu
    would answer with an error.
    """

    is_template = True
    preprocess = _as_sent


class Choices(gr.CheckboxGroup, metaclass=_WithoutStub):
    """A menu with several values, unchecked for the same reason as `Choice`."""

    is_template = True
    preprocess = _as_sent


def example_folder() -> Path:
    """The folder of the example photographs, which belong to the package."""
    return demo_folder().resolve()


def upload_folder() -> Path:
    """The folder in which gradio keeps uploads and downloads."""
    return Path(get_upload_folder()).resolve()


def is_ours(path: str) -> bool:
    """Whether a path is a file that was uploaded here, or an example's."""
    try:
        place = Path(path).resolve()
        return any(place.is_relative_to(folder) for folder in (upload_folder(), example_folder())) and place.is_file()
    except (OSError, ValueError):  # a name too long for the system, or with a null character
        return False


def _check_place(path: str | Path | None) -> None:
    if path is not None and not is_ours(str(path)):
        raise gr.Error(NOT_UPLOADED, print_exception=False)


def endpoints(blocks: gr.Blocks) -> dict[int, Endpoint]:
    """The functions of a page that a request may call, by gradio's number of each."""
    described: dict[str, Any] = blocks.get_api_info()["named_endpoints"]
    found = {}
    for number, function in blocks.fns.items():
        if function.fn is not None:  # the others run in the browser only
            name = str(function.api_name or "")
            parameters = described[f"/{name}"]["parameters"] if f"/{name}" in described else ()
            found[number] = Endpoint(
                name,
                tuple(_slot(one) for one in function.inputs),
                tuple(parameter["parameter_name"] for parameter in parameters),
                sum(parameter["parameter_name"] == "exemplar" for parameter in parameters),
            )
    return found


def _slot(component: Any) -> Slot:
    if isinstance(component, gr.Dataset):
        return range(len(component.samples))
    return "photograph" if isinstance(component, Photograph) else "value"
