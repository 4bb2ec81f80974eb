"""Frames of videos as pictures of a run, made once: `clip.mp4#000120.jpg` is the frame counted from 0."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from cliploc._documents import VideoFrames, read_if_there
from cliploc._files import write_whole
from cliploc.errors import InputError, UsageError
from cliploc.images import MAX_PIXELS
from cliploc.jobs.folder import write_json
from cliploc.jobs.picture_files import PictureFile, stamp

FRAMES = "frames"  # the folder's name in that of a run
QUALITY = 95  # of JPEG, at full resolution of colours
SCENE = 0.4  # from ffmpeg's manual of the filter `select`: frames with a greater change begin a scene
FRAME = re.compile(r"(.+)#([0-9]{6})[.]jpg", re.DOTALL)  # a frame's name: its video and its number
MOST_FRAMES = 1_000_000  # of one video; their numbers have six digits
# Containers whose readers open no other file; playlists could name any.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts"


@dataclass(frozen=True)
class Every:
    """Which frames of a video are taken: those that any of these rules selects."""

    frames: int | None = None  # every frame with a number divisible by this; None for no such rule
    seconds: float | None = None  # the first frame in each interval of so many seconds; None for no such rule
    scenes: bool = False  # the first frame of each scene

    @classmethod
    def of(cls, text: str) -> Every:
        """Reads "30" (each 30th frame), "2s" (one in two seconds), "scene", or several with commas."""
        tags: dict[str, Any] = {}
        for part in text.replace(" ", "").split(","):
            key, value = "", 0.0
            if part in ("scene", "scenes"):
                key, value = "scenes", True
            elif re.fullmatch(r"[0-9]{1,7}", part):
                key, value = "frames", int(part)
            elif re.fullmatch(r"[0-9]{0,6}\.?[0-9]{1,6}s", part):
                key, value = "seconds", float(part[:-1])
            if not value or key in tags:
                raise UsageError(
                    "expected every as 30 (each 30th frame), 2s (one in two seconds), scene, or several with commas, "
                    f"got {text!r}"
                )
            tags[key] = value
        return cls(**tags)


def frames_of(video: PictureFile, every: Every, folder: Path) -> list[PictureFile]:
    """The frames of a video; they are decoded unless they are there already."""
    place = _place_of(video.id, folder)
    listed, before = place.with_name(f"{place.name}#frames.json"), stamp(video)
    read = read_if_there(listed, VideoFrames)
    numbers: list[int] = read.get("frames", [])
    same = (read.get("stamp"), read.get("every")) == (before, repr(every))  # of the video as it is, and as asked for
    if not same or not all(_frame(place, number).is_file() for number in numbers):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            listed.unlink(missing_ok=True)  # first, so that no list is left beside missing frames
            for path in list(place.parent.iterdir()):
                if (frame := FRAME.fullmatch(path.name)) is not None and frame[1] == place.name:
                    path.unlink()
            numbers = []
            for number, image in _chosen(video, every):
                encode = partial(image.save, format="JPEG", quality=QUALITY, subsampling=0)
                write_whole(_frame(place, number), encode, durable=False)
                numbers.append(number)
            if not numbers:
                raise InputError(f"{video.id}: holds no frames: check the video")
            write_json(listed, {"stamp": before, "every": repr(every), "frames": numbers})
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise InputError(f"{video.id}: its name is too long for the names of its frames: shorten it") from None
    return [PictureFile(f"{video.id}#{number:06d}.jpg", _frame(place, number)) for number in numbers]


def path_of(picture: str, root: Path, out: Path) -> Path:
    """Where a picture of a run is: below the root, or, for a frame of a video, in the run's folder."""
    below, frame = root / picture, FRAME.fullmatch(picture)
    if frame is None or below.is_file():
        return below
    return _frame(_place_of(frame[1], out / FRAMES), int(frame[2]))


def _place_of(video: str, frames: Path) -> Path:
    """What the paths of a video's frames begin with, as exports name them, for tools that read the folder."""
    path = PurePosixPath(video)
    if path.is_absolute() or ".." in path.parts or "\\" in video or ":" in video:  # elsewhere: a folder of its own
        digest = hashlib.sha256(video.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return frames / f"elsewhere-{digest}" / path.name
    return frames / path


def _frame(place: Path, number: int) -> Path:
    return place.with_name(f"{place.name}#{number:06d}.jpg")


def _chosen(video: PictureFile, every: Every) -> Iterator[tuple[int, Image.Image]]:
    """The numbers of frames and the frames, upright."""
    import av

    limits = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        with av.open(str(video.path), options=limits) as container:
            if not container.streams.video:
                raise InputError(f"{video.id}: holds no pictures, only sound: leave it out")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise InputError(f"{video.id}: its pictures are of a kind that is not known: convert it to MP4")
            _refuse_large(video, stream.width, stream.height)
            begins = _scenes(stream) if every.scenes else None
            # Exact, as 3 / 10 s would not be in the interval that begins at 3 × 0.1 s.
            span = None if every.seconds is None else Fraction(str(every.seconds))
            due = Fraction(0)
            frames: Iterator[Any] = container.decode(stream)
            for number, frame in enumerate(frames):
                if number >= MOST_FRAMES:
                    raise InputError(f"{video.id}: more than {MOST_FRAMES:,} frames: cut it into several videos")
                if frame.pts is None or frame.time_base is None:
                    seconds = number / Fraction(stream.average_rate or 25)
                else:
                    seconds = frame.pts * frame.time_base
                wanted = every.frames is not None and number % every.frames == 0
                if span is not None and seconds >= due:
                    wanted, due = True, (seconds // span + 1) * span
                if begins is not None and (begins(frame) or number == 0):
                    wanted = True
                if wanted:
                    _refuse_large(video, frame.width, frame.height)  # a damaged one can be larger than it said before
                    image = frame.to_image()
                    yield number, image.rotate(frame.rotation, expand=True) if frame.rotation else image
    except InputError:
        raise
    except Exception as error:  # damaged files make the library raise whatever it trips over
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{video.id}: a video that cannot be read ({reason}): download or convert it again") from None


def _refuse_large(video: PictureFile, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{video.id}: {width}×{height} pixels, expected at most {MAX_PIXELS / 1e6:g} million: make it smaller first"
        )


def _scenes(stream: Any) -> Callable[[Any], bool]:
    """A function to which each frame is given; it returns whether the frame begins a scene."""
    from av.error import BlockingIOError as NotYet
    from av.filter import Graph

    graph = Graph()
    source = graph.add_buffer(template=stream)
    select, sink = graph.add("select", f"gt(scene,{SCENE})"), graph.add("buffersink")
    source.link_to(select)
    select.link_to(sink)
    graph.configure()

    def begins(frame: Any) -> bool:
        graph.push(frame)
        with suppress(NotYet):
            graph.pull()
            return True
        return False

    return begins
