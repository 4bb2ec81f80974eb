"""The page itself, as gradio blocks: what stands where, and which function a click calls."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from abc import ABCMeta
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.utils import get_upload_folder

from cliploc.demo import demo_photos
from cliploc.errors import CliplocError
from cliploc.geometry import POLICIES
from cliploc.prompts import TEMPLATE_SETS
from cliploc.report._html import escape
from cliploc.saliency import find
from cliploc.web import pictures
from cliploc.web.engine import Engine, Look
from cliploc.web.runs import STOPPED
from cliploc.web.settings import (
    SCALES,
    Settings,
    command_lines,
    from_mapping,
    from_query,
    python_lines,
    to_query,
)

KEPT_SECONDS = 1800  # a visitor's last look and uploads, when he does nothing
NOTHING_YET = "<p>Drop a photograph, type names, and press Find.</p>"
TITLE = "cliploc: type a name, see where it is"
INTRO = "# cliploc\nType a name, see where it is: heatmaps and boxes, without training for the name."
CSS = """
:root, .dark { --block-info-text-color: var(--body-text-color); --body-text-color-subdued: var(--body-text-color); }
.gradio-container { max-width: min(1360px, 100%) !important; margin: 0 auto !important; }
.gradio-container .wrap, .gradio-container .contain, .gradio-container .column { min-width: 0 !important; }
.gradio-container .contain { max-width: 100%; }
.cliploc-pictures { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); }
.cliploc-pictures.paired { grid-template-columns: repeat(auto-fit, minmax(min(240px, 45%), 1fr)); }
.cliploc-pictures figure { margin: 0; min-width: 0; max-width: 560px; }
.cliploc-pictures img { display: block; width: 100%; height: auto; border-radius: 4px; }
.cliploc-pictures figcaption { padding-top: .35rem; overflow-wrap: anywhere; }
.cliploc-pictures .chip { margin-right: .7rem; }
.cliploc-pictures .chip i { display: inline-block; width: .85em; height: .85em; margin-right: .35em;
  border: 1px solid currentColor; border-radius: 2px; }
.cliploc-table { overflow-x: auto; margin-top: 1rem; }
.cliploc-table table { border: 0 !important; border-collapse: collapse; width: 100%;
  font-variant-numeric: tabular-nums; }
.cliploc-table th, .cliploc-table td { border: 0 !important;
  text-align: left; padding: .3rem .8rem .3rem 0; font-weight: 400;
  border-bottom: 1px solid var(--border-color-primary) !important; vertical-align: top; }
.cliploc-table th[scope=row] { font-weight: 600; }
.cliploc-table .found { color: #0a6b3d; white-space: nowrap; }
.cliploc-table .absent { color: #a8320a; white-space: nowrap; }
.cliploc-table .boxes { min-width: 15rem; }
.dark .cliploc-table .found { color: #6fd19b; }
.dark .cliploc-table .absent { color: #ff9c73; }
#status { min-height: 1.6em; }
#status .problem { border-left: 4px solid #a8320a; padding: .4rem .8rem; }
"""
# What is in the address is what is on the page, so that a copied address opens the same.
ADDRESS_JS = "(query) => { history.replaceState(null, '', query || location.pathname); }"


class _WithoutStub(ComponentMeta):
    """Makes a component's class as Python does; gradio's own would write a .pyi file beside this one."""

    def __new__(cls, *parts: Any) -> Any:
        return ABCMeta.__new__(cls, *parts)


class Photograph(gr.Image, metaclass=_WithoutStub):
    """An upload that is handed on as the file it is: what is wrong with it is said by cliploc, in a sentence.

    Only what was uploaded to this server, or belongs to its examples, is taken: no path and no address that a request
    may name.
    """

    is_template = True

    def move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """Refuses all other files; gradio would copy or fetch them."""
        if url_or_file_path is not None:
            _check_place(str(url_or_file_path))
        return super().move_resource_to_block_cache(url_or_file_path)

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """As the other."""
        if url_or_file_path is not None:
            _check_place(str(url_or_file_path))
        return await super().async_move_resource_to_block_cache(url_or_file_path)

    def preprocess(self, payload: Any) -> str | None:
        """The file's path."""
        path = None if payload is None else payload.path
        if path is not None:
            _check_place(str(path))
        return path


def example_folder() -> Path:
    """Where the package keeps its photographs."""
    return next(iter(demo_photos())).path.parent.resolve()


def _check_place(path: str) -> None:
    place = Path(path).resolve()
    for folder in (Path(get_upload_folder()).resolve(), example_folder()):
        if place.is_relative_to(folder) and place.is_file():
            return
    raise gr.Error("This file was not uploaded here: upload the photograph.", print_exception=False)


def build(engine: Engine, *, debug: bool = False) -> gr.Blocks:
    """The page.

    Args:
        engine: the models behind it.
        debug: whether a mistake of the program's own is printed with its traceback, on the server.

    Raises:
        ModelError: the first model cannot be loaded.
    """
    first = next(iter(engine.offers))
    menu = engine.menu(first)

    page: gr.Blocks
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(300, KEPT_SECONDS), fill_width=False) as page:
        state = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.Markdown(INTRO)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                photo = Photograph(
                    label="Photograph", type="filepath", sources=["upload", "clipboard"], height=280, buttons=[]
                )
                names = gr.Textbox(
                    label="Names", info="One a line, or with commas. cat|kitten: synonyms.", lines=2, max_lines=8,
                    max_length=8000, placeholder="cat, remote control", elem_id="names",
                )  # fmt: skip
                with gr.Row():
                    find_it = gr.Button("Find", variant="primary", elem_id="find")
                    stop = gr.Button("Stop", elem_id="stop")
                with gr.Accordion("How to look", open=False):
                    model = gr.Dropdown(list(engine.offers), value=first, label="Model", elem_id="model")
                    method = gr.Dropdown(_titled(menu.methods), value=menu.own_method, label="Method", elem_id="method")
                    compare = gr.Dropdown(
                        [("none", ""), *_titled(menu.methods)], value="", label="Beside it", elem_id="compare",
                        info="A second method, out of the same pass of the model.",
                    )  # fmt: skip
                    resize = gr.Dropdown(
                        [("the model's own", ""), *[(one, one) for one in POLICIES]], value="",
                        label="How the photograph meets the model's input",
                    )  # fmt: skip
                    scales = gr.Dropdown(list(SCALES), value="1", label="Scales whose maps are averaged")
                    flip = gr.Checkbox(False, label="Average in the mirrored photograph")
                    templates = gr.Dropdown(list(TEMPLATE_SETS), value="default", label="Templates of the sentences")
                    refine = gr.CheckboxGroup(list(menu.refinements), value=[], label="Refinement")
                    presence = gr.Slider(
                        0, 1, 0.5, step=0.01, label="Least presence",
                        info="Names less probable are not found; 0 asks every name to be located.",
                    )  # fmt: skip
            with gr.Column(scale=5, min_width=300):
                status = gr.HTML("", elem_id="status")
                with gr.Row():
                    threshold = gr.Slider(
                        0, 1, engine.own_threshold(Settings(), menu.own_method), step=0.01,
                        label="Threshold", info="Boxes hold what is hotter than this share of the hottest.",
                        elem_id="threshold",
                    )  # fmt: skip
                    other = gr.Slider(0, 1, 0.4, step=0.01, label="Threshold of the second method", visible=False)
                    most = gr.Slider(0, 20, 0, step=1, label="Boxes a name", info="At most so many; 0 for all.")
                with gr.Row():
                    least = gr.Slider(
                        0, 1, 0, step=0.01, label="Least score", info="Boxes that score less are left out."
                    )
                    opacity = gr.Slider(0, 1, 0.55, step=0.01, label="Opacity of the heat")
                shown = gr.HTML(NOTHING_YET, elem_id="results")
                with gr.Accordion("Downloads", open=False):
                    make = gr.Button("Make the files", elem_id="make")
                    files = gr.Files(label="Overlay, heatmaps (npy, 16-bit PNG), results.json", interactive=False)
                with gr.Accordion("The same from Python, the command line, or by a link", open=False):
                    python = gr.Textbox(label="Python", lines=6, buttons=["copy"], interactive=False)
                    command = gr.Textbox(label="Command", lines=2, buttons=["copy"], interactive=False)
                    address = gr.Textbox(
                        label="Link", info="Names and settings, not the photograph.", buttons=["copy"],
                        interactive=False, elem_id="address",
                    )  # fmt: skip

        gr.Examples(
            [[str(one.path), ", ".join(one.ask)] for one in demo_photos()],
            [photo, names],
            label="Examples: pick one, then Find",
            examples_per_page=12,
            visible_columns=[0],
            cache_examples=False,
            api_visibility="private",
        )

        computed = [names, model, method, compare, resize, scales, flip, templates, refine, presence]
        live = [threshold, other, most, least, opacity]
        outcome = [state, status, shown, python, command, address]

        def chosen(values: tuple[Any, ...]) -> Settings:
            keys = ("names", "model", "method", "compare", "resize", "scales", "flip", "templates", "refine",
                    "min_presence", "threshold", "compare_threshold", "max_boxes", "min_score", "opacity")  # fmt: skip
            return from_mapping(dict(zip(keys, values, strict=True)))

        def told(look: Look, settings: Settings) -> tuple[Any, ...]:
            found = look.cut(settings)
            first_one = next(iter(found.values()))
            rules = [(name, round(tau, 4)) for name, tau in look.rules(settings)]
            lines = (settings, first_one.source, look.offer.arguments, rules, settings.max_boxes)
            return (
                look,
                f"<p role=status>{escape(pictures.summary(found))}</p>",
                pictures.results_html(found, settings.opacity),
                python_lines(*lines),
                command_lines(*lines),
                f"?{to_query(settings)}",
            )

        def refused(error: Exception, last: Look | None) -> tuple[Any, ...]:
            return (last, _problem(_sentence(error, debug)), *[gr.skip()] * 4)

        def on_find(
            request: gr.Request, last: Look | None, path: str | None, *values: Any
        ) -> Iterator[tuple[Any, ...]]:
            try:
                settings = chosen(values)
                run = engine.runs.begin(request.session_hash, lambda count: engine.look(path, settings, last, count))
                began = time.monotonic()
                for done in run.steps():
                    yield (gr.skip(), _progress(done, time.monotonic() - began), *[gr.skip()] * 4)
                yield told(run.result(), settings)
            except Exception as error:
                yield refused(error, last)

        def on_move(last: Look | None, *values: Any) -> tuple[Any, ...]:
            if last is None:
                return (gr.skip(),) * 6
            try:
                now = chosen(values)
                # What was computed stays as it was asked; only what moves boxes is taken from the page.
                settings = replace(
                    last.key[1], threshold=now.threshold, compare_threshold=now.compare_threshold,
                    max_boxes=now.max_boxes, min_score=now.min_score, opacity=now.opacity,
                )  # fmt: skip
                return (gr.skip(), *told(last, settings)[1:])
            except Exception as error:
                return (gr.skip(), *refused(error, last)[1:])

        def on_model(label: str) -> list[Any]:
            try:
                there = engine.menu(label)
                own = engine.own_threshold(Settings(model=label), there.own_method)
            except Exception as error:
                return [_problem(_sentence(error, debug)), *[gr.skip()] * 5]
            return [
                "",
                gr.Dropdown(choices=_titled(there.methods), value=there.own_method),
                gr.Dropdown(choices=[("none", ""), *_titled(there.methods)], value=""),
                gr.CheckboxGroup(choices=list(there.refinements), value=[]),
                own,
                gr.Slider(visible=False),
            ]

        def on_method(label: str, name: str, steps: list[str]) -> Any:
            try:
                return engine.own_threshold(from_mapping({"model": label, "refine": steps}), name)
            except CliplocError:
                return gr.skip()

        def on_compare(label: str, name: str, steps: list[str]) -> Any:
            if not name:
                return gr.Slider(visible=False)
            own = on_method(label, name, steps)
            return gr.Slider(visible=True, value=own) if isinstance(own, float) else gr.Slider(visible=True)

        def on_stop(request: gr.Request) -> str:
            engine.runs.stop(request.session_hash)
            return f"<p role=status>{STOPPED}</p>"

        def on_leave(request: gr.Request) -> None:
            engine.runs.stop(request.session_hash)

        def on_make(last: Look | None, *values: Any) -> tuple[Any, ...]:
            if last is None:
                return _problem("Nothing to download yet: find something first."), gr.skip()
            try:
                now = chosen(values)
                settings = replace(
                    last.key[1], threshold=now.threshold, compare_threshold=now.compare_threshold,
                    max_boxes=now.max_boxes, min_score=now.min_score, opacity=now.opacity,
                )  # fmt: skip
                return gr.skip(), _files(last, settings)
            except Exception as error:
                return _problem(_sentence(error, debug)), gr.skip()

        def on_open(request: gr.Request) -> list[Any]:
            query = dict(request.query_params)
            if not query:  # the page stands as it was built, and what was typed meanwhile stays
                return [gr.skip()] * (1 + len(computed) + len(live))
            settings = from_query(urlencode(query))
            try:
                offer = engine.offer(settings.model).label
                there = engine.menu(offer)
            except CliplocError as error:
                offer, there = first, menu
                settings = replace(settings, model="")
                said = _problem(str(error))
            else:
                said = ""
            chosen_method = settings.method if settings.method in there.methods else there.own_method
            beside = settings.compare if settings.compare in there.methods else ""
            steps = [one for one in settings.refine if one in there.refinements]
            asked = replace(settings, model=offer, refine=tuple(steps))
            own = engine.own_threshold(asked, chosen_method)
            own_beside = engine.own_threshold(asked, beside) if beside else 0.4
            taken = settings.threshold, settings.compare_threshold
            return [
                said, settings.names, offer,
                gr.Dropdown(choices=_titled(there.methods), value=chosen_method),
                gr.Dropdown(choices=[("none", ""), *_titled(there.methods)], value=beside),
                settings.resize, settings.scales, settings.flip, settings.templates,
                gr.CheckboxGroup(choices=list(there.refinements), value=steps),
                settings.min_presence,
                own if taken[0] is None else taken[0],
                gr.Slider(value=own_beside if taken[1] is None else taken[1], visible=bool(beside)),
                settings.max_boxes, settings.min_score, settings.opacity,
            ]  # fmt: skip

        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        one_by_one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # a model fills the machine
        run = gr.on(
            [find_it.click], on_find, [state, photo, *computed, *live], outcome,
            api_visibility="private", show_progress="minimal", show_progress_on=[status], trigger_mode="once",
            **one_by_one,
        )  # fmt: skip
        run.then(None, [address], None, js=ADDRESS_JS, **hidden)
        moved = gr.on(
            [slider.change for slider in live], on_move, [state, *computed, *live], outcome, trigger_mode="always_last",
            **hidden,
        )  # fmt: skip
        moved.then(None, [address], None, js=ADDRESS_JS, **hidden)
        stop.click(on_stop, None, [status], queue=False, cancels=[run], **hidden)
        model.input(on_model, [model], [status, method, compare, refine, threshold, other], **hidden, **one_by_one)
        gr.on([method.input, refine.input], on_method, [model, method, refine], [threshold], **hidden)
        gr.on([compare.input, refine.input], on_compare, [model, compare, refine], [other], **hidden)
        make.click(on_make, [state, *computed, *live], [status, files], api_visibility="private")
        page.unload(on_leave)
        page.load(on_open, None, [status, *computed, *live], **hidden, **one_by_one)
        _api(engine, photo, names, debug, one_by_one)
    return page


def _api(engine: Engine, photo: Photograph, names: gr.Textbox, debug: bool, one_by_one: dict[str, Any]) -> None:
    """The same functions without the page: one request, everything in it."""
    given = gr.JSON(value={}, visible=False, label="settings")
    answer, made = gr.JSON(visible=False, label="document"), gr.Files(visible=False, label="files")
    button = gr.Button(visible=False)

    def looked(path: str | None, asked: str, settings: dict[str, Any] | None) -> tuple[Look, Settings]:
        whole = from_mapping({**(settings or {}), "names": asked})
        return engine.look(path, whole), whole

    def locate(path: str | None, asked: str, settings: dict[str, Any] | None) -> dict[str, object]:
        try:
            look, whole = looked(path, asked, settings)
            return pictures.document(look.cut(whole), whole)
        except Exception as error:
            raise gr.Error(_sentence(error, debug), print_exception=False) from None

    def download(path: str | None, asked: str, settings: dict[str, Any] | None) -> list[str]:
        try:
            return _files(*looked(path, asked, settings))
        except Exception as error:
            raise gr.Error(_sentence(error, debug), print_exception=False) from None

    inputs = [photo, names, given]
    button.click(locate, inputs, [answer], api_name="locate", **one_by_one)
    button.click(download, inputs, [made], api_name="files", **one_by_one)


def _progress(done: int, seconds: float) -> str:
    """How far a look is; only methods that mask the photograph hundreds of times have something to count."""
    counted = f": {done:,} masked photographs done, {seconds:.0f} s" if done else " …"
    return f"<p role=status class=busy>Looking{counted}</p>"


def _files(look: Look, settings: Settings) -> list[str]:
    """Made in the upload folder, which is emptied when the server ends and whose old files go."""
    folder = Path(tempfile.mkdtemp(dir=get_upload_folder()))
    return pictures.write_files(folder, look.cut(settings), settings)


def _titled(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(find(name).title, name) for name in names]


def _problem(sentence: str) -> str:
    return f'<p role=alert class="problem">{escape(sentence)}</p>'


def _sentence(error: Exception, debug: bool) -> str:
    if isinstance(error, CliplocError):
        return str(error)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "too little memory on the server: use a smaller photograph, fewer names or fewer scales"
    return f"a mistake of cliploc's own ({type(error).__name__}): start the server with --debug to see it there"
