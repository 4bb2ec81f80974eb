"""`cliploc train`: layers of TS-CAM and LCTR on a frozen model."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cliploc._terminal import Terminal, printable
from cliploc.cli.options import MOST_SEED, Debug, Threads, localizer_options, number_in, use_threads
from cliploc.cli.output import DONE, SOME_FAILED, writable
from cliploc.config import Options
from cliploc.errors import UsageError
from cliploc.reporter import SILENT


@localizer_options(only=("model", "pretrained", "image_size", "templates", "device", "precision"))
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
    features: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the tower's features here. [default: beside --out]")
    ] = None,
    augmentations: Annotated[
        int, number_in(0, 1000, "Views of each picture, cropped and mirrored, besides the plain one.")
    ] = 0,
    epochs: Annotated[int | None, number_in(1, 100_000, "At most. [default: the method's own]")] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="adamw|sgd", help="[default: the method's own]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [default: the method's own]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="[default: the method's own]")] = None,
    schedule: Annotated[
        str, typer.Option(metavar="cosine|step", help="Of the learning rate: to zero, or a tenth every --step-epochs.")
    ] = "cosine",
    step_epochs: Annotated[int, number_in(1, 100_000, "Of the step schedule.")] = 5,
    batch_size: Annotated[int, number_in(1, 65_536, "Pictures of one step, on all processes together.")] = 64,
    accumulate: Annotated[int, number_in(1, 65_536, "Steps whose gradients are summed before weights move.")] = 1,
    held_out: Annotated[
        float, typer.Option(metavar="0-1", help="Share that early stopping is decided on; 0 for none.")
    ] = 0.1,
    hold_out: Annotated[
        str, typer.Option(metavar="pictures|classes", help="Hold out pictures of every class, or whole classes.")
    ] = "pictures",
    patience: Annotated[int, number_in(1, 100_000, "Epochs without better accuracy on them before it stops.")] = 5,
    start: Annotated[
        str, typer.Option(metavar="zero-shot|random", help="Of an open head: the tower's own reading, or nothing.")
    ] = "zero-shot",
    unit_places: Annotated[
        bool, typer.Option("--unit-places", help="Of an open head: each place a unit vector, so that maps are cosines.")
    ] = False,
    experts: Annotated[int, number_in(1, 1024, "LCTR's kernels.")] = 4,
    mixed_precision: Annotated[str, typer.Option(metavar="no|bf16|fp16", help="Of the head's training.")] = "no",
    seed: Annotated[int, number_in(0, MOST_SEED, "Of first weights, order and held-out part.")] = 0,
    threads: Threads = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin from the start, although there is a checkpoint.")
    ] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves for TensorBoard too.")] = False,
    *,
    options: Options,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Train TS-CAM's or LCTR's layers on a frozen model, from pictures' labels alone.

    Killed, it is resumed by the same command. With several GPUs: accelerate launch -m cliploc train ...

    Example: cliploc train tscam --root photos --model ViT-B-16 --pretrained openai --out head.safetensors
    """
    name = {"tscam": "ts_cam"}.get(method.replace("-", "").replace("_", "").lower(), method)
    readers = ("imagefolder", "csv")
    if dataset not in readers:
        raise UsageError(f"expected --dataset of {', '.join(readers)}, got {dataset!r}")
    size = options.image_size
    writable(out.expanduser().resolve().parent)
    terminal = Terminal()
    first = os.environ.get("RANK", "0") == "0"  # one of several processes speaks
    start_time = time.perf_counter()
    with terminal.progress(f"loading {options.model}") if first else contextlib.nullcontext(SILENT) as reporter:
        from cliploc import training
        from cliploc.backbones import create

        use_threads(threads)
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
        device = training.process_device(options.device)
        backbone = create(str(options.model), options.pretrained, device, precision=options.precision)

        trained = training.train(
            backbone,
            pictures,
            out,
            settings,
            features=features,
            input_hw=(size, size) if isinstance(size, int) else size,
            templates=options.templates,
            pretrained=options.pretrained,
            restart=restart,
            tensorboard=tensorboard,
            reporter=replace(
                reporter,
                failed=lambda _, error: terminal.say(f"left out: {error}", style="red"),
                note=terminal.say if first else SILENT.note,
            ),
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
