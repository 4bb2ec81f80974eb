"""`cliploc train`: layers of TS-CAM and LCTR on a frozen model."""

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

from cliploc.cli.options import WithThreads, command, flag, rare, use_threads
from cliploc.cli.output import DONE, LOCALIZE, SOME_FAILED, file_writable, printable
from cliploc.cli.terminal import Terminal
from cliploc.errors import UsageError
from cliploc.evaluate.train.train_settings import TrainOptions, TrainSettings
from cliploc.options import Options, choice, words_of
from cliploc.support.imports import check_installed
from cliploc.support.reporter import SILENT

METHODS = {"tscam": "ts_cam", "lctr": "lctr"}  # as typed → its name
READERS = ("imagefolder", "csv")


class TrainFlags(WithThreads):
    """What `train` has besides options of `Localizer`."""

    method: str = flag("The method whose layers are trained.", metavar="tscam|lctr", positional=True)
    root: Path = flag("Folder of pictures, or a CSV file that lists them.", metavar="DIR|FILE")
    out: Path = flag("Output file (safetensors).", metavar="FILE", group="output")
    dataset: str = flag(
        "One folder per class, or lines path,label.",
        "imagefolder",
        metavar="|".join(READERS),
        check=choice("dataset", READERS),
    )
    head: str = flag("Train for any name, or for these classes only.", "open", metavar="open|closed", group="training")
    features: Path | None = rare(
        "Folder for the tower's cached features.", None, metavar="DIR", none="beside --out", group="output"
    )


@command(only=("model", "pretrained", "image_size", "templates", "device", "precision"))
def train(flags: TrainFlags, options: Options, chosen: TrainOptions) -> int:
    """Train TS-CAM's or LCTR's layers on a frozen model.

    The training needs image-level labels only. If it is stopped, the same command resumes it.
    Several GPUs: accelerate launch -m cliploc train ...

    Example: cliploc train tscam --root photos --model ViT-B-16 --pretrained openai --out head.safetensors
    """
    check_installed("train", "train")
    name = METHODS.get(flags.method.replace("-", "").replace("_", "").lower())
    if name is None:
        raise UsageError(f"expected METHOD to be one of {', '.join(METHODS)}, got {flags.method!r}")
    out, size = flags.out, options.image_size
    file_writable(out)
    terminal = Terminal()
    first = os.environ.get("RANK", "0") == "0"  # only the main process prints
    start_time = time.perf_counter()
    with terminal.progress(f"loading {options.model}") if first else contextlib.nullcontext(SILENT) as reporter:
        from cliploc.evaluate.train import trainer, training_set
        from cliploc.find.running import check_device
        from cliploc.towers import create

        use_threads(flags.threads)
        settings = TrainSettings(method=name, kind=flags.head, **chosen.changed())  # type: ignore[arg-type]  # it checks
        read = training_set.read_folder if flags.dataset == "imagefolder" else training_set.read_csv
        pictures = read(flags.root)
        device = check_device(options.device)
        if device == "cuda":  # with a GPU for each process, that of this one
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        backbone = create(str(options.model), options.pretrained, device, precision=options.precision)

        trained = trainer.train(
            backbone,
            pictures,
            out,
            settings,
            features=flags.features,
            input_hw=(size, size) if isinstance(size, int) else size,
            templates=options.templates,
            pretrained=options.pretrained,
            reporter=replace(
                reporter,
                failed=lambda _, error: terminal.say(f"left out: {error}", style="red"),
                note=terminal.say if first else SILENT.note,
            ),
        )
    if first:
        best = trained.history[trained.best - 1]
        accuracy = "" if best.accuracy is None else f", held-out accuracy {best.accuracy:.3f}"
        terminal.data(printable(f"{out}  epoch {trained.best} of {len(trained.history)}{accuracy}"))
        left_out = f"; {len(trained.problems)} pictures left out" if trained.problems else ""
        terminal.say(
            f"trained on {len(trained.parts.train)} pictures of {len(trained.parts.train_classes)} classes, "
            f"{len(trained.parts.held_out)} held out{left_out}, {time.perf_counter() - start_time:.1f} s",
            style="dim",
        )
        model = words_of(Options(model=options.model, pretrained=options.pretrained).changed())
        name = pictures.classes[0][0]  # a closed head knows no others
        terminal.say_next((*LOCALIZE[:-1], name, *model, f"--head={out}"))
    return SOME_FAILED if trained.problems else DONE
