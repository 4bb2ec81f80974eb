"""The protocol of each segmentation set as data: that of SCLIP, NACLIP and ProxyCLIP with NACLIP's settings.

docs/segmentation.md explains each value, gives the sources, and has the options for the settings of the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from typing import Any, Self

from cliploc.errors import UsageError
from cliploc.find import prompts
from cliploc.options import SegmentationOptions
from cliploc.towers.tower import PositionRule
from cliploc.values import ClassName

BACKGROUND_WORDS = ("voc21", "coco_object")  # sets whose class list begins with words for the background
WITHOUT_BACKGROUND = {"voc20": "voc21", "context59": "context60"}  # set → the set that has its classes and a background
TEMPLATES = "openai-80"  # for every set
MOST_NAMES = 2**15 - 1  # of a protocol: the labels of a map are int16
# CLIP's mean and standard deviation for RGB in 0–255, as rounded in mmsegmentation's configurations.
CLIP_MEAN = (122.771, 116.746, 104.094)
CLIP_STD = (68.501, 66.632, 70.323)


@dataclass(frozen=True)
class Protocol:
    """How label maps of a set's pictures are made and evaluated."""

    name: str  # of the set
    classes: tuple[ClassName, ...]  # label → names; each synonym is a query of its own
    background: bool = False  # whether label 0 is the background
    # whether label 0 in the set's files is ignored and 1 is subtracted from the others; the dataset's reader does that
    reduce_zero_label: bool = False
    short_side: int = 336  # pixels of the shorter side to which a picture is resized
    long_side: int = 2048  # the most pixels of its longer side
    window: int = 224  # pixels of a window's side; 0: the whole picture at once
    stride: int = 112  # pixels from one window to the next
    logit_scale: float = 40.0  # factor of the cosines before the softmax over queries
    # a pixel whose best class has a lower probability gets label 0; 0 for no such rule
    background_threshold: float = 0.0
    # classes with at most this share of the pixels that are not label 0 are removed; 0 for no such rule
    area_threshold: float = 0.0
    # how many classes besides the background can be predicted in a picture, by the embeddings of its windows; 0: all
    candidates: int = 0
    # how a ViT's position embeddings are resized for windows of another size than its own
    position_rule: PositionRule = "antialiased"
    # what divides pictures into regions, each of which gets one label; see `SegmentationOptions`
    regions: str = "none"
    propagation: str = "none"  # "tlp" spreads the cosines over the picture: `cliploc.find.segmentation.segmenter`
    # subtracted from RGB in 0–255, for towers with CLIP's values; other towers have their own
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD  # divisor after that
    # whether it is the protocol of ImageNet-Segmentation: the picture is squashed to a square of `short_side`, there is
    # one name, and everything above the map's mean is the object
    one_thing: bool = False

    def but(self, options: SegmentationOptions) -> Self:
        """A copy with the values that the options give."""
        changes = options.changed()
        rules = [name for name in ("background_threshold", "area_threshold") if changes.get(name)]
        if rules and not self.background:
            flag = rules[0].replace("_", "-")
            raise UsageError(f"{self.name} has no background, but --{flag} needs one: leave it out")
        if self.one_thing and (left := [name for name in changes if name != "position_rule"]):
            raise UsageError(f"{self.name} has one window and one name: leave --{left[0].replace('_', '-')} out")
        made = replace(self, **changes)
        if 0 < made.window < made.stride:
            raise UsageError(
                f"expected --stride of at most {made.window}, the side of a window, got {made.stride}, which leaves "
                f"pixels out: give --stride {max(1, made.window // 2)}"
            )
        return made

    def describe(self) -> dict[str, Any]:
        """Its values without the classes, which are the dataset's, for a run's identity."""
        later = ("regions", "propagation", "candidates")  # older runs do not have them
        left_out = {"classes", *(name for name in later if getattr(self, name) in ("none", 0))}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


_SETS: Mapping[str, Mapping[str, Any]] = {
    "voc21": {"background": True, "background_threshold": 0.1},
    "voc20": {"reduce_zero_label": True},
    "context60": {"background": True, "background_threshold": 0.1},
    "context59": {"reduce_zero_label": True},
    "coco_object": {"background": True, "background_threshold": 0.1},
    "coco_stuff": {},
    "cityscapes": {"short_side": 560},
    "ade20k": {"reduce_zero_label": True},
    "context459": {},
    "ade847": {"short_side": 448},
    "imagenet_seg": {"one_thing": True, "short_side": 224, "long_side": 224, "window": 0},
}


def protocol_names() -> list[str]:
    """The sets that have a protocol."""
    return sorted(_SETS)


def protocol_of(name: str, options: SegmentationOptions | None = None) -> Protocol:
    """The protocol of a set, changed by the options."""
    if name not in _SETS:
        raise UsageError(f"expected the segmentation set to be one of {', '.join(protocol_names())}, got {name!r}")
    things = (ClassName("background", ("background",)), ClassName("thing", ("thing",)))
    classes = things if name == "imagenet_seg" else class_list(name)
    return Protocol(name, classes, **_SETS[name]).but(options or SegmentationOptions())


def protocol_for(
    names: Sequence[str], background: Sequence[str] = (), options: SegmentationOptions | None = None
) -> Protocol:
    """The protocol for a user's own names: label 0 is the background, 1 the first name and so on.

    Args:
        names: as `cliploc.find.prompts.parse` takes them; each synonym is a query of its own.
        background: names of the surroundings. A pixel that fits one of them best is background.
        options: values that change the protocol, such as a threshold of the background.

    Example:
        >>> [one.synonyms for one in protocol_for(["sky", "dog|puppy"], ["wall"]).classes]
        [('wall',), ('sky',), ('dog', 'puppy')]
    """
    parsed = prompts.parse(names, contrasts=False)
    if len(parsed) > MOST_NAMES:
        raise UsageError(f"expected at most {MOST_NAMES:,} names, got {len(parsed):,}: split them into several runs")
    surroundings = prompts.parse(background, contrasts=False).synonyms if background else ()
    around = tuple(word for words in surroundings for word in words)
    if not around and len(parsed.names) == 1:
        raise UsageError(
            f"expected two names or more, or --background, got only {parsed.names[0]!r}, which would have every pixel: "
            'add a name, or --background "wall"'
        )
    both = [word for words in parsed.synonyms for word in words if word in around]
    if both:
        raise UsageError(f"expected other names than those of the background, got {both[0]!r} as both: leave one out")
    named = (ClassName(name, words) for name, words in zip(parsed.names, parsed.synonyms, strict=True))
    return Protocol("own", (ClassName("background", around), *named), background=True).but(
        options or SegmentationOptions()
    )


def class_list(name: str) -> tuple[ClassName, ...]:
    """The classes of a segmentation set with their synonyms, in the order of the labels."""
    file = f"{WITHOUT_BACKGROUND.get(name, name)}.txt"
    text = (resources.files("cliploc.find.segmentation") / "class_lists" / file).read_text(encoding="utf-8")
    first, *others = classes_of(text.splitlines())
    if name in WITHOUT_BACKGROUND:
        return tuple(others)
    if name in BACKGROUND_WORDS:
        first = ClassName("background", first.synonyms)
    return (first, *others)


def classes_of(lines: Iterable[str]) -> tuple[ClassName, ...]:
    """Classes out of lines, each a name and its synonyms, separated by ", "."""
    split = [tuple(word.strip() for word in line.split(",") if word.strip()) for line in lines if line.strip()]
    return tuple(ClassName(words[0], words) for words in split)
