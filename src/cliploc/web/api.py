"""The page's functions for programs, over HTTP: one request holds photograph, names and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import gradio as gr

from cliploc.web import downloads
from cliploc.web.events import explain, write_downloads
from cliploc.web.layout import Inputs
from cliploc.web.service import Look, Service
from cliploc.web.settings import Settings, from_mapping

T = TypeVar("T")


def add_api(inputs: Inputs, service: Service, debug: bool, **queue: Any) -> None:
    """Adds `/locate` and `/files` to the page that is open.

    Args:
        inputs: the components for photograph and names.
        service: the models behind the page.
        debug: as for `page.build`.
        queue: how gradio queues requests that run a model.
    """

    def searched(
        request: gr.Request,
        path: str | None,
        asked: str,
        settings: dict[str, Any] | None,
        finish: Callable[[Look, Settings], T],
    ) -> T:
        try:
            names = from_mapping({"names": asked}).names
            wanted = replace(from_mapping({} if settings is None else settings), names=names)
            run = service.runs.begin(request.session_hash, lambda reporter: service.look(path, wanted, None, reporter))
            return finish(run.result(), wanted)
        except Exception as error:
            raise gr.Error(explain(error, debug), print_exception=False) from None

    def locate(request: gr.Request, path: str | None, asked: str, settings: dict[str, Any] | None) -> dict[str, object]:
        return searched(
            request,
            path,
            asked,
            settings,
            lambda look, wanted: downloads.document(look.cut(wanted), wanted, look.ran(wanted)),
        )

    def files(request: gr.Request, path: str | None, asked: str, settings: dict[str, Any] | None) -> list[str]:
        return searched(
            request,
            path,
            asked,
            settings,
            lambda look, wanted: write_downloads(service, request.session_hash, look, wanted),
        )

    given = gr.JSON(value={}, visible=False, label="settings")
    document, written = gr.JSON(visible=False, label="document"), gr.Files(visible=False, label="files")
    button = gr.Button(visible=False)
    button.click(locate, [inputs.photo, inputs.names, given], [document], api_name="locate", **queue)
    button.click(files, [inputs.photo, inputs.names, given], [written], api_name="files", **queue)
