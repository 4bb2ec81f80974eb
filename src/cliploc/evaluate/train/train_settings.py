"""The settings of a training, each once: its name, default, check, and help text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cliploc.errors import UsageError
from cliploc.options import ProtocolOptions, choice, number, option, whole

if TYPE_CHECKING:
    from cliploc.find.heads import HeadKind, Start

MOST = 100_000  # of whatever is counted in a training: epochs, pictures of a step, views …
BY_METHOD = "the method's"
# Published settings (TS-CAM: SGD, decay 5e-4; LCTR: AdamW, 14 epochs), but TS-CAM's rate is ours.
DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("ts_cam", "closed"): {"optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-4, "epochs": 20},
    ("ts_cam", "open"): {"optimizer": "sgd", "lr": 0.01, "weight_decay": 5e-4, "epochs": 20},
    ("lctr", "closed"): {"optimizer": "adamw", "lr": 5e-4, "weight_decay": 0.05, "epochs": 14},
    ("lctr", "open"): {"optimizer": "adamw", "lr": 5e-5, "weight_decay": 0.05, "epochs": 14},
}


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ProtocolOptions):
    """What can be chosen in a training besides method and kind of head."""

    # Of each option: its facts in a line or two, then its texts.
    # fmt: off
    augmentations: int = option(
        0, group="training", usual=True, metavar="N", check=whole("augmentations", 0, 1000),
        help="Random crops and flips per picture, besides the plain one.",
    )
    epochs: int = option(
        None, group="training", usual=True, metavar="N", check=whole("epochs", 1, MOST, none=BY_METHOD),
        help="Maximum number of epochs.",
    )
    optimizer: Literal["adamw", "sgd"] = option(
        None, group="training", usual=True, check=choice("optimizer", ("adamw", "sgd"), none=True), none=BY_METHOD,
        help="Optimizer.",
    )
    lr: float = option(
        None, group="training", usual=True, metavar="N", check=number("lr", 0, 1000, above=True, none=BY_METHOD),
        help="Learning rate.",
    )
    weight_decay: float = option(
        None, group="training", metavar="N", check=number("weight_decay", 0, 1000, none=BY_METHOD),
        help="Weight decay.",
    )
    schedule: Literal["cosine", "step"] = option(
        "cosine", group="training", check=choice("schedule", ("cosine", "step")),
        help="Learning rate schedule: to zero, or to a tenth every --step-epochs.",
    )
    step_epochs: int = option(
        5, group="training", metavar="N", check=whole("step_epochs", 1, MOST),
        help="Epochs per step of the step schedule.",
    )
    batch_size: int = option(
        64, group="training", usual=True, metavar="N", check=whole("batch_size", 1, MOST),
        help="Pictures per step, over all processes.",
    )
    held_out: float = option(
        0.1, group="training", usual=True, metavar="0-1", check=number("held_out", 0, 0.99),
        help="Share held out for early stopping; 0: none.",
    )
    hold_out: Literal["pictures", "classes"] = option(
        "pictures", group="training", check=choice("hold_out", ("pictures", "classes")),
        help="Hold out pictures of each class, or whole classes.",
    )
    patience: int = option(
        5, group="training", metavar="N", check=whole("patience", 1, MOST),
        help="Early stopping: epochs without better accuracy on the held-out part.",
    )
    start: Start = option(
        "zero-shot", group="training", check=choice("start", ("zero-shot", "random")),
        help="Initial weights of an open head: the tower's own, or random.",
    )
    unit_places: bool = option(
        False, group="training",
        help="Open head: normalise the features of each place, so that maps are cosines.",
    )
    experts: int = option(
        4, group="training", metavar="N", check=whole("experts", 1, 1024),
        help="Number of LCTR's kernels.",
    )
    seed: int = option(
        0, group="training", metavar="N", check=whole("seed", 0, 2**32 - 1),
        help="Random seed of initial weights, order and held-out part.",
    )
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TrainOptions):
    """The settings of a training; what is None becomes the method's default for this kind of head."""

    method: str = option(group="training", help="The method.", check=choice("method", ("ts_cam", "lctr")))
    kind: HeadKind = option(
        group="training",
        help="Train for any name, or for these classes only.",
        check=choice("kind", ("closed", "open")),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in DEFAULTS[self.method, self.kind].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.hold_out == "classes" and self.kind == "closed":
            raise UsageError(
                "expected --hold-out pictures for a closed head, got classes: it only knows its training classes"
            )
