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

from cliploc._files import alone_writing, user_path
from cliploc._imports import refuse_without
from cliploc._terminal import Terminal, printable
from cliploc.cli.options import MOST_SEED, Debug, Threads, localizer_options, number_in, use_threads
from cliploc.cli.output import DONE, SOME_FAILED, writable
from cliploc.config import Options
from cliploc.errors import UsageError
from cliploc.reporter import SILENT

METHODS = {"tscam": "ts_cam", "lctr": "lctr"}  # as typed → its name


@localizer_options(only=("model", "pretrained", "image_size", "templates", "device", "precision"))
def train(
    method: Annotated[str, typer.Argument(metavar="tscam|lctr", help="The method whose layers are trained.")],
    root: Annotated[Path, typer.Option(metavar="DIR|FILE", help="Folder of pictures, or a CSV file that lists them.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Output file (safetensors).")],
    dataset: Annotated[
        str, typer.Option(metavar="imagefolder|csv", help="One folder per class, or lines path,label.")
    ] = "imagefolder",
    head: Annotated[
        str, typer.Option(metavar="open|closed", help="Train for any name, or for these classes only.")
    ] = "open",
    features: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the tower's cached features. [default: beside --out]")
    ] = None,
    augmentations: Annotated[int, number_in(0, 1000, "Random crops and flips per picture, besides the plain one.")] = 0,
    epochs: Annotated[
        int | None, number_in(1, 100_000, "Maximum number of epochs. [default: the method's own]")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(metavar="adamw|sgd", help="Optimizer. [default: the method's own]")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [default: the method's own]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay. [default: the method's own]")] = None,
    schedule: Annotated[
        str,
        typer.Option(metavar="cosine|step", help="Learning rate schedule: to zero, or to a tenth every --step-epochs."),
    ] = "cosine",
    step_epochs: Annotated[int, number_in(1, 100_000, "Epochs per step of the step schedule.")] = 5,
    batch_size: Annotated[int, number_in(1, 65_536, "Pictures per step, over all processes.")] = 64,
    accumulate: Annotated[int, number_in(1, 65_536, "Gradient accumulation: steps per weight update.")] = 1,
    held_out: Annotated[float, typer.Option(metavar="0-1", help="Share held out for early stopping; 0: none.")] = 0.1,
    hold_out: Annotated[
        str, typer.Option(metavar="pictures|classes", help="Hold out pictures of each class, or whole classes.")
    ] = "pictures",
    patience: Annotated[
        int, number_in(1, 100_000, "Early stopping: epochs without better accuracy on the held-out part.")
    ] = 5,
    start: Annotated[
        str,
        typer.Option(metavar="zero-shot|random", help="Initial weights of an open head: the tower's own, or random."),
    ] = "zero-shot",
    unit_places: Annotated[
        bool,
        typer.Option(
            "--unit-places", help="Open head: normalise the features of each place, so that maps are cosines."
        ),
    ] = False,
    experts: Annotated[int, number_in(1, 1024, "Number of LCTR's kernels.")] = 4,
    mixed_precision: Annotated[str, typer.Option(metavar="no|bf16|fp16", help="Precision of the training.")] = "no",
    seed: Annotated[int, number_in(0, MOST_SEED, "Random seed of initial weights, order and held-out part.")] = 0,
    threads: Threads = None,
    restart: Annotated[bool, typer.Option("--restart", help="Start again, although there is a checkpoint.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write curves for TensorBoard.")] = False,
    *,
    options: Options,
    debug: Debug = False,  # noqa: ARG001
) -> int:
    """Train TS-CAM's or LCTR's layers on a frozen model.

    The training needs image-level labels only. If it is stopped, the same command resumes it.
    Several GPUs: accelerate launch -m cliploc train ...

    Example: cliploc train tscam --root photos --model ViT-B-16 --pretrained openai --out head.safetensors
    """
    refuse_without("train", "train")
    name = METHODS.get(method.replace("-", "").replace("_", "").lower())
    if name is None:
        raise UsageError(f"expected METHOD to be one of {', '.join(METHODS)}, got {method!r}")
    readers = ("imagefolder", "csv")
    if dataset not in readers:
        raise UsageError(f"expected --dataset to be one of {', '.join(readers)}, got {dataset!r}")
    size = options.image_size
    writable(user_path(out).resolve().parent)
    terminal = Terminal()
    first = os.environ.get("RANK", "0") == "0"  # only the main process prints
    start_time = time.perf_counter()
    with (
        alone_writing(user_path(out).resolve()) if first else contextlib.nullcontext(),
        terminal.progress(f"loading {options.model}") if first else contextlib.nullcontext(SILENT) as reporter,
    ):
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
            f"trained on {len(trained.parts.train)} pictures of {len(trained.parts.train_classes)} classes, "
            f"{len(trained.parts.held_out)} held out{left_out}, {time.perf_counter() - start_time:.1f} s",
            style="dim",
        )
    return SOME_FAILED if trained.problems else DONE
