"""The layout of the page: gradio components only, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import gradio as gr
from gradio.helpers import Examples

from cliploc.config import POLICIES
from cliploc.demo import demo_photos
from cliploc.prompts import TEMPLATE_SETS
from cliploc.recipes import Recipe
from cliploc.saliency import find
from cliploc.web.components import Choice, Choices, Photograph, Slider, Text
from cliploc.web.service import Menu, Own, Service
from cliploc.web.settings import MOST_LETTERS, NONE, SCALES, WINDOWS, Settings

INTRO = "# cliploc\nType a name and see where it is: heatmaps and boxes, without training for that name."
AS_RECIPE = "the recipe's, or {}"  # of a setting that the visitor does not change; {} is for a method without a recipe
NO_RESULT_YET = "Choose a photograph, type names, and press Find."
SAYS = 'element.closest("#status").says = line => { props.value = line; };'  # so that page.js can set the status line
PER_ROW: dict[str, Any] = {"min_width": 150, "buttons": []}  # of a slider, so that several fit in a row


@dataclass(frozen=True)
class Inputs:
    """What a visitor searches in and for."""

    photo: Photograph
    names: Text
    find: gr.Button
    stop: gr.Button
    examples: Examples
    exemplar: Photograph


@dataclass(frozen=True)
class Shown:
    """What a second upload, an exemplar, stands for; the fields have the names of `Settings`."""

    exemplar_name: Text
    exemplar_box: Text
    exemplar_text: Choice


@dataclass(frozen=True)
class Options:
    """Settings that a new search needs; the fields have the names of `Settings`."""

    model: Choice
    method: Choice
    compare: Choices
    resize: Choice
    scales: Choice
    windows: Choice
    flip: Choice
    templates: Choice
    refine: Choices


@dataclass(frozen=True)
class Sliders:
    """Settings that change what is shown without a new search; the fields have the names of `Settings`."""

    threshold: Slider
    compare_threshold: Slider
    max_boxes: Slider
    split_peaks: Slider
    min_score: Slider
    min_presence: Slider
    opacity: Slider
    masks: Choice


@dataclass(frozen=True)
class Results:
    """What a search shows.

    Attributes:
        visitor: the page's name for itself, which it makes when it opens; the server keeps its last `Look` under it.
        status: a line about the search or about a mistake.
        figures: pictures and table.
        python: a script that gives the same.
        command: a command that gives the same.
        address: the page's address with these settings.
    """

    visitor: gr.Textbox
    status: gr.HTML
    figures: gr.HTML
    python: gr.Textbox
    command: gr.Textbox
    address: gr.Textbox


@dataclass(frozen=True)
class Downloads:
    """Files of the results, made when they are asked for."""

    make: gr.Button
    files: gr.Files


@dataclass(frozen=True)
class Layout:
    """All parts of the page."""

    inputs: Inputs
    shown: Shown
    options: Options
    sliders: Sliders
    results: Results
    downloads: Downloads

    @property
    def settings(self) -> dict[str, Any]:
        """Name in `Settings` → component."""
        parts = (self.shown, self.options, self.sliders)
        return {"names": self.inputs.names} | {
            one.name: getattr(part, one.name) for part in parts for one in fields(part)
        }


def build_layout(service: Service) -> Layout:
    """Adds the components to the page that is open.

    Args:
        service: its first model and that model's methods are chosen at first.

    Raises:
        ModelError: the first model cannot be loaded.
    """
    visitor = gr.Textbox(visible="hidden")
    gr.Markdown(INTRO, elem_id="intro")
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            inputs, shown = _inputs()
            with gr.Accordion("Model, method and options", open=False):
                options = _options(service)
        with gr.Column(scale=5, min_width=300):
            status = gr.HTML("", elem_id="status", js_on_load=SAYS)
            with gr.Row(elem_id="sliders"):
                sliders = _sliders(service.own(Settings()))
            figures = gr.HTML(NO_RESULT_YET, elem_id="results")
            with gr.Accordion("Downloads", open=False):
                downloads = _downloads()
            with gr.Accordion("Python, command line and link", open=False):
                python, command, address = _reproduction()
    return Layout(
        inputs, shown, options, sliders, Results(visitor, status, figures, python, command, address), downloads
    )


def _inputs() -> tuple[Inputs, Shown]:
    photo = Photograph(label="Photograph", type="filepath", sources=["upload", "clipboard"], height=260, buttons=[])
    names = Text(
        label="Names", info="One per line or separated by commas. Synonyms: cat|kitten. Shift+Enter starts the search.",
        lines=2, max_lines=8, max_length=MOST_LETTERS, placeholder="cat, remote control", elem_id="names",
    )  # fmt: skip
    with gr.Accordion("A picture as prompt", open=False):
        exemplar, shown = _exemplar()
    with gr.Row(elem_id="buttons"):
        find_button = gr.Button("Find", variant="primary", elem_id="find", min_width=100)
        stop = gr.Button("Stop", elem_id="stop", min_width=100)
    examples = gr.Examples(
        [[str(one.path), ", ".join(one.ask)] for one in demo_photos()],
        [photo, names],
        label="Examples",
        elem_id="examples",
        examples_per_page=12,
        visible_columns=[0],
        cache_examples=False,
        api_visibility="private",
    )
    return Inputs(photo, names, find_button, stop, examples, exemplar), shown


def _exemplar() -> tuple[Photograph, Shown]:
    """A second upload that stands for a name."""
    exemplar = Photograph(
        label="Picture that stands for a name", type="filepath", sources=["upload", "clipboard"], height=160,
        buttons=[], elem_id="exemplar",
    )  # fmt: skip
    shown = Shown(
        exemplar_name=Text(
            label="Name that it stands for", info="One of the names, or a new one. Empty: the file's name.",
            max_lines=1, max_length=200, elem_id="exemplar-name",
        ),
        exemplar_box=Text(
            label="Part of it to use", info="x0, y0, x1, y1 in pixels. Empty: all of it.", max_lines=1, max_length=80,
            elem_id="exemplar-box",
        ),
        exemplar_text=Choice(
            [("no", "false"), ("yes", "true")], value="false", label="Use the text of the name too",
            elem_id="exemplar-text",
        ),
    )  # fmt: skip
    return exemplar, shown


def _options(service: Service) -> Options:
    first = next(iter(service.offers))
    menu = service.menu(first)
    return Options(
        model=Choice(list(service.offers), value=first, label="Model", elem_id="model"),
        method=Choice(
            method_choices(menu), value=menu.own, label="Method", info="A method runs as published.",
            elem_id="method",
        ),
        compare=Choices(
            compare_choices(menu), value=[], label="Compare with", info="As many methods as you like, shown beside it.",
            elem_id="compare",
        ),
        resize=Choice(
            [("as the model was trained", ""), *[(one, one) for one in POLICIES]], value="",
            label="Resize to the model's input",
        ),
        scales=Choice(
            [(AS_RECIPE.format("1"), ""), *[(one, one) for one in SCALES]], value="", label="Scales",
            info="The maps of all scales are averaged.",
        ),
        windows=Choice(
            [(AS_RECIPE.format("none"), ""), *[(one, one) for one in WINDOWS]], value="", label="Windows",
            info="Parts of the photograph, enlarged, for small things. 2: half its shorter side long.",
        ),
        flip=Choice(
            [(AS_RECIPE.format("no"), ""), ("yes", "true"), ("no", "false")], value="",
            label="Average with the flipped photograph",
        ),
        templates=Choice(list(TEMPLATE_SETS), value=Settings().templates, label="Prompt templates"),
        refine=Choices(
            refine_choices(menu), value=[], label="Refinement",
            info="Nothing chosen: the recipe's, or none.",
        ),
    )  # fmt: skip


def _sliders(own: Own) -> Sliders:
    return Sliders(
        threshold=Slider(
            0, 1, own.threshold, step=0.01, label="Threshold", info="share of peak", elem_id="threshold", **PER_ROW
        ),
        compare_threshold=Slider(
            0, 1, 0.4, step=0.01, label="Second", info="threshold", visible=False,
            elem_id="compare-threshold", **PER_ROW,
        ),
        max_boxes=Slider(0, 20, 0, step=1, label="Boxes", info="0: no limit", **PER_ROW),
        split_peaks=Slider(0, 1, own.split_peaks, step=0.01, label="Split peaks", info="1: never", **PER_ROW),
        min_score=Slider(0, 1, own.slid_min_score, step=0.01, label="Score", info="minimum", **PER_ROW),
        min_presence=Slider(
            0, 1, Settings().min_presence, step=0.01, label="Presence", info="minimum", elem_id="presence", **PER_ROW
        ),
        opacity=Slider(0, 1, Settings().opacity, step=0.01, label="Opacity", info="of heat, masks", **PER_ROW),
        masks=Choice(
            [("heat", "false"), ("masks", "true")], value="false", label="Show",
            info="and download", elem_id="masks", min_width=PER_ROW["min_width"],
        ),
    )  # fmt: skip


def _downloads() -> Downloads:
    return Downloads(
        make=gr.Button("Create the files", elem_id="make"),
        files=gr.Files(
            label="Overlay, heatmaps (npy, 16-bit PNG), masks if shown, COCO, CSV, CVAT, Label Studio, results.json",
            interactive=False,
            elem_id="files",
        ),
    )


def _reproduction() -> tuple[gr.Textbox, gr.Textbox, gr.Textbox]:
    """Fields with the Python script, the command and the link that give the same results."""
    shared: dict[str, Any] = {"buttons": ["copy"], "interactive": False}
    python = gr.Textbox(label="Python", lines=6, max_lines=24, elem_id="python", **shared)
    command = gr.Textbox(label="Command", lines=2, max_lines=12, elem_id="command", **shared)
    address = gr.Textbox(
        label="Link", info="It holds the names and settings, not the photograph.", elem_id="address", **shared
    )
    return python, command, address


def method_choices(menu: Menu) -> list[tuple[str, str]]:
    """Text and value of each recipe and method that runs on a model; the first is what runs by default."""
    recipes = [(f"{name.replace(':', ': ')} – {_parts(one)}", name) for name, one in menu.recipes.items()]
    choices = [*recipes, *compare_choices(menu)]
    return sorted(choices, key=lambda choice: choice[1] != menu.own)


def compare_choices(menu: Menu) -> list[tuple[str, str]]:
    """Title and name of each method that runs on a model."""
    return [(find(name).title, name) for name in menu.methods]


def refine_choices(menu: Menu) -> list[str]:
    """`NONE`, which leaves out the recipe's refinements too, and the refinements that run on a model."""
    return [NONE, *menu.refinements]


def _parts(recipe: Recipe) -> str:
    """The parts of a recipe in a few words.

    Example:
        >>> from cliploc.recipes import recipe_of
        >>> _parts(recipe_of("mini"))
        'CAM, affinity, level, scale 1.43, windows'
    """
    options = recipe.options
    scales = options.get("scales", ())
    words = [find(recipe.method).title, *options.get("refine", ())]
    words += [f"scale{'s' if len(scales) > 1 else ''} {' and '.join(f'{one:g}' for one in scales)}"] if scales else []
    words += [word for name, word in (("windows", "windows"), ("flip", "mirrored")) if options.get(name)]
    return ", ".join(words)


def accessible_names() -> dict[str, list[str]]:
    """CSS selector → the accessible name of each element in turn, for those that gradio leaves without one."""
    return {
        "#examples .gallery-item": [f"Example {one.path.stem}: {', '.join(one.ask)}" for one in demo_photos()],
        "#python textarea": ["Python"],
        "#command textarea": ["Command"],
        "#address textarea": ["Link"],
    }
