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
        inputs: the components for photograph, names and exemplar.
        service: the models behind the page.
        debug: as for `page.build`.
        queue: how gradio queues requests that run a model.
    """

    def searched(
        request: gr.Request,
        path: str | None,
        asked: str,
        settings: dict[str, Any] | None,
        exemplar: str | None,
        finish: Callable[[Look, Settings], T],
    ) -> T:
        try:
            names = from_mapping({"names": asked}).names
            given = replace(from_mapping({} if settings is None else settings), names=names)
            wanted = given.with_exemplar(exemplar)
            run = service.runs.begin(
                request.session_hash, lambda reporter: service.look(path, wanted, None, reporter, exemplar)
            )
            return finish(run.result(), wanted)
        except Exception as error:
            raise gr.Error(explain(error, debug), print_exception=False) from None

    def locate(
        request: gr.Request,
        path: str | None,
        asked: str,
        settings: dict[str, Any] | None,
        exemplar: str | None = None,
    ) -> dict[str, object]:
        return searched(
            request,
            path,
            asked,
            settings,
            exemplar,
            lambda look, wanted: downloads.document(look.cut(wanted), wanted, look.ran(wanted)),
        )

    def files(
        request: gr.Request,
        path: str | None,
        asked: str,
        settings: dict[str, Any] | None,
        exemplar: str | None = None,
    ) -> list[str]:
        return searched(
            request,
            path,
            asked,
            settings,
            exemplar,
            lambda look, wanted: write_downloads(service, request.session_hash, look, wanted),
        )

    given = gr.JSON(value={}, visible=False, label="settings")
    document, written = gr.JSON(visible=False, label="document"), gr.Files(visible=False, label="files")
    button = gr.Button(visible=False)
    asked = [inputs.photo, inputs.names, given, inputs.exemplar]
    button.click(locate, asked, [document], api_name="locate", **queue)
    button.click(files, asked, [written], api_name="files", **queue)
