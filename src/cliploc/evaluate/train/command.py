"""`cliploc train`: layers of TS-CAM and LCTR on a frozen model."""

import time
from dataclasses import replace
from pathlib import Path

from cliploc.cli import options as cli
from cliploc.cli import output
from cliploc.cli.options import flag, rare
from cliploc.cli.terminal import Terminal
from cliploc.errors import UsageError
from cliploc.evaluate.train.train_settings import TrainOptions, TrainSettings
from cliploc.options import Options, words_of

METHODS = {"tscam": "ts_cam", "lctr": "lctr"}  # as typed → its name


class TrainFlags(cli.WithThreads):
    """What `train` has besides options of `Localizer`."""

    method: str = flag("The method whose layers are trained.", metavar="tscam|lctr", positional=True)
    root: Path = flag("Folder with one of pictures per class, or a CSV file of path,label.", metavar="DIR|FILE")
    out: Path = flag("Output file (safetensors).", metavar="FILE", group="output")
    head: str = flag("Train for any name, or for these classes only.", "open", metavar="open|closed", group="training")
    features: Path | None = rare(
        "Folder for the tower's cached features.", None, metavar="DIR", none="beside --out", group="output"
    )


@cli.command(only=("model", "pretrained", "image_size", "templates", "device", "precision"))
def train(flags: TrainFlags, options: Options, chosen: TrainOptions) -> int:
    """Train TS-CAM's or LCTR's layers on a frozen model.

    The training needs image-level labels only. If it is stopped, the same command resumes it.

    Example: cliploc train tscam --root photos --model ViT-B-16 --pretrained openai --out head.safetensors
    """
    name = METHODS.get(flags.method.replace("-", "").replace("_", "").lower())
    if name is None:
        raise UsageError(f"expected METHOD to be one of {', '.join(METHODS)}, got {flags.method!r}")
    out, size = flags.out, options.image_size
    output.file_writable(out)
    terminal = Terminal()
    start_time = time.perf_counter()
    with terminal.progress(f"loading {options.model}") as reporter:
        from cliploc.evaluate.train import trainer
        from cliploc.find.running import check_device
        from cliploc.towers import create

        cli.use_threads(flags.threads)
        settings = TrainSettings(method=name, kind=flags.head, **chosen.changed())  # type: ignore[arg-type]  # it checks
        pictures = (trainer.read_csv if flags.root.is_file() else trainer.read_folder)(flags.root)
        device = check_device(options.device)
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
                reporter, failed=lambda _, error: terminal.say(f"left out: {error}", style="red"), note=terminal.say
            ),
        )
    best = trained.history[trained.best - 1]
    accuracy = "" if best.accuracy is None else f", held-out accuracy {best.accuracy:.3f}"
    terminal.data(output.printable(f"{out}  epoch {trained.best} of {len(trained.history)}{accuracy}"))
    left_out = f"; {len(trained.unread)} pictures left out" if trained.unread else ""
    terminal.say(
        f"trained on {len(trained.parts.train)} pictures of {len(trained.parts.train_classes)} classes, "
        f"{len(trained.parts.held_out)} held out{left_out}, {time.perf_counter() - start_time:.1f} s",
        style="dim",
    )
    model = words_of(Options(model=options.model, pretrained=options.pretrained).changed())
    name = pictures.classes[0][0]  # a closed head knows no others
    terminal.say_next((*output.LOCALIZE[:-1], name, *model, f"--head={out}"))
    return output.SOME_FAILED if trained.unread else output.DONE
