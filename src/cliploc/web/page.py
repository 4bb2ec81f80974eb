"""The page as gradio blocks: its layout, and which handler each event calls."""

from __future__ import annotations

from typing import Any

import gradio as gr

from cliploc.web import view
from cliploc.web.api import add_api
from cliploc.web.events import Events
from cliploc.web.guard import SHOW
from cliploc.web.layout import Layout, accessible_names, build_layout
from cliploc.web.looks import Looks
from cliploc.web.runs import STOPPED
from cliploc.web.service import Service

TITLE = "cliploc: type a name, see where it is"
REFUSED = "The server did not take the request: too many are waiting, or it is shutting down. Try again in a minute."
SENTENCE = "SENTENCE"  # stands in a status line for the server's
SHOWN = ("status", "figures", "python", "command", "address")  # names in `Results`, and in an answer of `show`
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # a model uses the whole machine


def build(service: Service, looks: Looks, *, debug: bool = False) -> gr.Blocks:
    """Builds the page.

    Args:
        service: the models behind it.
        looks: the visitors' last looks.
        debug: whether an error of the program itself is printed with its traceback, on the server.

    Raises:
        ModelError: the first model cannot be loaded.
    """
    page: gr.Blocks
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=False) as page:
        layout = build_layout(service)
        events = Events(layout, service, looks, debug)
        page.load(None, None, [layout.results.visitor], js=_page_script(layout), **HIDDEN)
        page.load(events.open_link, None, [layout.results.status, *layout.settings.values()], **HIDDEN, **ONE_AT_A_TIME)
        _connect_search(layout, events)
        _connect_options(layout, events)
        _connect_downloads(layout, events)
        add_api(layout.inputs, service, debug, **ONE_AT_A_TIME)
    return page


def _connect_search(layout: Layout, events: Events) -> None:
    """Find, the examples and the sliders, which ask the server by page.js and not by gradio's queue; and Stop."""
    inputs, results = layout.inputs, layout.results
    settings, shown = list(layout.settings.values()), [getattr(results, name) for name in SHOWN]
    find: dict[str, Any] = {
        "fn": None,
        "inputs": [results.visitor, inputs.photo, inputs.exemplar, *settings],
        "outputs": shown,
        "js": _script("find"),
        **HIDDEN,
    }
    gr.on([inputs.find.click, inputs.names.submit], **find)
    inputs.examples.load_input_event.then(**find)
    sliders = [slider.change for slider in vars(layout.sliders).values()]
    gr.on(sliders, None, [results.visitor, *settings], shown, js=_script("adjust"), **HIDDEN)
    inputs.stop.click(None, js=_script("stop"), **HIDDEN)
    inputs.stop.click(events.stop, None, [results.status], queue=False, **HIDDEN)


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
        [layout.results.visitor, *layout.settings.values()],
        [layout.results.status, layout.downloads.files],
        api_visibility="private",
    )


def _page_script(layout: Layout) -> str:
    """The page's JavaScript, with the texts that it shows; it returns the page's name for itself."""
    return view.TEMPLATES.render(
        "page.js",
        address=SHOW.removeprefix("/"),
        settings=list(layout.settings),
        shown=SHOWN,
        html={
            "waiting": view.waiting(),
            "stopped": view.status(STOPPED),
            "refused": view.problem(REFUSED),
            "problem": view.problem(SENTENCE),
        },
        sentence=SENTENCE,
        labels=accessible_names(),
    )


def _script(name: str) -> str:
    """The JavaScript by which gradio calls a function of page.js."""
    return f"(...values) => cliploc.{name}(...values)"
