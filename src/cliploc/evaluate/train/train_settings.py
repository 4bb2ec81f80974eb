"""The settings of a training, each once: its name, default, check, and help text."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from cliploc.errors import UsageError
from cliploc.options import ProtocolOptions, option

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
    augmentations: Annotated[int, Meta(ge=0, le=1000)] = option(
        0, group="training", usual=True, help="Random crops and flips per picture, besides the plain one.",
    )
    epochs: Annotated[int, Meta(ge=1, le=MOST)] = option(
        None, group="training", usual=True, none=BY_METHOD, help="Maximum number of epochs.",
    )
    optimizer: Literal["adamw", "sgd"] = option(
        None, group="training", usual=True, none=BY_METHOD, help="Optimizer.",
    )
    lr: Annotated[float, Meta(gt=0, le=1000)] = option(
        None, group="training", usual=True, none=BY_METHOD, help="Learning rate.",
    )
    weight_decay: Annotated[float, Meta(ge=0, le=1000)] = option(
        None, group="training", none=BY_METHOD, help="Weight decay.",
    )
    batch_size: Annotated[int, Meta(ge=1, le=MOST)] = option(
        64, group="training", usual=True, help="Pictures per step.",
    )
    held_out: Annotated[float, Meta(ge=0, le=0.99)] = option(
        0.1, group="training", usual=True, help="Share held out for early stopping; 0: none.",
    )
    hold_out: Literal["pictures", "classes"] = option(
        "pictures", group="training", help="Hold out pictures of each class, or whole classes.",
    )
    patience: Annotated[int, Meta(ge=1, le=MOST)] = option(
        5, group="training", help="Early stopping: epochs without better accuracy on the held-out part.",
    )
    start: Literal["zero-shot", "random"] = option(
        "zero-shot", group="training", help="Initial weights of an open head: the tower's own, or random.",
    )
    experts: Annotated[int, Meta(ge=1, le=1024)] = option(
        4, group="training", help="Number of LCTR's kernels.",
    )
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = option(
        0, group="training", help="Random seed of initial weights, order and held-out part.",
    )
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TrainOptions):
    """The settings of a training; what is None becomes the method's default for this kind of head."""

    method: Literal["ts_cam", "lctr"] = option(group="training", help="The method.")
    kind: Literal["closed", "open"] = option(group="training", help="Train for any name, or for these classes only.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in DEFAULTS[self.method, self.kind].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.hold_out == "classes" and self.kind == "closed":
            raise UsageError(
                "expected --hold-out pictures for a closed head, got classes: it only knows its training classes"
            )
