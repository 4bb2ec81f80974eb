"""The page itself, as gradio blocks: what stands where, and which function a click calls."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from abc import ABCMeta
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.utils import get_upload_folder

from cliploc._memory_errors import out_of_memory
from cliploc.demo import demo_photos
from cliploc.errors import CliplocError
from cliploc.geometry import POLICIES
from cliploc.prompts import TEMPLATE_SETS
from cliploc.report.html import escape
from cliploc.saliency import find
from cliploc.web import pictures
from cliploc.web.engine import KEPT_SECONDS, Engine, Look
from cliploc.web.requests import NOT_UPLOADED, Endpoint, Slot
from cliploc.web.runs import STOPPED
from cliploc.web.settings import (
    LIVE,
    MOST_LETTERS,
    SCALES,
    Settings,
    command_lines,
    from_mapping,
    from_query,
    python_lines,
    to_query,
)

SWEPT_SECONDS = 300  # how often files that are older are looked for
NOTHING_YET = "<p>Drop a photograph, type names, and press Find.</p>"
TITLE = "cliploc: type a name, see where it is"
INTRO = "# cliploc\nType a name, see where it is: heatmaps and boxes, without training for the name."
CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
# What is in the address is what is on the page, so that a copied address opens the same.
ADDRESS_JS = "(query) => { if (query) history.replaceState(null, '', query); return location.href; }"
WAITING = "<p role=status class=busy>Waiting for the model …</p>"
TURNED_AWAY = "The server did not take it: too many are waiting, or it has ended. Try again in a minute."
# On a telephone what is found lies below the fold.
ASKED_JS = f"""() => {{
  window.cliplocStopped = false;
  const status = document.querySelector('#status');
  if (status.getBoundingClientRect().top > innerHeight / 2) status.scrollIntoView({{block: 'start'}});
  return '{WAITING}';
}}"""
STOP_JS = "() => { window.cliplocStopped = true; }"
STOPPED_HTML = f"<p role=status>{STOPPED}</p>"
# What a visitor stops counts as failed too.
FAILED_JS = f"""() => window.cliplocStopped ? '{STOPPED_HTML}' :
  '<p role=alert class="problem">{TURNED_AWAY}</p>'"""
# What gradio leaves without a name; parts of the page come and go.
NAMING_JS = """() => {
  const texts = %s;
  const name = () => Object.entries(texts).forEach(([where, words]) =>
    document.querySelectorAll(where).forEach((one, i) => one.ariaLabel ||= words[i] || words[0]));
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
  name();
}"""


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
        _check_place(url_or_file_path)
        return super().move_resource_to_block_cache(url_or_file_path)

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        """As the other."""
        _check_place(url_or_file_path)
        return await super().async_move_resource_to_block_cache(url_or_file_path)

    def preprocess(self, payload: Any) -> str | None:
        """The file's path."""
        path = None if payload is None else payload.path
        _check_place(path)
        return path


class Text(gr.Textbox, metaclass=_WithoutStub):
    """A text that is handed on as it came: gradio would make one of whatever a request holds."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """What was sent."""
        return payload


class Knob(gr.Slider, metaclass=_WithoutStub):
    """A number that is checked by cliploc, in a sentence."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """What was sent."""
        return payload


class Choice(gr.Dropdown, metaclass=_WithoutStub):
    """A menu whose value is checked by cliploc, in a sentence.

    While a visitor changes the model, a request may still name a method of the one before, which gradio would answer
    with an error.
    """

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """What was chosen."""
        return payload


class Choices(gr.CheckboxGroup, metaclass=_WithoutStub):
    """As `Choice`, of several."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """What was chosen."""
        return payload


def example_folder() -> Path:
    """Where the package keeps its photographs."""
    return next(iter(demo_photos())).path.parent.resolve()


def upload_folder() -> Path:
    """Where gradio keeps uploads and downloads."""
    return Path(get_upload_folder()).resolve()


def is_ours(path: str) -> bool:
    """Whether it is a file that was uploaded here, or an example's."""
    try:
        place = Path(path).resolve()
        return any(place.is_relative_to(folder) for folder in (upload_folder(), example_folder())) and place.is_file()
    except (OSError, ValueError):  # a name too long for the system, or with a null character
        return False


def _check_place(path: str | Path | None) -> None:
    if path is not None and not is_ours(str(path)):
        raise gr.Error(NOT_UPLOADED, print_exception=False)


def endpoints(blocks: gr.Blocks) -> dict[int, Endpoint]:
    """What a request may call on a page."""
    described: dict[str, Any] = blocks.get_api_info()["named_endpoints"]
    found = {}
    for number, function in blocks.fns.items():
        if function.fn is not None:  # else it runs in the browser
            name = str(function.api_name or "")
            parameters = described[f"/{name}"]["parameters"] if f"/{name}" in described else ()
            found[number] = Endpoint(
                name,
                tuple(_slot(one) for one in function.inputs),
                tuple(parameter["parameter_name"] for parameter in parameters),
            )
    return found


def _slot(component: Any) -> Slot:
    if component.stateful:
        return "state"
    if isinstance(component, gr.Dataset):
        return range(len(component.samples))
    return "photograph" if isinstance(component, Photograph) else "value"


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
    own = engine.own_threshold(Settings())

    page: gr.Blocks
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(SWEPT_SECONDS, KEPT_SECONDS), fill_width=False
    ) as page:
        state = gr.State(None, time_to_live=KEPT_SECONDS)
        gr.Markdown(INTRO, elem_id="intro")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                photo = Photograph(
                    label="Photograph", type="filepath", sources=["upload", "clipboard"], height=260, buttons=[]
                )
                names = Text(
                    label="Names", info="One a line, or with commas; cat|kitten: synonyms. Shift+Enter finds.", lines=2,
                    max_lines=8, max_length=MOST_LETTERS, placeholder="cat, remote control", elem_id="names",
                )  # fmt: skip
                with gr.Row(elem_id="buttons"):
                    find_it = gr.Button("Find", variant="primary", elem_id="find", min_width=100)
                    stop = gr.Button("Stop", elem_id="stop", min_width=100)
                examples = gr.Examples(
                    [[str(one.path), ", ".join(one.ask)] for one in demo_photos()],
                    [photo, names],
                    label="Or pick an example",
                    elem_id="examples",
                    examples_per_page=12,
                    visible_columns=[0],
                    cache_examples=False,
                    api_visibility="private",
                )
                with gr.Accordion("How to look", open=False):
                    model = Choice(list(engine.offers), value=first, label="Model", elem_id="model")
                    method = Choice(_titled(menu.methods), value=menu.own_method, label="Method", elem_id="method")
                    compare = Choice(
                        [("none", ""), *_titled(menu.methods)], value="", label="Beside it", elem_id="compare",
                        info="A second method, to compare.",
                    )  # fmt: skip
                    resize = Choice(
                        [("the model's own", ""), *[(one, one) for one in POLICIES]], value="",
                        label="How the photograph meets the model's input",
                    )  # fmt: skip
                    scales = Choice(list(SCALES), value="1", label="Scales whose maps are averaged")
                    flip = gr.Checkbox(False, label="Average in the mirrored photograph")
                    templates = Choice(list(TEMPLATE_SETS), value="default", label="Templates of the sentences")
                    refine = Choices(list(menu.refinements), value=[], label="Refinement")
            with gr.Column(scale=5, min_width=300):
                status = gr.HTML("", elem_id="status")
                with gr.Row(elem_classes="knobs"):
                    knob: dict[str, Any] = {"min_width": 150, "buttons": []}
                    threshold = Knob(
                        0, 1, own, step=0.01, label="Threshold", info="of the hottest", elem_id="threshold", **knob
                    )
                    other = Knob(
                        0, 1, 0.4, step=0.01, label="Second", info="its threshold", visible=False,
                        elem_id="other", **knob,
                    )  # fmt: skip
                    most = Knob(0, 20, 0, step=1, label="Boxes", info="a name; 0: all", **knob)
                    least = Knob(0, 1, 0, step=0.01, label="Score", info="at least", **knob)
                    presence = Knob(
                        0, 1, 0.5, step=0.01, label="Presence", info="at least", elem_id="presence",
                        **knob,
                    )  # fmt: skip
                    opacity = Knob(0, 1, 0.55, step=0.01, label="Opacity", info="of the heat", **knob)
                shown = gr.HTML(NOTHING_YET, elem_id="results")
                with gr.Accordion("Downloads", open=False):
                    make = gr.Button("Make the files", elem_id="make")
                    files = gr.Files(
                        label="Overlay, heatmaps (npy, 16-bit PNG), boxes for other tools, results.json",
                        interactive=False,
                        elem_id="files",
                    )
                with gr.Accordion("The same from Python, the command line, or by a link", open=False):
                    python = gr.Textbox(
                        label="Python", lines=6, max_lines=24, buttons=["copy"], interactive=False, elem_id="python"
                    )
                    command = gr.Textbox(
                        label="Command", lines=2, max_lines=12, buttons=["copy"], interactive=False, elem_id="command"
                    )
                    address = gr.Textbox(
                        label="Link", info="Names and settings, not the photograph.", buttons=["copy"],
                        interactive=False, elem_id="address",
                    )  # fmt: skip

        computed = [names, model, method, compare, resize, scales, flip, templates, refine]
        live = [threshold, other, presence, most, least, opacity]
        outcome = [state, status, shown, python, command, address]

        def chosen(values: tuple[Any, ...]) -> Settings:
            keys = ("names", "model", "method", "compare", "resize", "scales", "flip", "templates", "refine", *LIVE)
            return from_mapping(dict(zip(keys, values, strict=True)))

        def told(look: Look, settings: Settings) -> tuple[Any, ...]:
            found = look.cut(settings)
            source = next(iter(found.values())).source
            rules = [(look.offer.arguments_of(name), round(tau, 4)) for name, tau in look.rules(settings)]
            return (
                _said(pictures.summary(found)),
                pictures.results_html(found, settings.opacity),
                python_lines(settings, source, look.offer.arguments, rules),
                command_lines(settings, source, look.offer.arguments, rules),
                f"?{to_query(_without_defaults(settings, look, engine))}",
            )

        def on_find(
            request: gr.Request, last: Look | None, path: str | None, *values: Any
        ) -> Iterator[tuple[Any, ...]]:
            try:
                settings = chosen(values)
                run = engine.runs.begin(
                    request.session_hash, lambda count: engine.look(path, settings, last, count), alone=True
                )
                began = time.monotonic()
                for done, left in run.steps():
                    yield (gr.skip(), _progress(done, left, time.monotonic() - began), *[gr.skip()] * 4)
                look = run.result().slim(pictures.SHOWN_SIDE)
                yield (look, *told(look, settings))
            except Exception as error:
                yield (gr.skip(), _problem(_sentence(error, debug)), *[gr.skip()] * 4)

        def on_move(last: Look | None, *values: Any) -> tuple[Any, ...]:
            if last is None:
                return (gr.skip(),) * 5
            try:
                now = chosen(values)
                if _other_maps(now, last.settings):  # the thresholds are of methods that did not look yet
                    return (_said("Press Find to look with what is chosen now."), *[gr.skip()] * 4)
                return told(last, last.settings.with_live(now))
            except Exception as error:
                return (_problem(_sentence(error, debug)), *[gr.skip()] * 4)

        def on_model(label: str) -> list[Any]:
            try:
                asked = from_mapping({"model": label})
                there = engine.menu(asked.model)
                own = engine.own_threshold(asked)
            except Exception as error:
                return [_problem(_sentence(error, debug)), *[gr.skip()] * 5]
            return [
                "",
                Choice(choices=_titled(there.methods), value=there.own_method),
                Choice(choices=[("none", ""), *_titled(there.methods)], value=""),
                Choices(choices=list(there.refinements), value=[]),
                own,
                gr.Slider(visible=False),
            ]

        def on_method(label: str, name: str, steps: list[str]) -> Any:
            try:
                asked = from_mapping({"model": label, "refine": steps, "method": name})
                return engine.own_threshold(asked, asked.method)
            except CliplocError:
                return gr.skip()

        def on_compare(label: str, name: str, steps: list[str]) -> Any:
            if not name:
                return gr.Slider(visible=False)
            own = on_method(label, name, steps)
            return gr.Slider(visible=True, value=own) if isinstance(own, float) else gr.Slider(visible=True)

        def on_stop(request: gr.Request) -> str:
            engine.runs.stop(request.session_hash)
            return STOPPED_HTML

        def on_leave(request: gr.Request) -> None:
            engine.runs.stop(request.session_hash)

        def on_make(request: gr.Request, last: Look | None, *values: Any) -> tuple[Any, ...]:
            if last is None:
                return _problem("Nothing to download yet: find something first."), gr.skip()
            try:
                return gr.skip(), _files(engine, request.session_hash, last, last.settings.with_live(chosen(values)))
            except Exception as error:
                return _problem(_sentence(error, debug)), gr.skip()

        def on_open(request: gr.Request) -> list[Any]:
            query = dict(request.query_params)
            if not query:  # the page stands as it was built, and what was typed meanwhile stays
                return [gr.skip()] * (1 + len(computed) + len(live))
            settings = from_query(urlencode(query))
            said, offer, there = "", first, menu
            try:
                offer, there = engine.offer(settings.model).label, engine.menu(settings.model)
            except CliplocError as error:
                said = _problem(str(error))
            wanted = settings.method if settings.method in there.methods else there.own_method
            beside = settings.compare if settings.compare in there.methods else ""
            steps = [one for one in settings.refine if one in there.refinements]
            asked = replace(settings, model=offer, refine=tuple(steps))
            taus = settings.threshold, settings.compare_threshold
            own, own_beside = (engine.own_threshold(asked, one) for one in (wanted, beside))
            return [
                said, settings.names, offer,
                Choice(choices=_titled(there.methods), value=wanted),
                Choice(choices=[("none", ""), *_titled(there.methods)], value=beside),
                settings.resize, settings.scales, settings.flip, settings.templates,
                Choices(choices=list(there.refinements), value=steps),
                own if taus[0] is None else taus[0],
                gr.Slider(value=own_beside if taus[1] is None else taus[1], visible=bool(beside)),
                settings.min_presence, settings.max_boxes, settings.min_score, settings.opacity,
            ]  # fmt: skip

        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        one_by_one: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}  # a model fills the machine
        looking: dict[str, Any] = {
            "fn": on_find, "inputs": [state, photo, *computed, *live], "outputs": outcome, "api_visibility": "private",
            "show_progress": "hidden", **one_by_one,
        }  # fmt: skip
        # A browser carries a click's listeners out in this order.
        gr.on([find_it.click, names.submit], None, None, [status], js=ASKED_JS, **hidden)
        run = gr.on([find_it.click, names.submit], trigger_mode="once", **looking)
        picked = examples.load_input_event.then(None, None, [status], js=ASKED_JS, **hidden).then(**looking)
        moved = gr.on(
            [slider.change for slider in live], on_move, [state, *computed, *live], outcome[1:],
            trigger_mode="always_last", **hidden,
        )  # fmt: skip
        for event in (run, picked, moved):
            event.then(None, [address], [address], js=ADDRESS_JS, **hidden)
        for event in (run, picked):
            event.failure(None, None, [status], js=FAILED_JS, **hidden)
        stop.click(None, js=STOP_JS, **hidden)
        stop.click(on_stop, None, [status], queue=False, cancels=[run, picked], **hidden)
        model.input(on_model, [model], [status, method, compare, refine, threshold, other], **hidden, **one_by_one)
        gr.on([method.input, refine.input], on_method, [model, method, refine], [threshold], **hidden)
        gr.on([compare.input, refine.input], on_compare, [model, compare, refine], [other], **hidden)
        make.click(on_make, [state, *computed, *live], [status, files], api_visibility="private")
        page.load(None, js=NAMING_JS % json.dumps(_texts()), **hidden)
        page.unload(on_leave)
        page.load(on_open, None, [status, *computed, *live], **hidden, **one_by_one)
        _api(engine, photo, names, debug, one_by_one)
    return page


def _api(engine: Engine, photo: Photograph, names: gr.Textbox, debug: bool, one_by_one: dict[str, Any]) -> None:
    """The same functions without the page: one request, everything in it."""
    given = gr.JSON(value={}, visible=False, label="settings")
    answer, made = gr.JSON(visible=False, label="document"), gr.Files(visible=False, label="files")
    button = gr.Button(visible=False)

    def looked(
        visitor: str | None, path: str | None, asked: str, settings: dict[str, Any] | None
    ) -> tuple[Look, Settings]:
        whole = replace(from_mapping({} if settings is None else settings), names=from_mapping({"names": asked}).names)
        return engine.runs.begin(visitor, lambda count: engine.look(path, whole, None, count)).result(), whole

    def locate(request: gr.Request, path: str | None, asked: str, settings: dict[str, Any] | None) -> dict[str, object]:
        try:
            look, whole = looked(request.session_hash, path, asked, settings)
            return pictures.document(look.cut(whole), whole)
        except Exception as error:
            raise gr.Error(_sentence(error, debug), print_exception=False) from None

    def download(request: gr.Request, path: str | None, asked: str, settings: dict[str, Any] | None) -> list[str]:
        try:
            look, whole = looked(request.session_hash, path, asked, settings)
            return _files(engine, request.session_hash, look, whole)
        except Exception as error:
            raise gr.Error(_sentence(error, debug), print_exception=False) from None

    inputs = [photo, names, given]
    button.click(locate, inputs, [answer], api_name="locate", **one_by_one)
    button.click(download, inputs, [made], api_name="files", **one_by_one)


def _progress(done: int, left: int, seconds: float) -> str:
    """How far a look is; only methods that mask the photograph hundreds of times have something to count."""
    if not done:
        return "<p role=status class=busy>Looking …</p>"
    counted = f"{done:,} of about {done + left:,} masked photographs done, {seconds:.0f} s"
    bar = f"<progress aria-label='masked photographs' max={done + left} value={done}></progress>"
    return f"<p role=status class=busy>Looking: {counted} {bar}</p>"


def _files(engine: Engine, visitor: str | None, look: Look, settings: Settings) -> list[str]:
    """Made in the upload folder, which is emptied when the server ends and whose old files go."""

    def write(count: Callable[[int, int], None]) -> list[str]:
        folder = Path(tempfile.mkdtemp(dir=upload_folder()))
        photograph = engine.read(look.path).image
        results = {method: replace(one, image=photograph) for method, one in look.cut(settings).items()}
        return pictures.write_files(folder, results, settings, look.offer.label, lambda: count(0, 0))

    return engine.runs.begin(visitor, write).result()


def _other_maps(now: Settings, shown: Settings) -> bool:
    """Whether the maps that are shown are other than those chosen now: by another model, method or refinement."""
    return any(getattr(now, key) != getattr(shown, key) for key in ("model", "method", "compare", "refine"))


def _without_defaults(settings: Settings, look: Look, engine: Engine) -> Settings:
    """What an address holds: nothing that the page would choose by itself."""
    own = look.own
    return replace(
        settings,
        model="" if settings.model == next(iter(engine.offers)) else settings.model,
        method="" if settings.method == engine.menu(settings.model).own_method else settings.method,
        threshold=_unless(settings.threshold, own.get(settings.method)),
        compare_threshold=_unless(settings.compare_threshold, own.get(settings.compare)) if settings.compare else None,
    )


def _unless(threshold: float | None, own: float | None) -> float | None:
    same = threshold is not None and own is not None and abs(threshold - own) < 1e-3
    return None if same else threshold


def _texts() -> dict[str, list[str]]:
    """Selector → what a screen reader says, of each element in turn."""
    examples = [f"Example {one.path.stem}: {', '.join(one.ask)}" for one in demo_photos()]
    outputs = {"python": "Python", "command": "Command", "address": "Link"}
    return {
        "#examples .gallery-item": examples,
        **{f"#{place} textarea": [text] for place, text in outputs.items()},
    }


def _titled(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(find(name).title, name) for name in names]


def _said(sentence: str) -> str:
    return f"<p role=status>{escape(sentence)}</p>"


def _problem(sentence: str) -> str:
    return f'<p role=alert class="problem">{escape(sentence)}</p>'


def _sentence(error: Exception, debug: bool) -> str:
    if isinstance(error, CliplocError):
        return str(error)
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    if out_of_memory(error):
        return "too little memory on the server: use a smaller photograph, fewer names or fewer scales"
    return f"a mistake of cliploc's own ({type(error).__name__}): start the server with --debug to see it there"
