"""What the page does when a visitor chooses options or wants files; Find and the sliders are in `show`.

A handler returns the components that it changes, each with its new value; the others stay as they are.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from cliploc._process import out_of_memory
from cliploc.errors import CliplocError
from cliploc.reporter import Reporter
from cliploc.web import downloads, view
from cliploc.web.components import Choice, Choices, upload_folder
from cliploc.web.layout import Layout, compare_choices, method_choices, refine_choices
from cliploc.web.looks import Looks
from cliploc.web.runs import STOPPED
from cliploc.web.service import Look, Service
from cliploc.web.settings import NONE, Settings, from_mapping, from_page, from_query

Updates = dict[Any, Any]  # component → its new value, or gr.skip()


class Events:
    """The handlers of one page, for all of its visitors.

    Args:
        layout: the page's components.
        service: the models behind them.
        looks: the visitors' last looks.
        debug: whether an error of the program itself is printed with its traceback, on the server.
    """

    def __init__(self, layout: Layout, service: Service, looks: Looks, debug: bool) -> None:
        self._layout = layout
        self._service = service
        self._looks = looks
        self._debug = debug

    # ----------------------------------------------------------------------------------------------------- downloads
    def stop(self, request: gr.Request) -> str:
        """Stop: ends the writing of files at its next step; the page itself ends a search."""
        self._service.runs.stop(request.session_hash)
        return view.status(STOPPED)

    def make_files(self, request: gr.Request, visitor: str, *values: Any) -> Updates:
        """Create the files: writes the downloads of the results that are shown."""
        layout = self._layout
        last = self._looks.last(visitor) if isinstance(visitor, str) else None
        if last is None:
            return {layout.results.status: view.problem("There are no results to download yet: press Find first.")}
        try:
            settings = from_page(dict(zip(layout.settings, values, strict=True)))
            settings = last.unset(last.settings.with_live(settings))
            return {layout.downloads.files: write_downloads(self._service, request.session_hash, last, settings)}
        except Exception as error:
            return self._problem(error)

    # ------------------------------------------------------------------------------------------------------- options
    def change_model(self, label: str) -> Updates:
        """Another model: offers its recipes, methods and refinements, and sets its own threshold."""
        options, sliders = self._layout.options, self._layout.sliders
        try:
            settings = from_mapping({"model": label})
            menu = self._service.menu(settings.model)
            own = self._service.own(settings)
        except Exception as error:
            return self._problem(error)
        return {
            self._layout.results.status: "",
            options.method: Choice(choices=method_choices(menu), value=menu.own),
            options.compare: Choices(choices=compare_choices(menu), value=[]),
            options.refine: Choices(choices=refine_choices(menu), value=[]),
            sliders.threshold: own.threshold,
            sliders.split_peaks: own.split_peaks,
            sliders.min_score: own.slid_min_score,
            sliders.compare_threshold: gr.Slider(visible=False),
        }

    def change_method(self, model: str, method: str, refine: list[str]) -> tuple[Any, Any, Any]:
        """Another method, recipe or refinement: sets its own threshold, how it splits regions, and its least score."""
        try:
            settings = from_mapping({"model": model, "refine": refine or None, "method": method})
            own = self._service.own(settings, settings.method)
        except CliplocError:  # a late request, for the previous model; Find reports what is wrong
            return gr.skip(), gr.skip(), gr.skip()
        return own.threshold, own.split_peaks, own.slid_min_score

    def change_compared(self, model: str, methods: list[str], refine: list[str]) -> Any:
        """Other methods to compare with, or another refinement: shows the threshold of one, and none of several.

        Each of several has its own.
        """
        if not isinstance(methods, list) or len(methods) != 1:
            return gr.Slider(visible=False)
        threshold, *_ = self.change_method(model, methods[0], refine)
        return gr.Slider(visible=True, value=threshold) if isinstance(threshold, float) else gr.Slider(visible=True)

    def open_link(self, request: gr.Request) -> Updates:
        """The page opens: takes the settings from its address."""
        query = dict(request.query_params)
        if not query:  # the page has its defaults already; what was typed meanwhile stays
            return dict(gr.skip())
        components = self._layout.settings
        settings = from_query(urlencode(query))
        updates: Updates = {}
        try:
            label, menu = self._service.offer(settings.model).label, self._service.menu(settings.model)
        except CliplocError as error:
            updates[self._layout.results.status] = view.problem(str(error))
            label = next(iter(self._service.offers))
            menu = self._service.menu(label)
        method = settings.method if settings.method in (*menu.recipes, *menu.methods) else menu.own
        compare = [one for one in settings.compare if one in menu.methods]
        refine = None if settings.refine is None else tuple(one for one in settings.refine if one in menu.refinements)
        if settings.refine and not refine:
            refine = None  # what was asked for does not run on this model
        usable = replace(settings, model=label, refine=refine)
        own, second = self._service.own(usable, method), settings.compare_threshold
        if second is None:
            second = self._service.own(usable, compare[0] if compare else "").threshold
        values = {name: getattr(usable, name) for name in components} | {
            "method": Choice(choices=method_choices(menu), value=method),
            "compare": Choices(choices=compare_choices(menu), value=compare),
            "refine": Choices(choices=refine_choices(menu), value=[NONE] if refine == () else list(refine or ())),
            "flip": "" if usable.flip is None else str(usable.flip).lower(),
            "masks": str(usable.masks).lower(),
            "exemplar_text": str(usable.exemplar_text).lower(),
            "threshold": own.threshold if settings.threshold is None else settings.threshold,
            "split_peaks": own.split_peaks if settings.split_peaks is None else settings.split_peaks,
            "min_score": own.slid_min_score if settings.min_score is None else settings.min_score,
            "compare_threshold": gr.Slider(value=second, visible=len(compare) == 1),
        }
        return updates | {component: values[name] for name, component in components.items()}

    # ------------------------------------------------------------------------------------------------------- helpers
    def _problem(self, error: Exception) -> Updates:
        return {self._layout.results.status: view.problem(explain(error, self._debug))}


def write_downloads(service: Service, visitor: str | None, look: Look, settings: Settings) -> list[str]:
    """Writes the downloads into the upload folder, whose old files are removed; the server removes it when it ends."""

    def write(reporter: Reporter) -> list[str]:
        folder = Path(tempfile.mkdtemp(dir=upload_folder()))
        photograph = service.read(look.path).image
        results = {method: replace(one, image=photograph) for method, one in look.cut(settings).items()}
        return downloads.write_files(folder, results, settings, look.offer.label, reporter, look.ran(settings))

    return service.runs.begin(visitor, write).result()


def explain(error: Exception, debug: bool) -> str:
    """An error in one sentence for the visitor.

    Args:
        error: any error that a handler raised.
        debug: whether an error of the program itself is printed with its traceback.
    """
    if isinstance(error, CliplocError):
        return str(error)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if out_of_memory(error):
        return "not enough memory on the server: use a smaller photograph, fewer names or fewer scales"
    return f"an error in cliploc ({type(error).__name__}): start the server with --debug to see it there"
