"""The page as gradio blocks: its layout, and which handler each event calls."""

from __future__ import annotations

from typing import Any

import gradio as gr

from cliploc.web import view
from cliploc.web.api import add_api
from cliploc.web.events import Events
from cliploc.web.layout import Layout, accessible_names, build_layout
from cliploc.web.runs import STOPPED
from cliploc.web.service import KEPT_SECONDS, Service

TITLE = "cliploc: type a name, see where it is"
REFUSED = "The server did not take the request: too many are waiting, or it is shutting down. Try again in a minute."
SWEPT_SECONDS = 300  # how often gradio looks for old files
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # a model uses the whole machine


def build(service: Service, *, debug: bool = False) -> gr.Blocks:
    """Builds the page.

    Args:
        service: the models behind it.
        debug: whether an error of the program itself is printed with its traceback, on the server.

    Raises:
        ModelError: the first model cannot be loaded.
    """
    page: gr.Blocks
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(SWEPT_SECONDS, KEPT_SECONDS), fill_width=False
    ) as page:
        layout = build_layout(service)
        events = Events(layout, service, debug)
        page.load(None, js=_page_script(), **HIDDEN)
        page.load(events.open_link, None, [layout.results.status, *layout.settings.values()], **HIDDEN, **ONE_AT_A_TIME)
        _connect_search(layout, events)
        _connect_options(layout, events)
        _connect_downloads(layout, events)
        add_api(layout.inputs, service, debug, **ONE_AT_A_TIME)
    return page


def _connect_search(layout: Layout, events: Events) -> None:
    """Find, Stop, the examples and the sliders."""
    inputs, results = layout.inputs, layout.results
    settings = list(layout.settings.values())
    shown = [results.status, results.figures, results.python, results.command, results.address]
    find: dict[str, Any] = {
        "fn": events.search,
        "inputs": [results.search, inputs.photo, inputs.exemplar, *settings],
        "outputs": [results.search, *shown],
        **HIDDEN,
        **ONE_AT_A_TIME,
    }
    says_waiting: dict[str, Any] = {
        "fn": None, "inputs": None, "outputs": [results.status], "js": _script("searching"), **HIDDEN,
    }  # fmt: skip
    asked = [inputs.find.click, inputs.names.submit]
    gr.on(asked, **says_waiting)  # before the search: a browser calls the listeners of a click in this order
    by_button = gr.on(asked, trigger_mode="once", **find)
    by_example = inputs.examples.load_input_event.then(**says_waiting).then(**find)
    by_slider = gr.on(
        [slider.change for slider in vars(layout.sliders).values()],
        events.adjust,
        [results.search, *settings],
        shown,
        trigger_mode="always_last",
        **HIDDEN,
    )
    for run in (by_button, by_example, by_slider):
        run.then(None, [results.address], [results.address], js=_script("address"), **HIDDEN)
    for run in (by_button, by_example):
        run.failure(None, None, [results.status], js=_script("failed"), **HIDDEN)
    inputs.stop.click(None, js=_script("stop"), **HIDDEN)
    inputs.stop.click(events.stop, None, [results.status], queue=False, cancels=[by_button, by_example], **HIDDEN)


def _connect_options(layout: Layout, events: Events) -> None:
    """Model, method and refinement decide what else there is to choose, and the thresholds."""
    options, sliders = layout.options, layout.sliders
    options.model.input(
        events.change_model,
        [options.model],
        [
            layout.results.status,
            options.method,
            options.compare,
            options.refine,
            sliders.threshold,
            sliders.split_peaks,
            sliders.min_score,
            sliders.compare_threshold,
        ],
        **HIDDEN,
        **ONE_AT_A_TIME,
    )
    gr.on(
        [options.method.input, options.refine.input],
        events.change_method,
        [options.model, options.method, options.refine],
        [sliders.threshold, sliders.split_peaks, sliders.min_score],
        **HIDDEN,
    )
    gr.on(
        [options.compare.input, options.refine.input],
        events.change_compared,
        [options.model, options.compare, options.refine],
        [sliders.compare_threshold],
        **HIDDEN,
    )


def _connect_downloads(layout: Layout, events: Events) -> None:
    layout.downloads.make.click(
        events.make_files,
        [layout.results.search, *layout.settings.values()],
        [layout.results.status, layout.downloads.files],
        api_visibility="private",
    )


def _page_script() -> str:
    """The page's JavaScript, with the texts that it shows."""
    lines = {"waiting": view.waiting(), "stopped": view.status(STOPPED), "refused": view.problem(REFUSED)}
    return view.TEMPLATES.render("page.js", html=lines, labels=accessible_names())


def _script(name: str) -> str:
    """The JavaScript by which gradio calls a function of page.js."""
    return f"(...values) => cliploc.{name}(...values)"
