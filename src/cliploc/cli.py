"""The command line: a thin shell over `Localizer`, without mathematics. Nothing heavy is imported before it is used.

Exit codes: 0 done; 1 finished, but some inputs failed; 2 nothing could be done; 130 interrupted; 141 the reader of our
output went away.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from cliploc import __version__
from cliploc._allocator import keep_freed_memory
from cliploc._terminal import Terminal, grid, printable
from cliploc.errors import CliplocError, CliplocWarning, InputError, ModelError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from cliploc.backbones import ModelEntry
    from cliploc.datasets import Reader
    from cliploc.jobs.engine import Engine
    from cliploc.jobs.plan import View
    from cliploc.localizer import Classification, Localizer
    from cliploc.schema import Dataset, Localization

DONE, SOME_FAILED, NOTHING_DONE, INTERRUPTED, NO_READER = 0, 1, 2, 130, 141
JPEG_MAX_SIDE = 65_500
LOST = ("missing picture", "broken picture", "missing mask")  # problems of a dataset that are failures of a run on it
SHOWN_CLASSES, SHOWN_PROBLEMS = 20, 3  # one by one, before a number stands for them
DEMO_VIEWS = {
    "scales": (1, 1.43, 2),
    "flip": True,
}  # better on the tuning pictures: tools/choose_thresholds.py --scales
DEMO_BESIDE = {"model": "mini-vit", "method": None, "scales": (2,)}  # what ViT methods make of the same photographs

app = typer.Typer(
    name="cliploc",
    help="Name anything, and see where it is in a picture.",
    epilog="Exit code 0: done. 1: finished, but some inputs failed. 2: nothing could be done.",
    add_completion=False,
    rich_markup_mode=None,  # help texts hold square brackets, and rich takes time to import
    pretty_exceptions_enable=False,
)


# ------------------------------------------------------------------------------------------------------------ options
Model = Annotated[str, typer.Option("--model", help="A name of `cliploc models`.")]
Pretrained = Annotated[str | None, typer.Option(help="Which weights of the model; its own when left out.")]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="A name of `cliploc methods`, or several: cam+layer_cam. [default: cam on CNN towers, naclip on ViTs]",
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", metavar="NAME", help='What to look for; once for each. "cat|kitten": synonyms.'),
]
Classes = Annotated[
    str | None, typer.Option(metavar="FILE|imagenet", help="Instead of --prompt: names out of a file, one a line.")
]
Templates = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help="A sentence with {} for the name (repeatable), a FILE.txt of them, or default, openai-80, openai-7, "
        "name-only.",
    ),
]
Precision = Annotated[str, typer.Option(metavar="fp32|bf16|fp16|auto", help="What the model's tower computes in.")]
NoTextCache = Annotated[bool, typer.Option("--no-text-cache", help="Neither read nor keep names' embeddings on disk.")]
BatchSize = Annotated[int, typer.Option(help="Photos sent through the model at once.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best there is when left out.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cliploc {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Debug = False,  # noqa: ARG001 - read in `main`, where errors end up
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


# ----------------------------------------------------------------------------------------------------------- commands
@app.command()
def localize(
    photos: Annotated[
        list[str] | None, typer.Argument(metavar="PHOTO", help="Picture files: JPEG, PNG, WebP, GIF, TIFF …")
    ] = None,
    prompt: Names = None,
    classes: Classes = None,
    model: Model = "mini",
    pretrained: Pretrained = None,
    method: MethodName = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the method; repeatable."),
    ] = None,
    head: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trained layers for the method, made by `cliploc train`.")
    ] = None,
    ensemble: Annotated[
        str, typer.Option(metavar="minmax|rank", help="How the maps of several methods are averaged.")
    ] = "minmax",
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="0-1|auto",
            help="Boxes hold what is hotter than this share of the hottest. [default: the method's own]",
        ),
    ] = None,
    components: Annotated[str, typer.Option(metavar="all|largest", help="Which hot regions get a box.")] = "all",
    max_boxes: Annotated[int | None, typer.Option(help="At most so many boxes a name.")] = None,
    min_presence: Annotated[
        float, typer.Option(metavar="0-1", help="Names less probable than this are not found; 0 boxes every name.")
    ] = 0.5,
    resize: Annotated[
        str | None,
        typer.Option(metavar="squash|crop|pad", help="How a photo meets the model's input. [default: the model's own]"),
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Input size in pixels. [default: the model's own]")
    ] = None,
    scales: Annotated[str, typer.Option(metavar="1,1.5,2", help="Average the maps of these multiples of it.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Average in the map of the mirrored photo.")] = False,
    refine: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Steps that follow the method: names of `cliploc refinements`.")
    ] = "",
    template: Templates = None,
    background: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What is around, as a contrast; repeatable.")
    ] = None,
    device: Device = None,
    precision: Precision = "fp32",
    batch_size: BatchSize = 16,
    no_text_cache: NoTextCache = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write an overlay for each photo and results.json here.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Find named things in photos.

    Example: cliploc localize street.jpg -p bicycle -p "traffic light" --out found
    """
    from cliploc import prompts

    if not photos:
        raise UsageError('expected at least one photo, got none: cliploc localize cat.jpg -p "cat"')
    names = _names(prompt, classes)
    if not names:
        raise UsageError(f'expected at least one name to look for, got none: cliploc localize {photos[0]} -p "cat"')
    prompts.parse(names)  # and whatever else can be refused is, before a model is loaded
    arguments: dict[str, Any] = {
        "model": model,
        "pretrained": pretrained,
        "method": method,
        "head": None if head is None else str(head),
        "ensemble": ensemble,
        "templates": _templates(template),
        "background": background or [],
        "resize": resize,
        "image_size": _image_size(image_size),
        "scales": _numbers("--scales", scales),
        "flip": flip,
        "refine": [name.strip() for name in refine.split(",")] if refine else [],
        "threshold": _threshold(threshold),
        "components": components,
        "max_boxes": max_boxes,
        "min_presence": min_presence,
        "device": device,
        "precision": precision,
        "batch_size": batch_size,
        "text_cache": not no_text_cache,
    }
    folder = None if out is None else _writable(out)
    terminal = Terminal()
    start = time.perf_counter()
    with terminal.progress(f"loading {model}") as bar:
        from cliploc.localizer import default_method
        from cliploc.training import read_config

        trained_for = None if head is None else read_config(head).method
        arguments["method_options"] = _method_options(method or trained_for or default_method(model), option or [])
        localizer = _localizer(arguments)
        bar.start(localizer.method.name, len(photos))
        run = _Run(terminal, folder, photos, quiet=as_json)
        try:
            for result in localizer.stream(photos, names, on_error=run.fail, on_masked=bar.masked):
                run.take(result)
                bar.advance()
        finally:  # also when interrupted: what is done is not lost
            document = run.document({"names": names, **_settings(localizer, arguments)})
            if folder is not None:
                _write(folder / "results.json", json.dumps(document, ensure_ascii=False, indent=1).encode())
    if as_json:
        print(json.dumps(document, ensure_ascii=False, indent=1))
    terminal.say(run.summary(time.perf_counter() - start), style="dim")
    return run.exit_code


@app.command()
def classify(
    photos: Annotated[list[str] | None, typer.Argument(metavar="PHOTO", help="Picture files, as for localize.")] = None,
    prompt: Names = None,
    classes: Classes = None,
    top_k: Annotated[int, typer.Option(help="How many names a photo, best first.")] = 5,
    template: Templates = None,
    model: Model = "mini",
    pretrained: Pretrained = None,
    device: Device = None,
    precision: Precision = "fp32",
    batch_size: BatchSize = 16,
    no_text_cache: NoTextCache = False,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Say which of the names each whole photo fits best; of ImageNet's 1,000 when none are given.

    Example: cliploc classify street.jpg -p bicycle -p car --top-k 1
    """
    from cliploc import prompts

    if not photos:
        raise UsageError('expected at least one photo, got none: cliploc classify cat.jpg -p "cat" -p "dog"')
    if top_k < 1:
        raise UsageError(f"expected --top-k of at least 1, got {top_k}")
    names = _names(prompt, classes) or _names(None, "imagenet")
    labels = prompts.parse(names).names
    arguments: dict[str, Any] = {
        "model": model,
        "pretrained": pretrained,
        "templates": _templates(template),
        "device": device,
        "precision": precision,
        "batch_size": batch_size,
        "text_cache": not no_text_cache,
    }
    terminal = Terminal()
    start = time.perf_counter()
    with terminal.progress(f"loading {model}") as bar:
        from cliploc.localizer import classifier

        localizer = classifier(**arguments)
        for reason in localizer.unknown_names(names).values():
            terminal.say(f"left out: {reason}", style="yellow")
        bar.start("classify", len(photos))
        run = _ClassRun(terminal, photos, labels, quiet=as_json)
        for result in localizer.classify_stream(photos, names, top_k, on_error=run.fail):
            run.take(result)
            bar.advance()
    if as_json:
        settings = {"names": names, "top_k": top_k, **_model_settings(localizer, arguments)}
        print(json.dumps(run.document(settings), ensure_ascii=False, indent=1))
    terminal.say(run.summary(time.perf_counter() - start), style="dim")
    return run.exit_code


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write overlays and demo.html.")] = Path("demo-out"),
    model: Model = "mini",
    pretrained: Pretrained = None,
    method: MethodName = None,
    device: Device = None,
    precision: Precision = "fp32",
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Try it on photos that come with cliploc."""
    from cliploc.demo import IOU_RULE, clip_hint, demo_photos, run_demo

    folder = _writable(out)
    terminal = Terminal()
    of_model = {"model": model, "pretrained": pretrained, "device": device, "precision": precision}
    arguments = {**of_model, "method": method, **DEMO_VIEWS}
    with terminal.progress(f"loading {model}") as bar:
        localizer = _localizer(arguments)
        beside = None if model != "mini" or method else _localizer({**of_model, **DEMO_BESIDE})
        bar.start(localizer.method.name, len(list(demo_photos())))
        result = run_demo(localizer, folder, _page_settings(localizer), bar.advance, beside)
    terminal.data(_demo_table(result.rows))
    ious, absent = result.ious, result.absent
    alarms = sum(row.found for row in absent)
    lines = [
        f"{_good(ious)}; absent names wrongly found: {alarms} of {len(absent)}",
        *(
            [f"beside it on the page: {beside.backbone.name}, {beside.method.title}: {_good(result.beside)}"]
            if beside
            else []
        ),
        IOU_RULE,
        f"wrote {result.page} and {len(result.overlays)} overlays",
        clip_hint(),
    ]
    for line in lines:
        terminal.data(Text(printable(line)))
    return DONE


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="To choose on the page; repeatable, the first is shown. [default: mini, mini-vit]"
        ),
    ] = None,
    pretrained: Annotated[
        list[str] | None, typer.Option(metavar="TAG|FILE|own", help="Weights: once, or one for each --model.")
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Layers that cliploc train made for one of the models; repeatable."),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0: the whole network.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(metavar="N", help="0 takes any that is free.")] = 7860,
    auth_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="An environment variable that holds user:password.")
    ] = None,
    queue: Annotated[int, typer.Option(metavar="N", help="So many jobs wait; more are turned away.")] = 32,
    max_megabytes: Annotated[float, typer.Option(metavar="N", help="The largest upload.")] = 20,
    max_megapixels: Annotated[float, typer.Option(metavar="N", help="The largest photograph, decoded.")] = 25,
    device: Device = None,
    precision: Precision = "fp32",
    debug: Debug = False,
) -> int:
    """Serve a page where one types names and sees where they are. Needs cliploc[web].

    Example: cliploc serve --model mini --model ViT-B-16 --pretrained own --pretrained openai
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"expected --port from 0 to 65535, got {port}")
    for option, value in (
        ("--queue", queue),
        ("--max-megabytes", max_megabytes),
        ("--max-megapixels", max_megapixels),
    ):
        if not value > 0:
            raise UsageError(f"expected {option} above 0, got {value:g}")
    names = model or ["mini", "mini-vit"]
    weights = pretrained or ["own"]
    if len(weights) not in (1, len(names)):
        raise UsageError(f"expected --pretrained once, or for each of {len(names)} models, got {len(weights)}")
    weights = weights * len(names) if len(weights) == 1 else weights
    auth = None if auth_env is None else _user(auth_env)
    from cliploc.web.engine import Engine, Offer, with_heads
    from cliploc.web.server import serve as serve_page

    terminal = Terminal()
    offers = [Offer(one, None if tag == "own" else tag) for one, tag in zip(names, weights, strict=True)]
    engine = Engine(with_heads(offers, head or []), device, precision, round(max_megapixels * 1e6))
    if auth is None and host not in ("127.0.0.1", "localhost", "::1"):
        terminal.say(f"anybody who reaches {host} can use this page: --auth-env asks for a password", style="yellow")
    terminal.say(f"loading {offers[0].label}", style="dim")
    with contextlib.suppress(KeyboardInterrupt):  # how a server is ended
        serve_page(
            engine,
            host,
            port,
            auth=auth,
            queue=queue,
            max_bytes=round(max_megabytes * 1e6),
            debug=debug,
            on_ready=lambda address: terminal.data(Text(address)),
        )
    return DONE


def _user(variable: str) -> tuple[str, str]:
    """User and password out of the environment, where no list of processes shows them."""
    user, colon, password = os.environ.get(variable, "").partition(":")
    if not user or not colon or not password:
        raise UsageError(f"expected {variable} to hold user:password, but it does not: export {variable}=me:secret")
    return user, password


@app.command()
def evaluate(
    maps: Annotated[Path, typer.Option(metavar="DIR", help="Score maps, <image_id>.npy: floats in 0-1.")],
    metadata: Annotated[
        Path, typer.Option(metavar="DIR", help="image_ids, class_labels, image_sizes and localization.txt.")
    ],
    convention: Annotated[
        str, typer.Option(metavar="wsoleval|exact", help="How boxes are drawn and compared.")
    ] = "wsoleval",
    threshold: Annotated[
        float | None,
        typer.Option(metavar="0-1", help="The threshold of GT-known and Top-k. [default: the best on these images]"),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="CSV", help="image_id,class,class,... best first: for Top-1 and Top-5.")
    ] = None,
    workers: Annotated[int, typer.Option(help="How many processes share the maps.")] = 1,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Give the WSOL numbers of score maps made by any tool.

    Example: cliploc evaluate --maps maps --metadata metadata --threshold 0.4
    """
    from cliploc.jobs.evaluate import evaluate_folder
    from cliploc.metrics import CONVENTIONS
    from cliploc.schema import Problem

    chosen = next((one for one in CONVENTIONS if one == convention), None)
    if chosen is None:
        raise UsageError(f"expected --convention of {', '.join(CONVENTIONS)}, got {convention!r}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"expected --threshold from 0 to 1, got {threshold:g}")
    terminal = Terminal()

    def name(problem: Problem) -> None:
        terminal.say(f"failed: {problem.source}: {problem.reason}", style="red")

    with terminal.progress("reading metadata") as bar:
        result = evaluate_folder(
            maps,
            metadata,
            convention=chosen,
            threshold=threshold,
            predictions=predictions,
            workers=workers,
            on_problem=name,
            on_image=bar.advance,
            on_start=lambda count: bar.start("maps", count),
        )
    if as_json:
        print(json.dumps(result.document(chosen), ensure_ascii=False, indent=1, allow_nan=False))
    else:
        terminal.data(grid(result.lines()))
    counts = ", ".join(f"{count} {kind} problems" for kind, count in result.counts().items())
    terminal.say(
        f"{result.max_box_acc.n} of {result.asked} images evaluated{f'; {counts}' if counts else ''}", style="dim"
    )
    return SOME_FAILED if result.problems else DONE


@app.command()
def train(
    method: Annotated[str, typer.Argument(metavar="tscam|lctr", help="Whose layers.")],
    root: Annotated[Path, typer.Option(metavar="DIR|FILE", help="The pictures, or a CSV file that lists them.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The head: a safetensors file.")],
    dataset: Annotated[
        str, typer.Option(metavar="imagefolder|csv", help="A folder for each class, or lines path,label.")
    ] = "imagefolder",
    head: Annotated[
        str, typer.Option(metavar="open|closed", help="For any name afterwards, or for these classes only.")
    ] = "open",
    model: Model = "mini",
    pretrained: Pretrained = None,
    features: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the tower's features here. [default: beside --out]")
    ] = None,
    augmentations: Annotated[
        int, typer.Option(help="Views of each picture, cropped and mirrored, besides the plain one.")
    ] = 0,
    epochs: Annotated[int | None, typer.Option(help="At most. [default: the method's own]")] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="adamw|sgd", help="[default: the method's own]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [default: the method's own]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="[default: the method's own]")] = None,
    schedule: Annotated[
        str, typer.Option(metavar="cosine|step", help="Of the learning rate: to zero, or a tenth every --step-epochs.")
    ] = "cosine",
    step_epochs: Annotated[int, typer.Option(help="Of the step schedule.")] = 5,
    batch_size: Annotated[int, typer.Option(help="Pictures of one step, on all processes together.")] = 64,
    accumulate: Annotated[int, typer.Option(help="Steps whose gradients are summed before weights move.")] = 1,
    held_out: Annotated[
        float, typer.Option(metavar="0-1", help="Share that early stopping is decided on; 0 for none.")
    ] = 0.1,
    hold_out: Annotated[
        str, typer.Option(metavar="pictures|classes", help="Hold out pictures of every class, or whole classes.")
    ] = "pictures",
    patience: Annotated[int, typer.Option(help="Epochs without better accuracy on them before it stops.")] = 5,
    start: Annotated[
        str, typer.Option(metavar="zero-shot|random", help="Of an open head: the tower's own reading, or nothing.")
    ] = "zero-shot",
    unit_places: Annotated[
        bool, typer.Option("--unit-places", help="Of an open head: each place a unit vector, so that maps are cosines.")
    ] = False,
    experts: Annotated[int, typer.Option(help="LCTR's kernels.")] = 4,
    mixed_precision: Annotated[str, typer.Option(metavar="no|bf16|fp16", help="Of the head's training.")] = "no",
    seed: Annotated[int, typer.Option(help="Of first weights, order and held-out part.")] = 0,
    image_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Input size in pixels. [default: the model's own]")
    ] = None,
    template: Templates = None,
    device: Device = None,
    precision: Precision = "fp32",
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew though there is a checkpoint.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves for TensorBoard too.")] = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Train TS-CAM's or LCTR's layers on a frozen model, from pictures' labels alone.

    Killed, the same command goes on where it was. With several GPUs: accelerate launch -m cliploc train ...

    Example: cliploc train tscam --root photos --model ViT-B-16 --pretrained openai --out head.safetensors
    """
    name = {"tscam": "ts_cam"}.get(method.replace("-", "").replace("_", "").lower(), method)
    readers = ("imagefolder", "csv")
    if dataset not in readers:
        raise UsageError(f"expected --dataset of {', '.join(readers)}, got {dataset!r}")
    size = _image_size(image_size)
    _writable(out.expanduser().resolve().parent)
    terminal = Terminal()
    first = os.environ.get("RANK", "0") == "0"  # one of several processes speaks
    start_time = time.perf_counter()
    with terminal.progress(f"loading {model}") if first else contextlib.nullcontext() as bar:
        from cliploc import training
        from cliploc.backbones import create

        settings = training.TrainSettings.published(
            name,
            head,  # type: ignore[arg-type]  # checked there
            epochs=epochs,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            step_epochs=step_epochs,
            batch_size=batch_size,
            accumulate=accumulate,
            held_out=held_out,
            hold_out=hold_out,
            patience=patience,
            start=start,
            unit_places=unit_places,
            experts=experts,
            mixed_precision=mixed_precision,
            augmentations=augmentations,
            seed=seed,
        )
        pictures = training.read_folder(root) if dataset == "imagefolder" else training.read_csv(root)
        backbone = create(model, pretrained, training.process_device(device), precision=precision)

        def say_epoch(done: training.Epoch) -> None:
            if first:
                terminal.say(done.line(settings.epochs))

        trained = training.train(
            backbone,
            pictures,
            out,
            settings,
            features=features,
            input_hw=(size, size) if isinstance(size, int) else size,
            templates=_templates(template),
            pretrained=pretrained,
            restart=restart,
            tensorboard=tensorboard,
            progress=bar,
            on_epoch=say_epoch,
            on_problem=lambda line: terminal.say(f"left out: {line}", style="red"),
        )
    if first:
        best = trained.history[trained.best - 1]
        accuracy = "" if best.accuracy is None else f", held-out accuracy {best.accuracy:.3f}"
        terminal.data(Text(printable(f"{out}  epoch {trained.best} of {len(trained.history)}{accuracy}")))
        left_out = f"; {len(trained.problems)} pictures left out" if trained.problems else ""
        terminal.say(
            f"{len(trained.parts.train)} pictures of {len(trained.parts.train_classes)} classes trained it, "
            f"{len(trained.parts.held_out)} were held out{left_out}, {time.perf_counter() - start_time:.1f} s",
            style="dim",
        )
    return SOME_FAILED if trained.problems else DONE


@app.command()
def benchmark(
    dataset: Annotated[str, typer.Option(metavar="NAME", help="A name of `cliploc datasets`.")],
    root: Annotated[Path, typer.Option(metavar="DIR", help="The dataset's folder.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results go; a stopped run there is gone on with.")],
    split: Annotated[str | None, typer.Option(help="Of the dataset. [default: its first]")] = None,
    subset: Annotated[str | None, typer.Option(metavar="ten-classes", help="Only the classes of this subset.")] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Only these, by name, synonym or WordNet id.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many samples.")] = None,
    sample: Annotated[int | None, typer.Option(help="Only so many samples, drawn at random.")] = None,
    seed: Annotated[int, typer.Option(help="Of that draw.")] = 0,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="A name of `cliploc models`; repeatable. [default: mini]")
    ] = None,
    pretrained: Annotated[
        list[str] | None, typer.Option(help="Which weights: once for all models, or once for each; own for its own.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="NAME,NAME", help="Names of `cliploc methods`. [default: the tower's own]"),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="KEY=VALUE", help="Of every method that has it, or METHOD.KEY=VALUE; repeatable."
        ),
    ] = None,
    head: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Trained layers, made by `cliploc train`; repeatable.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            metavar="TEXT",
            help="A prompt setting each: a sentence with {}, a FILE.txt of them, or default, openai-80, openai-7, "
            "name-only.",
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="0-1|own", help="A box setting each. [default: each method's own]"),
    ] = None,
    resize: Annotated[
        str, typer.Option(metavar="squash|crop|pad", help="How a picture meets the model's input.")
    ] = "squash",
    image_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Input size in pixels. [default: the model's own]")
    ] = None,
    scales: Annotated[str, typer.Option(metavar="1,1.5,2", help="Average the maps of these multiples of it.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Average in the map of the mirrored picture.")] = False,
    refine: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Steps that follow the method: names of `cliploc refinements`.")
    ] = "",
    device: Device = None,
    precision: Precision = "fp32",
    batch_size: BatchSize = 16,
    workers: Annotated[
        int | None, typer.Option(help="Processes that compare maps with boxes. [default: cores - 1]")
    ] = None,
    engine: Annotated[str, typer.Option(metavar="local|ray", help="What carries the run out.")] = "local",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT|auto", help="Of a running Ray cluster. [default: this machine]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Processors that a model computes with. [default: all; ray: as here]")
    ] = None,
    save_maps: Annotated[bool, typer.Option("--save-maps", help="Keep score maps, as `evaluate` takes them.")] = False,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Run the WSOL benchmark: models x methods x prompts x thresholds on a dataset.

    Killed at any moment, the same command goes on where it was.

    Example: cliploc benchmark --dataset wsol --root data --method cam,layer_cam --out results
    """
    from cliploc.datasets import open_dataset
    from cliploc.jobs.benchmark import StoppedError, misfit, run_benchmark
    from cliploc.jobs.plan import Grid
    from cliploc.report.benchmark import write_report

    names = _class_names(classes) if classes else None
    carry_out = _engine(engine, address, threads)
    views = _views(model or ["mini"], pretrained, template, [None, *(head or [])])
    common: dict[str, Any] = {
        "resize": resize,
        "image_size": _image_size(image_size),
        "scales": tuple(_numbers("--scales", scales)),
        "flip": flip,
        "refine": tuple(name.strip() for name in refine.split(",")) if refine else (),
        "precision": precision,
        "device": device,
        "batch_size": batch_size,
    }
    if batch_size < 1 or (workers is not None and workers < 1):
        raise UsageError("expected --batch-size and --workers of at least 1")
    views = [replace(view, **common) for view in views]
    methods = _methods_of(method, views)
    options = _grid_options(methods, option or [])
    thresholds = [None if text == "own" else _share("--threshold", text) for text in threshold or ["own"]]
    settings, left_out = Grid(views, methods, lambda name: options[name], thresholds).settings(misfit)
    terminal = Terminal()
    for line in left_out:
        terminal.say(f"left out: {line.split(': use one of')[0]}", style="yellow")
    folder = _writable(out)
    asked = {"subset": subset, "classes_asked": names, "limit": limit, "sample": sample, "seed": seed}
    start_time = time.perf_counter()
    with terminal.progress(f"reading {dataset}", rate="images/s") as bar:
        found = open_dataset(dataset, root, split, subset=subset, classes=names, limit=limit, sample=sample, seed=seed)
        for problem in found.problems[:SHOWN_PROBLEMS]:
            terminal.say(f"{problem.kind}: {problem.source}: {problem.reason}", style="yellow")
        if len(found.problems) > SHOWN_PROBLEMS:
            more = f"cliploc datasets {dataset} --root {root}"
            terminal.say(f"{len(found.problems)} problems in all: {more}", style="yellow")
        bar.start(f"loading {', '.join(dict.fromkeys(view.model for view in views))}", None)
        try:
            result = run_benchmark(
                found,
                views,
                settings,
                folder,
                engine=carry_out,
                save_maps=save_maps,
                judges=workers,
                asked=asked,
                on_start=lambda todo, of: bar.start("benchmark", of, of - todo),
                on_images=bar.advance,
                on_note=lambda line: terminal.say(line, style="yellow"),
                on_end=lambda: bar.start("summary", None),
            )
        except StoppedError as stop:
            _complain(str(stop))
            return SOME_FAILED if stop.kept else NOTHING_DONE
        bar.start("report", None)
        write_report(folder)
    if as_json:
        print(json.dumps(result.document(), ensure_ascii=False, indent=1, allow_nan=False))
    else:
        titles, *lines = result.table()
        terminal.data(grid([_head(*titles), *lines]))
        for line in result.legend():
            terminal.data(Text(printable(line)))
    seconds = time.perf_counter() - start_time
    for name, reason in list(result.failed.items())[:SHOWN_CLASSES]:
        terminal.say(f"failed: {name}: {reason}", style="red")
    terminal.say(result.closing(seconds), style="dim")
    lost = any(problem.kind in LOST for problem in found.problems)
    return SOME_FAILED if result.failed or lost else DONE


@app.command()
def annotate(
    pictures: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="With its sub-folders; or a pattern in quotes, or a .txt list."),
    ],
    labels: Annotated[
        Path, typer.Option(metavar="FILE", help="Names, one a line: cat|kitten @0.3; and background: lawn.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results go; a stopped run there is gone on with.")],
    formats: Annotated[
        str, typer.Option("--format", metavar="NAME,NAME", help="Of coco, yolo, voc, labelstudio, csv, cvat.")
    ] = "coco",
    min_presence: Annotated[
        float, typer.Option(metavar="0-1", help="How certain it must be that a name is there; @0.3 goes before it.")
    ] = 0.5,
    min_score: Annotated[float, typer.Option(metavar="0-1", help="Of a box.")] = 0.0,
    max_boxes: Annotated[int | None, typer.Option(help="At most so many boxes a name in a picture.")] = None,
    min_area: Annotated[float, typer.Option(metavar="0-1", help="Of a box's region: a share of the picture.")] = 0.001,
    nms_across: Annotated[
        float | None, typer.Option(metavar="0-1", help="Of boxes of different names with more IoU the better stays.")
    ] = None,
    groups: Annotated[
        str, typer.Option(metavar="keep|split|drop", help="What becomes of one large box round several things.")
    ] = "keep",
    review: Annotated[
        int, typer.Option(metavar="N", help="So many pictures, the least certain first, on review.html; 0: no page.")
    ] = 100,
    apply: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The decisions that review.html saved: drop those boxes.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many pictures.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try pictures again that failed before.")] = False,
    image_url: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What stands before a picture's path in Label Studio's file. [default: as before; "
            "/data/local-files/?d=]",
        ),
    ] = None,
    model: Model = "mini",
    pretrained: Pretrained = None,
    method: MethodName = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the method; repeatable."),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="0-1|auto",
            help="Boxes hold what is hotter than this share of the hottest. [default: the method's own]",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(metavar="squash|crop|pad", help="How a photo meets the model's input. [default: the model's own]"),
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Input size in pixels. [default: the model's own]")
    ] = None,
    scales: Annotated[str, typer.Option(metavar="1,1.5,2", help="Average the maps of these multiples of it.")] = "1",
    flip: Annotated[bool, typer.Option("--flip", help="Average in the map of the mirrored photo.")] = False,
    refine: Annotated[
        str, typer.Option(metavar="NAME,NAME", help="Steps that follow the method: names of `cliploc refinements`.")
    ] = "",
    template: Templates = None,
    device: Device = None,
    precision: Precision = "fp32",
    batch_size: BatchSize = 16,
    engine: Annotated[str, typer.Option(metavar="local|ray", help="What carries the run out.")] = "local",
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT|auto", help="Of a running Ray cluster. [default: this machine]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Processors that a model computes with. [default: all; ray: as here]")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Draw draft boxes of named things in a folder of pictures, for other tools to read and people to correct.

    Killed at any moment, the same command goes on where it was.

    Example: cliploc annotate photos --labels labels.txt --format coco,labelstudio --out drafts
    """
    from cliploc.jobs.labels import read_labels
    from cliploc.jobs.pictures import find_pictures

    read_labels(labels)  # what can be refused is, before a model is loaded
    find_pictures(pictures)
    arguments: dict[str, Any] = {
        "model": model,
        "pretrained": pretrained,
        "method": method,
        "templates": _templates(template),
        "resize": resize,
        "image_size": _image_size(image_size),
        "scales": _numbers("--scales", scales),
        "flip": flip,
        "refine": [name.strip() for name in refine.split(",")] if refine else [],
        "threshold": _threshold(threshold),
        "device": device,
        "precision": precision,
        "batch_size": batch_size,
    }
    carry_out = _engine(engine, address, threads)
    folder = _writable(out)
    terminal = Terminal()
    start_time = time.perf_counter()
    with terminal.progress(f"loading {model}", rate="images/s") as bar:
        from cliploc.jobs.annotate import annotate as run
        from cliploc.jobs.folder import StoppedError
        from cliploc.localizer import default_method

        if option:
            arguments["method_options"] = _method_options(method or default_method(model), option)
        try:
            result = run(
                pictures,
                labels,
                folder,
                formats=[name.strip() for name in formats.split(",")],
                min_presence=min_presence,
                min_score=min_score,
                max_boxes=max_boxes,
                min_area=min_area,
                nms_across=nms_across,
                groups=groups,  # type: ignore[arg-type]  # checked there
                review=review,
                decisions=apply,
                limit=limit,
                retry=retry,
                image_url=image_url,
                engine=carry_out,
                on_start=lambda todo, of: bar.start("annotate", of, of - todo),
                on_images=bar.advance,
                on_note=lambda line: terminal.say(line, style="yellow"),
                on_write=lambda name: bar.start(f"writing {name}", None),
                **arguments,
            )
        except StoppedError as stop:
            _complain(str(stop))
            return SOME_FAILED if stop.kept else NOTHING_DONE
    if as_json:
        print(json.dumps(result.document(), ensure_ascii=False, indent=1))
    else:
        titles, *lines = result.table()
        terminal.data(grid([_head(*titles), *lines]))
    for name, reason in list(result.failed.items())[:SHOWN_CLASSES]:
        terminal.say(f"failed: {name}: {reason}", style="red")
    for line in result.closing(time.perf_counter() - start_time):
        terminal.say(line, style="dim")
    if len(result.failed) == result.pictures:
        return NOTHING_DONE
    return SOME_FAILED if result.failed else DONE


@app.command()
def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of a benchmark.")],
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Leave the photographs out: maps and boxes alone, to pass on.")
    ] = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Write a benchmark's report.html and its tables again; no model is loaded.

    Example: cliploc report results --no-pictures
    """
    from cliploc.report import write_report

    terminal = Terminal()
    with terminal.progress("writing the report"):
        path = write_report(out, pictures=not no_pictures)
    terminal.data(Text(printable(str(path))))
    terminal.say(f"and tables.csv, tables.md, tables.tex in {path.parent}", style="dim")
    return DONE


@app.command()
def models(
    part: Annotated[
        str, typer.Argument(metavar="[NAME]", help="All about this model; or a part: the models with it in their name.")
    ] = "",
) -> int:
    """List the models, or say all about one."""
    from cliploc.backbones import models as registry
    from cliploc.saliency import methods as saliency

    terminal = Terminal()
    wanted = part.replace("/", "-")
    chosen = [entry for entry in registry if wanted.lower() in entry.name.lower()]
    if not chosen:
        registry.get(part)  # says what there is

    def runs(model: ModelEntry) -> list[str]:
        return [m.name for m in saliency if model.usable and m.runs_on(model.kind, model.pooling)]

    exact = [entry for entry in chosen if entry.name == wanted]
    if exact or len(chosen) == 1:
        (one,) = exact or chosen
        terminal.data(grid(_about_model(one, runs(one))))
        if others := [entry.name for entry in chosen if entry is not one]:
            terminal.data(grid([("", ""), (Text("see also", style="bold"), " · ".join(others))]))
        return DONE
    titles = _head("name", "tower", "input", "parameters", "licence", "methods", "about", "weights")
    rows: list[Sequence[str | Text]] = [titles]
    narrow: list[Sequence[str | Text]] = [titles]
    for m in chosen:
        size = "–" if m.parameters is None else f"{m.parameters:.1f} M"
        number = f"{len(runs(m))} of {m.kind}" if m.usable else "none"
        line = (m.name, m.kind, _by(m.input_hw), size, m.licence, number, m.about)
        tags = f"{len(m.weights)} tags: cliploc models {m.name}" if len(m.weights) > 1 else "".join(m.weights)
        rows.append((*line, " · ".join(m.weights) or "–"))
        narrow.append((*line, tags or "–"))
    terminal.listing(rows, narrow)
    terminal.data(Text())
    legend = {f"methods of {kind}": [m.name for m in saliency if kind in m.towers] for kind in ("cnn", "vit")}
    legend["not where a vit averages"] = [m.name for m in saliency if "global average" not in m.poolings]
    terminal.data(grid([(title, " · ".join(names)) for title, names in legend.items()]))
    return DONE


def _about_model(model: ModelEntry, methods: Sequence[str]) -> list[Sequence[str | Text]]:
    if model.parameters is None and model.count is not None:
        try:
            size = f"{model.count():.1f} M"
        except ModelError as error:
            size = f"not known: {error}"
    else:
        size = f"{model.parameters:.1f} M"
    weights = " · ".join(model.weights)
    facts = {
        "name": model.name,
        "tower": f"{model.kind}: {model.about}",
        "pooling": model.pooling,
        "input": _by(model.input_hw),
        "parameters": f"{size}, image and text tower" if size.endswith(" M") else size,
        "weights": f"--pretrained {weights}" if weights else "its own" if model.count is None else "none published",
        "licence": _licences(model),
        "methods": " · ".join(methods) or "none",
    }
    return [(Text(key, style="bold"), value) for key, value in facts.items()]


def _licences(model: ModelEntry) -> str:
    """The most frequent one, and of which weights it is not."""
    first, *others = model.licence.split(", ")
    tags = {other: " · ".join(tag for tag, one in model.licences.items() if one == other) for other in others}
    return "; ".join([first, *(f"{names}: {other}" for other, names in tags.items())])


def _by(hw: tuple[int, int]) -> str:
    return f"{hw[0]}×{hw[1]}"


@app.command()
def methods(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of the README.")] = False,
) -> int:
    """List the saliency methods, with their options."""
    from cliploc.saliency import methods as registry

    if markdown:
        typer.echo("| method | `--method` | family | towers | paper |\n|---|---|---|---|---|")
        for m in registry:
            typer.echo(f"| {m.title} | `{m.name}` | {m.family} | {', '.join(sorted(m.towers))} | {m.paper} |")
        return DONE
    rows: list[Sequence[str | Text]] = [_head("name", "title", "family", "towers", "options", "paper")]
    for m in registry:
        options = ", ".join(f"{key}={value}" for key, value in m.options.items()) or "–"
        rows.append((m.name, m.title, m.family, ", ".join(sorted(m.towers)), options, m.paper))
    Terminal().listing(rows)
    return DONE


@app.command()
def refinements() -> int:
    """List the steps that can follow any method."""
    from cliploc.refine import refinements as registry

    rows: list[Sequence[str | Text]] = [_head("name", "title", "towers", "works on", "paper")]
    rows += [(r.name, r.title, ", ".join(sorted(r.towers)), f"the {r.on}", r.paper) for r in registry]
    Terminal().listing(rows)
    return DONE


@app.command()
def datasets(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="All about this one.")] = "",
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Check this folder: what is in it, and what is wrong with it.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Which split. [default: its first]")] = None,
    subset: Annotated[str | None, typer.Option(metavar="NAME", help="Only these classes, such as ten-classes.")] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="NAME,NAME|FILE", help="Only these: names, synonyms or WordNet ids.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first N samples.")] = None,
    sample: Annotated[int | None, typer.Option(metavar="N", help="Only N samples drawn at random.")] = None,
    seed: Annotated[int, typer.Option(help="Of that draw.")] = 0,
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """List the datasets that can be read, say all about one, or check a folder. Nothing is downloaded.

    Example: cliploc datasets wsol --root ilsvrc_val_dev --subset ten-classes
    """
    from cliploc.datasets import BY_DESIGN, open_dataset, readers, subsets

    terminal = Terminal()
    if root is None:
        if as_json or any(option is not None for option in (split, subset, classes, limit, sample)):
            raise UsageError(f"expected --root with the folder to check: cliploc datasets {name or 'NAME'} --root DIR")
        _list_datasets(terminal, [readers.get(name)] if name else list(readers), bool(name))
        return DONE
    if not name:
        raise UsageError(f"expected the dataset that {root} holds: cliploc datasets NAME --root {root}")
    names = None if classes is None else _class_names(classes)
    with terminal.progress(f"reading {name}"):
        dataset = open_dataset(name, root, split, subset=subset, classes=names, limit=limit, sample=sample, seed=seed)
    if as_json:
        print(json.dumps(_dataset_document(dataset), ensure_ascii=False, indent=1))
    else:
        terminal.data(grid(_about_dataset(dataset, subsets.get(subset).reasons if subset else {})))
    for problem in dataset.problems:
        if problem.kind not in BY_DESIGN:
            return SOME_FAILED
    return DONE


def _list_datasets(terminal: Terminal, chosen: Sequence[Reader], whole: bool) -> None:
    from cliploc.datasets import subsets

    if whole:
        (one,) = chosen
        facts = [("name", one.name), ("what it is", f"{one.title}: {one.about}"), ("get it at", one.source)]
        facts += [("" if i else "splits", f"{s.name}, to {s.role} on: {s.about}") for i, s in enumerate(one.splits)]
        terminal.data(grid([(Text(key, style="bold"), value) for key, value in facts]))
        terminal.data(Text("\nfiles below the root", style="bold"))
        terminal.data(Text(one.layout))
        terminal.data(Text(f"\nto check a folder: cliploc datasets {one.name} --root DIR", style="dim"))
        return
    rows: list[Sequence[str | Text]] = [_head("name", "splits: what for", "what it is", "where to get it")]
    narrow: list[Sequence[str | Text]] = [_head("name", "splits: what for", "what it is; where to get it")]
    for one in chosen:
        splits = ", ".join(s.name if s.name == s.role else f"{s.name}: {s.role}" for s in one.splits)
        rows.append((one.name, splits, f"{one.title}: {one.about}", one.source))
        narrow.append((one.name, splits, f"{one.title}: {one.about}. Get it: {one.source}"))
    terminal.listing(rows, narrow)
    terminal.data(Text())
    terminal.data(grid([(Text("subsets", style="bold"), f"{one.name}: {one.title}") for one in subsets]))
    terminal.data(Text("\nthe files each expects: cliploc datasets NAME; with --root DIR it is checked", style="dim"))


def _class_names(text: str) -> list[str]:
    """Names separated by commas, or the lines of a file."""
    if not Path(text).is_file():
        return [name.strip() for name in text.split(",")]
    lines = [line.strip() for line in Path(text).read_text(encoding="utf-8-sig").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _about_dataset(dataset: Dataset, reasons: Mapping[str, str]) -> list[Sequence[str | Text]]:
    from cliploc.datasets import BY_DESIGN

    facts = _dataset_document(dataset)
    use = "a threshold may be chosen on it" if dataset.role == "tune" else "a threshold chosen on it makes an oracle"
    truths = " and ".join(f"{facts[key]:,} {key}" for key in ("boxes", "masks") if facts[key])
    rows = [
        ("dataset", dataset.name),
        ("folder", str(dataset.root)),
        ("split", f"{dataset.split}: {use}"),
        ("pictures", f"{facts['pictures']:,}"),
        ("samples", f"{facts['samples']:,}: a class in a picture each, {truths} in all"),
        ("classes", f"{facts['classes']:,} of {len(dataset.classes):,}"),
    ]
    counts = Counter(one.label for one in dataset.samples)
    if len(counts) <= SHOWN_CLASSES:
        places = {wnid: place for place, wnid in enumerate(reasons)}
        for label in sorted(counts, key=lambda label: (places.get(dataset.classes[label].wnid, 0), label)):
            one = dataset.classes[label]
            rows.append(("", f"{one.name}: {counts[label]}{f' – {reasons[one.wnid]}' if one.wnid in reasons else ''}"))
    rows.append(("problems", f"{len(dataset.problems):,}" if dataset.problems else "none"))
    for kind, count in facts["problems"].items():
        rows.append(("", f"{count:,} {kind}{', left out by design' if kind in BY_DESIGN else ''}"))
        examples = [one for one in dataset.problems if one.kind == kind][:SHOWN_PROBLEMS]
        rows += [("", f"· {one.source}: {one.reason}") for one in examples]
        if count > len(examples):
            rows.append(("", f"· … and {count - len(examples):,} more: --json names all"))
    return [(Text(key, style="bold"), value) for key, value in rows]


def _dataset_document(dataset: Dataset) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "root": str(dataset.root),
        "split": dataset.split,
        "role": dataset.role,
        "pictures": len({one.path for one in dataset.samples}),
        "samples": len(dataset),
        "classes": len({one.label for one in dataset.samples}),
        "boxes": sum(len(one.boxes_xyxy) for one in dataset.samples),
        "masks": sum(len(one.masks) for one in dataset.samples),
        "problems": dict(Counter(one.kind for one in dataset.problems).most_common()),
        "named": [{"kind": one.kind, "source": one.source, "reason": one.reason} for one in dataset.problems],
    }


@app.command()
def doctor(
    model: Model = "mini",
    pretrained: Pretrained = None,
    device: Device = None,
    precision: Precision = "fp32",
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Check this installation, and a model: whether its weights are there, and whether it knows what it sees."""
    from cliploc.doctor import checks

    terminal = Terminal()
    failed = 0
    for check in checks(model, pretrained, device, precision):
        failed += not check.good
        mark = Text("ok", style="green") if check.good else Text("FAILED", style="bold red")
        terminal.data(Text.assemble(mark, " " * (8 - len(mark)), f"{check.name:24}{printable(check.detail)}"))
    verdict = f"{failed} check{'s' if failed > 1 else ''} failed" if failed else "everything is as it should be"
    terminal.data(Text(verdict))
    return SOME_FAILED if failed else DONE


# ------------------------------------------------------------------------------------------------- a run over photos
class _Photos:
    """What every run over photos keeps: a light record of each, what failed, and the exit code."""

    def __init__(self, terminal: Terminal, photos: Sequence[str], quiet: bool) -> None:
        self._terminal, self._quiet, self._asked = terminal, quiet, len(photos)
        self._records: list[dict[str, Any]] = []
        self._failures: list[tuple[str, str]] = []

    def fail(self, source: str, error: InputError) -> None:
        """One picture cannot be used; the others go on."""
        self._failures.append((source, str(error)))
        self._terminal.say(f"failed: {error}", style="red")
        if not self._quiet and not self._terminal.one_screen:
            self._terminal.data(Text(printable(f"{source}  failed")))

    def document(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON document of the run so far."""
        from cliploc.report import to_document

        return {**to_document([], self._failures, settings), "pictures": self._records}

    def summary(self, seconds: float) -> str:
        """One line at the end."""
        words = [f"{len(self._records)} of {self._asked} photos done{self._count()}, {seconds:.1f} s"]
        if self._failures:
            words.append(f"{len(self._failures)} failed")
        if not self._records:
            words.append("nothing could be done: check the photos named above")
        elif written := self._written():
            words.append(written)
        return "; ".join(words)

    def _count(self) -> str:
        return ""

    def _written(self) -> str:
        return ""

    @property
    def exit_code(self) -> int:
        if not self._records:
            return NOTHING_DONE
        return SOME_FAILED if self._failures else DONE


class _Run(_Photos):
    """Localizations as they come: each is printed and drawn."""

    def __init__(self, terminal: Terminal, folder: Path | None, photos: Sequence[str], quiet: bool) -> None:
        super().__init__(terminal, photos, quiet)
        self._folder, self._names = folder, _FileNames(photos)

    def take(self, result: Localization) -> None:
        """One picture is done."""
        from cliploc.report import to_document

        record = to_document([result], [], {})["pictures"][0]
        if self._folder is not None:
            record["overlay"] = self._names.overlay(result.source, self._folder, max(result.image.size))
            _write(self._folder / record["overlay"], _encoded(_overlay(result), record["overlay"]))
        self._records.append(record)
        if not self._quiet:
            notes = "".join(f"  ({note})" for note in result.notes)
            size = f"  {result.image.width}×{result.image.height}{notes}"
            self._terminal.data(Text.assemble((printable(result.source), "bold"), printable(size)))
            self._terminal.data(grid(_lines(result), indent=2))

    def _count(self) -> str:
        found = sum(name["found"] for record in self._records for name in record["names"])
        asked = sum(len(record["names"]) for record in self._records)
        return f", {found} of {asked} names found"

    def _written(self) -> str:
        return "" if self._folder is None else f"overlays and results.json in {self._folder}"


class _ClassRun(_Photos):
    """Classifications as they come: a line for each photo and rank, in columns known beforehand."""

    def __init__(self, terminal: Terminal, photos: Sequence[str], names: Sequence[str], quiet: bool) -> None:
        super().__init__(terminal, photos, quiet)
        self._widths = [
            max(cell_len(printable(text)) for text in (title, *texts))
            for title, texts in (("photo", photos), ("name", names))
        ]
        if not quiet:
            self._line(("photo", "rank", "name", "probability", "cosine"), "bold")

    def take(self, result: Classification) -> None:
        """One picture is done."""
        from cliploc.report import classified_record

        picture = result.picture
        self._records.append(classified_record(picture.source, picture.image.size, picture.notes, result.names))
        if not self._quiet:
            for rank, (name, probability, cosine) in enumerate(result.names, start=1):
                self._line((picture.source, f"{rank}", name, f"{probability:.4f}", f"{cosine:.4f}"))

    def _line(self, cells: tuple[str, str, str, str, str], style: str = "") -> None:
        photo, rank, name, probability, cosine = map(printable, cells)
        photo, name = (set_cell_size(text, width) for text, width in zip((photo, name), self._widths, strict=True))
        self._terminal.data(Text(f"{photo}  {rank:>4}  {name}  {probability:>11}  {cosine:>7}", style=style))


class _FileNames:
    """A file name for each overlay: of the picture's stem, never twice, never that of a picture given."""

    def __init__(self, photos: Sequence[str]) -> None:
        self._given = {os.path.realpath(photo).casefold() for photo in photos}
        self._taken: set[str] = set()

    def overlay(self, source: str, folder: Path, longest_side: int) -> str:
        """The name, such as `cat_overlay.jpg`; for a second picture of that stem `cat_overlay-2.jpg`."""
        suffix = ".jpg" if longest_side <= JPEG_MAX_SIDE else ".png"
        # Bytes of a name that are no UTF-8 could not be written down in results.json.
        stem = "".join("_" if "\ud800" <= letter <= "\udfff" else letter for letter in Path(source).stem)
        while len(os.fsencode(stem)) > 200:  # most file systems allow 255 bytes
            stem = stem[:-1]
        number = 1
        while True:
            name = f"{stem}_overlay{'' if number == 1 else f'-{number}'}{suffix}"
            # Case does not tell files apart on macOS and Windows.
            if name.casefold() not in self._taken and os.path.realpath(folder / name).casefold() not in self._given:
                self._taken.add(name.casefold())
                return name
            number += 1


def _lines(result: Localization) -> list[Sequence[str | Text]]:
    rows: list[Sequence[str | Text]] = []
    for index, name in enumerate(result.names):
        if not result.found[index]:
            rows.append((name, Text("no", style="yellow"), result.reasons[index] or ""))
            continue
        of_name = result.boxes.label == index
        boxes = [
            f"score {score:.2f}  box {_box(xyxy)}"
            for xyxy, score in zip(result.boxes.xyxy[of_name], result.boxes.score[of_name], strict=True)
        ]
        rows.append((name, Text("found", style="green"), boxes[0]))
        rows += [("", "", box) for box in boxes[1:]]
    return rows


def _box(xyxy: Any) -> str:
    return " ".join(f"{value:.0f}" for value in xyxy)


def _overlay(result: Localization) -> Image.Image:
    from cliploc.report import draw_overlay, panels

    return panels(result) if len(result.names) > 1 else draw_overlay(result)


def _encoded(image: Image.Image, name: str) -> bytes:
    buffer = io.BytesIO()
    if name.endswith(".jpg"):
        image.save(buffer, "JPEG", quality=90, subsampling=0)  # thin coloured lines and letters must stay crisp
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}: make room or choose another --out") from error


def _good(ious: Sequence[float]) -> str:
    good = sum(iou >= 0.5 for iou in ious)
    return f"mean IoU {sum(ious) / len(ious):.2f}, IoU ≥ 0.5: {good} of {len(ious)} ({good / len(ious):.0%})"


def _demo_table(rows: Sequence[Any]) -> Any:
    lines: list[Sequence[str | Text]] = [_head("photo", "name", "found", "score", "best box", "IoU")]
    for row in rows:
        right = row.found == row.there
        found = Text(("yes" if row.found else "no") + ("" if right else " ✗"), style="green" if right else "red")
        more = f" (+{len(row.boxes) - 1})" if len(row.boxes) > 1 else ""
        lines.append(
            (
                row.photo,
                row.name,
                found,
                "–" if row.score is None else f"{row.score:.2f}",
                _box(row.boxes[0]) + more if len(row.boxes) else "–",
                "absent" if row.iou is None else f"{row.iou:.2f}",
            )
        )
    return grid(lines)


def _head(*titles: str) -> list[Text]:
    return [Text(title, style="bold") for title in titles]


# ------------------------------------------------------------------------------------------------------ option values
def _names(prompt: Sequence[str] | None, classes: str | None) -> list[str]:
    """The names asked for, by `--prompt` or by `--classes`."""
    from cliploc import prompts

    if prompt and classes:
        raise UsageError("expected --prompt or --classes, got both: write all names into the file")
    if classes == "imagenet":
        return [one.name for one in prompts.imagenet_classes()]
    return prompts.read_classes(classes) if classes else list(prompt or [])


def _views(
    models: Sequence[str],
    pretrained: Sequence[str] | None,
    templates: Sequence[str] | None,
    heads: Sequence[Path | None],
) -> list[View]:
    """Models × prompts × trained heads of a benchmark."""
    from cliploc import prompts
    from cliploc.jobs.plan import View

    weights = list(pretrained or ["own"])
    if len(weights) not in (1, len(models)):
        raise UsageError(f"expected --pretrained once, or for each of {len(models)} models, got {len(weights)}")
    weights = weights * len(models) if len(weights) == 1 else weights
    return [
        View(
            model=model,
            pretrained=None if tag == "own" else tag,
            prompts=words or "default",
            templates=prompts.resolve_templates(words),
            head=None if head is None else str(head),
        )
        for model, tag in zip(models, weights, strict=True)
        for words in (*(templates or ()), *(() if templates else (None,)))
        for head in heads
    ]


def _methods_of(method: str | None, views: Sequence[View]) -> list[str]:
    """The methods of a benchmark: those asked for, else each tower's own and what the heads are trained for."""
    from cliploc.localizer import default_method
    from cliploc.saliency import find
    from cliploc.training import read_config

    if method:
        names = [name.strip() for name in method.split(",")]
        for head in {one.head for one in views if one.head is not None}:
            trained_for = read_config(head).method
            if trained_for not in {find(name).name for name in names}:
                raise UsageError(f"{head} is trained for {trained_for}, not for {method}: add it, or leave --head out")
        return names
    own = [default_method(one.model) if one.head is None else read_config(one.head).method for one in views]
    return list(dict.fromkeys(own))


def _grid_options(methods: Sequence[str], pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each method those of the `[method.]key=value` texts that are meant for it."""
    from cliploc.saliency import find

    chosen: dict[str, list[str]] = {name: [] for name in methods}
    for pair in pairs:
        key = pair.partition("=")[0].strip().replace("-", "_")
        takers = []
        for name in methods:
            found = find(name)
            members = found.members or (found,)
            if not found.members and key.startswith(f"{name}."):
                takers.append((name, pair.partition(".")[2]))
            elif any(key in (option, f"{one.name}.{option}") for one in members for option in one.options):
                takers.append((name, pair))
        if not takers:
            raise UsageError(f"--option {pair}: none of {', '.join(methods)} has it; see cliploc methods")
        for name, own in takers:
            chosen[name].append(own)
    return {name: _method_options(name, own) for name, own in chosen.items()}


def _engine(name: str, address: str | None, threads: int | None) -> Engine:
    if threads is not None and threads < 1:
        raise UsageError(f"expected --threads of at least 1, got {threads}")
    if name == "local":
        from cliploc.jobs import local

        if address is not None:
            raise UsageError("expected --address with --engine ray only: leave it out, or add --engine ray")
        return partial(local.run, threads=threads)
    if name == "ray":
        from cliploc.jobs import ray

        return partial(ray.run, address=address, threads=threads)
    raise UsageError(f"expected --engine of local, ray, got {name!r}")


def _localizer(arguments: Mapping[str, Any]) -> Localizer:
    from cliploc.localizer import Localizer

    return Localizer(**arguments)


def _settings(localizer: Localizer, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the run was asked for, with the defaults that it found filled in."""
    return {
        **_model_settings(localizer, arguments),
        "method": localizer.method.name,
        "resize": localizer.resize,
        "refine": localizer.refine,
        "image_size": localizer.input_hw,
        "threshold": localizer.box_rule.threshold,
        "method_options": {**localizer.method.options, **localizer.method_options},
    }


def _model_settings(localizer: Localizer, arguments: Mapping[str, Any]) -> dict[str, Any]:
    dtype = str(localizer.backbone.dtype).removeprefix("torch.")
    return {
        **arguments,
        "templates": localizer.templates,
        "device": str(localizer.backbone.device),
        "precision": {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype),
    }


def _page_settings(localizer: Localizer) -> dict[str, Any]:
    return {
        "model": localizer.backbone.name,
        "method": localizer.method.title,
        "threshold": localizer.box_rule.threshold,
        "input": f"{localizer.input_hw[0]}×{localizer.input_hw[1]}",
        "scales": ", ".join(f"{scale:g}" for scale in localizer.scales) + (", flipped too" if localizer.flip else ""),
        "cliploc": __version__,
    }


def _threshold(text: str | None) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"expected --threshold from 0 to 1, or auto, got {text}")
    return value


def _share(option: str, text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise UsageError(f"expected {option} from 0 to 1, or own, got {text}")


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"expected {option} as numbers with commas, such as 1,1.5,2, got {text!r}") from None


def _image_size(text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.lower().replace("×", "x").split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise UsageError(f"expected --image-size as one side or height x width, such as 448 or 224x448, got {text!r}")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _templates(given: Sequence[str] | None) -> list[str] | None:
    from cliploc import prompts

    return [one for text in given for one in prompts.resolve_templates(text)] if given else None


def _method_options(method: str, pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts → values of the types that the method's function declares; `name.key` for one of several."""
    from cliploc.saliency import find

    found = find(method)
    types: dict[str, Any] = {}
    for member in (found.members or (found,)) if pairs else ():
        hints = get_type_hints(member.function)
        types |= hints | {f"{member.name}.{key}": hint for key, hint in hints.items()}
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise UsageError(f"expected --option as key=value, got {pair!r}")
        key = key.replace("-", "_")
        options[key] = _typed(f"{method}'s option {key}", text, types.get(key, str))
    return options


def _typed(what: str, text: str, wanted: Any) -> Any:
    """A text as the type wanted: bool, int, float, str, several of one of them, or a union."""
    if get_origin(wanted) in (tuple, list, Sequence):
        return tuple(_typed(what, part.strip(), get_args(wanted)[0]) for part in text.strip("()[]").split(",") if part)
    if get_origin(wanted) in (Union, UnionType):
        kinds = [kind for kind in get_args(wanted) if kind is not NoneType]
        if text.lower() == "none" and len(kinds) < len(get_args(wanted)):
            return None
        for kind in kinds[:-1]:
            try:
                return _typed(what, text, kind)
            except UsageError:
                continue
        return _typed(what, text, kinds[-1])
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    try:
        if wanted is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return wanted(text) if wanted in (int, float) else text
    except (KeyError, ValueError):
        raise UsageError(f"expected {what} to be {words[wanted]}, got {text!r}") from None


def _writable(folder: Path) -> Path:
    """Makes the folder and tries it, before anything is computed for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot write to {folder}: {reason}: choose another folder with --out") from error
    return folder


# --------------------------------------------------------------------------------------------------------------- main
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; every error becomes one line on stderr.

    Args:
        arguments: what follows the program's name; None for those of the process.
    """
    if arguments is None:
        keep_freed_memory()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    command = typer.main.get_command(app)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")  # libraries' remarks to programmers
                warnings.simplefilter("always", CliplocWarning)
                warnings.showwarning = lambda message, *_, **__: _complain(str(message))
            with command.make_context("cliploc", words) as context:
                code = command.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # What is still buffered must go somewhere when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    except Exception as error:
        if debug:
            traceback.print_exc()
        _complain(_in_one_line(error))
        return NOTHING_DONE


def _in_one_line(error: Exception) -> str:
    if isinstance(error, CliplocError):
        return str(error)
    if hasattr(error, "format_message"):  # a usage error of the option parser
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "cliploc"
        return f"{error.format_message().rstrip('.')}: see {path} --help"
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return "too little memory: use a smaller --batch-size, --image-size or fewer --scales"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    first = (str(error).splitlines() or [""])[0]
    return f"a mistake of cliploc's own ({type(error).__name__}: {first}): see --debug, and report it"


def _complain(line: str) -> None:
    print(f"cliploc: {printable(line)}", file=sys.stderr)
