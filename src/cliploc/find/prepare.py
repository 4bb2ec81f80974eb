"""What is asked for and what comes back; pictures decoded and resized to the model's input, gathered into batches."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cliploc.errors import InputError, ModelError, UsageError
from cliploc.find import prompts
from cliploc.find.learnt import Lesson
from cliploc.find.running import Progress, computed_ahead
from cliploc.images.geometry import RESAMPLING, Frame
from cliploc.images.reading import ImageLike, Picture, load, pictures_in
from cliploc.localization import Localization
from cliploc.options import Options, choice
from cliploc.support.reporter import SILENT, Reporter
from cliploc.towers.tower import Backbone
from cliploc.values import Interpolation, ResizePolicy, TextSet

T = TypeVar("T")
OnError = Literal["raise", "skip"]
Sought = Sequence[str] | Mapping[str, Any] | Tensor | npt.NDArray[Any]  # names, or embeddings of one's own
Names = Sought | Sequence[Sought]
_check_on_error = choice("on_error", get_args(OnError))
SEEN_LOSS = 0.005  # share of a picture's area from which a note says that it is cropped; less is rounding
DECODERS = 2  # threads that read and resize pictures while the tower works on those before


@dataclass(frozen=True)
class Request:
    """Names to look for in one picture."""

    id: Hashable  # the caller's own; the result carries it
    image: ImageLike  # a path, a PIL image or an array
    names: Sought  # what to look for ("cat|kitten": synonyms)
    source: str | None = None  # the picture's name in errors and results; None: its path, or "image" with its id


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a request: localizations, or an error."""

    id: Hashable  # the request's
    # method, as it was asked for → where the names are; empty after an error
    found: Mapping[str, Localization] = field(default_factory=dict)
    error: InputError | None = None  # why the picture could not be used; None where it could
    lesson: Lesson | None = None  # what is kept of the picture; None unless it was asked for


@dataclass(frozen=True)
class RunOptions:
    """How pictures are processed.

    Attributes:
        reporter: told of failed pictures, of masked pictures and names of the bank done and left, and of halved
            batches.
        on_error: what happens when a picture cannot be read: "raise" its error, after the results before it, or "skip"
            it and tell the reporter; with one method, also one for which the model gives no number.
        absent_maps: whether names that are not in a picture get a map too; False leaves theirs zero, which saves time.
        keep_maps: whether results keep their maps; False leaves them zero and keeps boxes and scores, so that ten
            thousand names do not need gigabytes. Masks and `Localization.by` are refused then.
        presence: whether names are compared with a bank of others (docs/presence.md) where the model is not
            calibrated; None: if `min_presence` is above 0. Calibrated models have presence scores in any case.
        boxes: whether results have boxes; False leaves them to `Localization.by`.
        lessons: whether results have what `cliploc.find.learnt.Lesson` needs of their pictures.
    """

    reporter: Reporter = SILENT
    on_error: OnError = "raise"
    absent_maps: bool = True
    keep_maps: bool = True
    presence: bool | None = None
    boxes: bool = True
    lessons: bool = False


@dataclass(frozen=True)
class Prepared:
    """One picture, decoded, and how it is fitted to the model's input at every scale."""

    id: Hashable  # the request's
    picture: Picture  # the upright picture
    texts: TextSet  # the names to look for
    frames: tuple[Frame, ...]  # for each scale, how the picture lies in the input
    # for each set of windows, how each of them lies in an input; see `Frame.windows`
    windows: tuple[tuple[Frame, ...], ...]
    interpolation: Interpolation  # as the model was trained
    notes: tuple[str, ...]  # remarks on how the picture is seen

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """For each scale, uint8 `[3, H, W]`, with the channels last in memory."""
        image = self.picture.image
        return tuple(_pixels(frame.apply(image, self.interpolation)) for frame in self.frames)

    @cached_property
    def windowed(self) -> tuple[Tensor, ...]:
        """For each set of windows, the resized picture that they are cut from, uint8 `[3, H, W]`."""
        how, image = RESAMPLING[self.interpolation], self.picture.image
        return tuple(_pixels(image.resize(of_set[0].resized_wh, how)) for of_set in self.windows if of_set)

    def window(self, number: int, frame: Frame) -> Tensor:
        """The pixels of a window of a set, uint8 `[3, H, W]`, which are a view of `windowed`."""
        (left, top), (height, width) = frame.offset_xy, frame.input_hw
        return self.windowed[number][:, -top : -top + height, -left : -left + width]


@dataclass(frozen=True)
class Unreadable:
    """A request whose picture cannot be used."""

    id: Hashable
    source: str
    error: InputError


class Preparation:
    """How a localizer reads pictures; `windows`: side in inputs."""

    def __init__(
        self,
        backbone: Backbone,
        templates: tuple[str, ...],
        options: Options,
        scales: tuple[float, ...],
        windows: tuple[float, ...] = (),
    ) -> None:
        self._batch_size = options.batch_size
        self._resize_ahead = options.memory is None  # which may know a picture, so that its pixels are not needed
        self._templates, stride = templates, backbone.stride
        self._interpolation, self._windows = backbone.interpolation, windows
        self.resize: ResizePolicy = _policy(options.resize, backbone.resize_policy)
        self.input_hw = _input_hw(backbone, options.image_size)
        height, width = (
            [max(stride, round(side * scale / stride) * stride) for scale in scales] for side in self.input_hw
        )
        self.inputs_hw = tuple(zip(height, width, strict=True))

    def prepare(self, request: Request, texts: TextSet, source: str) -> Prepared:
        """Reads one picture."""
        picture = load(request.image, source)
        original_hw = (picture.image.height, picture.image.width)
        try:
            frames = tuple(Frame.fit(self.resize, original_hw, input_hw) for input_hw in self.inputs_hw)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        windows, narrow = self._windows_of(original_hw)
        notes = tuple(note for note in (_cropped_note(frames[0]), narrow) if note)
        prepared = Prepared(request.id, picture, texts, frames, windows, self._interpolation, notes)
        if self._resize_ahead:
            _ = prepared.inputs, prepared.windowed  # which are kept from now on
        return prepared

    def _windows_of(self, original_hw: tuple[int, int]) -> tuple[tuple[tuple[Frame, ...], ...], str | None]:
        """The windows of each set, and None; for a picture too narrow for windows, empty sets and a note."""
        try:
            return tuple(Frame.windows(original_hw, self.input_hw, multiple) for multiple in self._windows), None
        except InputError:
            return ((),) * len(self._windows), "too narrow for windows: it is seen as a whole only"

    def computed(
        self,
        requests: Iterable[Request],
        work: Callable[[Sequence[Prepared | Unreadable], Progress], Callable[[], T]],
        on_error: OnError,
        reporter: Reporter,
        apart: bool,
    ) -> Generator[tuple[Prepared | Unreadable, T | None, int], None, None]:
        """Each picture, what is made of its batch, and its number among the batch's readable ones; tells failures."""
        with (
            closing(batches(self.stream(requests, on_error), self._batch_size)) as gathered,
            closing(computed_ahead(gathered, work, reporter.masked, reporter.halved, apart)) as ahead,
        ):
            for batch, made in ahead:
                places = itertools.count()
                for item in batch:
                    if isinstance(made, ModelError) and isinstance(item, Prepared):
                        source = item.picture.source
                        item = Unreadable(item.id, source, InputError(f"{source}: {made}"))
                    if isinstance(item, Unreadable) or isinstance(made, ModelError):
                        assert isinstance(item, Unreadable)
                        reporter.failed(item.source, item.error)
                        yield item, None, -1
                    else:
                        yield item, made, next(places)

    def stream(self, requests: Iterable[Request], on_error: OnError) -> Generator[Prepared | Unreadable, None, None]:
        """Reads pictures in order, `DECODERS` of them ahead: a full batch is with the tower already."""
        _check_on_error(on_error)
        jobs = self._jobs(requests)
        pool = ThreadPoolExecutor(DECODERS, "cliploc-decode")
        waiting: deque[tuple[Request | None, str, Callable[[], Prepared]]] = deque()
        try:
            while True:
                for request, source, prepare in list(itertools.islice(jobs, DECODERS - len(waiting))):
                    waiting.append((request, source, pool.submit(prepare).result))
                if not waiting:
                    return
                request, source, prepared = waiting.popleft()
                try:
                    yield prepared()
                except InputError as error:
                    if on_error == "raise" or request is None:
                        raise
                    yield Unreadable(request.id, source, error)
        finally:
            pool.shutdown(cancel_futures=True)  # nobody will take what was read ahead

    def _jobs(self, requests: Iterable[Request]) -> Iterator[tuple[Request | None, str, Callable[[], Prepared]]]:
        """Each request with its source and what prepares it; an error of the requests comes at its place."""
        names, texts = None, None
        try:
            for request in requests:
                if texts is None or request.names is not names:  # parsed again only if they differ
                    names, texts = request.names, prompts.parse(request.names, self._templates)
                source, prepare = source_of(request), self.prepare
                if not isinstance(request.image, str | os.PathLike):  # read at once: the caller may change it
                    try:
                        request = replace(request, image=load(request.image, source))
                    except InputError as error:
                        prepare = partial(_raised, error)
                yield request, source, partial(prepare, request, texts, source)
        except Exception as error:
            yield None, "", partial(_raised, error)


def _raised(error: Exception, *_: object) -> Prepared:
    raise error


def _policy(requested: ResizePolicy | None, default: ResizePolicy) -> ResizePolicy:
    """How a picture is fitted: a thing at the side that a crop cuts off could not be found, so none is made unasked."""
    crops = default.startswith("crop")
    if requested is None:
        return "pad" if crops else default
    return default if requested == "crop" and crops else requested


def _pixels(image: Image.Image) -> Tensor:
    """A picture as `[3, H, W]` uint8, with the channels last in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def stacked(pixels: Sequence[Tensor]) -> Tensor:
    """Pictures `[3, H, W]` of one size as `[n, 3, H, W]`, with the channels last in memory, as they are prepared."""
    return torch.stack([image.permute(1, 2, 0) for image in pixels]).permute(0, 3, 1, 2)


def _cropped_note(frame: Frame) -> str | None:
    """What the input leaves out of the picture; None where it shows all of it."""
    height, width = frame.original_hw
    x0, y0, x1, y1 = frame.to_original([0, 0, frame.input_hw[1], frame.input_hw[0]])[0].tolist()
    across, down = 1 - (x1 - x0) / width, 1 - (y1 - y0) / height
    lost = 1 - (1 - across) * (1 - down)
    if lost < SEEN_LOSS:
        return None
    sides = "left and right" if across > down else "top and bottom"
    return f"cropped: the model does not see {lost:.0%} of it, {sides}; resize squash or pad shows it all"


def source_of(request: Request) -> str:
    """What errors and results call a request's picture: its path, or, for one from memory, "image" with its id."""
    if request.source is not None:
        return request.source
    if isinstance(request.image, Picture):
        return request.image.source
    return str(request.image) if isinstance(request.image, str | os.PathLike) else f"image {request.id}"


def _input_hw(backbone: Backbone, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    if image_size is None:
        return backbone.input_hw
    height, width = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    stride = backbone.stride
    if height % stride or width % stride:
        sides = f"{image_size}" if isinstance(image_size, int) else f"{height}×{width}"
        raise UsageError(
            f"expected an image_size of multiples of {stride} for {backbone.name}, got {sides}: choose the nearest one"
        )
    return height, width


def batches(
    items: Generator[Prepared | Unreadable, None, None], size: int
) -> Generator[list[Prepared | Unreadable], None, None]:
    """Consecutive pictures with equally many names; unreadable ones keep their places, an error comes after these."""
    batch: list[Prepared | Unreadable] = []
    names: int | None = None  # of the pictures of the batch
    with closing(items):
        try:
            for item in items:
                if isinstance(item, Prepared):
                    if names is not None and len(item.texts) != names:
                        yield batch
                        batch = []
                    names = len(item.texts)
                batch.append(item)
                if len(batch) == size:
                    yield batch
                    batch, names = [], None
        except Exception:
            if batch:
                yield batch
            raise
        if batch:
            yield batch


def requests_of(images: ImageLike | Iterable[ImageLike], names: Names) -> Iterator[Request]:
    """A request for each picture, with one list of names for all or one for each; its id is its number."""
    lists: Any = prompts.named(names)
    prompts.check_list(lists)
    images = pictures_in(images)
    if not lists or isinstance(lists[0], str):
        for number, image in enumerate(images):
            yield Request(number, image, lists)
        return
    if isinstance(images, Sequence) and len(images) != len(lists):
        raise UsageError(f"expected a list of names for each of {len(images)} pictures, got {len(lists)} lists")
    number = -1
    for number, image in enumerate(images):
        if number >= len(lists):
            raise UsageError(f"expected a list of names for each picture, got {len(lists)} lists and more pictures")
        yield Request(number, image, lists[number])
    if number + 1 < len(lists):
        raise UsageError(f"expected a list of names for each picture, got {len(lists)} lists and {number + 1} pictures")
