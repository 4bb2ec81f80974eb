"""`cliploc train`: layers of TS-CAM and LCTR on a frozen model."""

import contextlib
import os
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

from cliploc._files import alone_writing, user_path
from cliploc._imports import refuse_without
from cliploc._terminal import Terminal, printable
from cliploc.cli.options import MOST_SEED, Flags, WithThreads, command, flag, rare, use_threads
from cliploc.cli.output import DONE, LOCALIZE, SOME_FAILED, say_next, writable
from cliploc.config import Options, choice, words_of
from cliploc.errors import UsageError
from cliploc.reporter import SILENT

METHODS = {"tscam": "ts_cam", "lctr": "lctr"}  # as typed → its name


READERS = ("imagefolder", "csv")
EPOCHS = (1, 100_000)  # a whole number of epochs
SIZE = (1, 65_536)  # of a batch
OWN = "the method's own"


@dataclass(kw_only=True, eq=False, repr=False)
class SettingFlags(Flags):
    """Fields of `TrainSettings`, which checks them."""

    augmentations: int = flag(
        "Random crops and flips per picture, besides the plain one.", 0, within=(0, 1000), group="training"
    )
    epochs: int | None = flag("Maximum number of epochs.", None, within=EPOCHS, none=OWN, group="training")
    optimizer: str | None = flag("Optimizer.", None, metavar="adamw|sgd", none=OWN, group="training")
    lr: float | None = flag("Learning rate.", None, metavar="N", none=OWN, group="training")
    weight_decay: float | None = rare("Weight decay.", None, metavar="N", none=OWN, group="training")
    schedule: str = rare(
        "Learning rate schedule: to zero, or to a tenth every --step-epochs.",
        "cosine",
        metavar="cosine|step",
        group="training",
    )
    step_epochs: int = rare("Epochs per step of the step schedule.", 5, within=EPOCHS, group="training")
    batch_size: int = flag("Pictures per step, over all processes.", 64, within=SIZE, group="training")
    accumulate: int = rare("Gradient accumulation: steps per weight update.", 1, within=SIZE, group="training")
    held_out: float = flag("Share held out for early stopping; 0: none.", 0.1, metavar="0-1", group="training")
    hold_out: str = rare(
        "Hold out pictures of each class, or whole classes.", "pictures", metavar="pictures|classes", group="training"
    )
    patience: int = rare(
        "Early stopping: epochs without better accuracy on the held-out part.", 5, within=EPOCHS, group="training"
    )
    start: str = rare(
        "Initial weights of an open head: the tower's own, or random.",
        "zero-shot",
        metavar="zero-shot|random",
        group="training",
    )
    unit_places: bool = rare(
        "Open head: normalise the features of each place, so that maps are cosines.", False, group="training"
    )
    experts: int = rare("Number of LCTR's kernels.", 4, within=(1, 1024), group="training")
    mixed_precision: str = rare("Precision of the training.", "no", metavar="no|bf16|fp16", group="training")
    seed: int = rare(
        "Random seed of initial weights, order and held-out part.", 0, within=(0, MOST_SEED), group="training"
    )


@dataclass(kw_only=True, eq=False, repr=False)
class TrainFlags(SettingFlags, WithThreads):
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
    restart: bool = rare("Start again, although there is a checkpoint.", False, group="run")
    tensorboard: bool = rare("Also write curves for TensorBoard.", False, group="output")


@command(only=("model", "pretrained", "image_size", "templates", "device", "precision"))
def train(asked: TrainFlags, options: Options) -> int:
    """Train TS-CAM's or LCTR's layers on a frozen model.

    The training needs image-level labels only. If it is stopped, the same command resumes it.
    Several GPUs: accelerate launch -m cliploc train ...

    Example: cliploc train tscam --root photos --model ViT-B-16 --pretrained openai --out head.safetensors
    """
    refuse_without("train", "train")
    name = METHODS.get(asked.method.replace("-", "").replace("_", "").lower())
    if name is None:
        raise UsageError(f"expected METHOD to be one of {', '.join(METHODS)}, got {asked.method!r}")
    out, size = asked.out, options.image_size
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

        use_threads(asked.threads)
        chosen = {one.name: getattr(asked, one.name) for one in fields(SettingFlags)}
        settings = training.TrainSettings.published(name, asked.head, **chosen)  # type: ignore[arg-type]  # checked there
        pictures = training.read_folder(asked.root) if asked.dataset == "imagefolder" else training.read_csv(asked.root)
        device = training.process_device(options.device)
        backbone = create(str(options.model), options.pretrained, device, precision=options.precision)

        trained = training.train(
            backbone,
            pictures,
            out,
            settings,
            features=asked.features,
            input_hw=(size, size) if isinstance(size, int) else size,
            templates=options.templates,
            pretrained=options.pretrained,
            restart=asked.restart,
            tensorboard=asked.tensorboard,
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
        model = words_of(Options(model=options.model, pretrained=options.pretrained).given())
        say_next(terminal, (*LOCALIZE, *model, f"--head={out}"))
    return SOME_FAILED if trained.problems else DONE
