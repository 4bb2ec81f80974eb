"""What is fuzzed: for each kind of file its seeds, and a function that reads one.

A target returns where the file was read, or refused by an error that a user may see; whatever else it raises is a
mistake. Seeds are the files of `corpus/NAME/`, to which found mistakes are added, and those that are made here.
"""

import contextlib
import io
import json
import math
import struct
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import ExifTags, Image
from safetensors.torch import save as save_tensors

from cliploc import rle
from cliploc._documents import (
    AnnotatedRow,
    DocumentError,
    RadioSettings,
    checked,
    parse_json,
)
from cliploc.backbones._checkpoints import read_checkpoint
from cliploc.calibration import load_calibration, own_calibration
from cliploc.datasets import open_dataset, open_labelled
from cliploc.datasets._infra.files import csv_rows, words
from cliploc.datasets._infra.labelled import listed, read_labels
from cliploc.datasets.voc import read_annotation
from cliploc.errors import CliplocError
from cliploc.heads import read_config
from cliploc.images import load
from cliploc.jobs import folder, labels
from cliploc.jobs.annotation_edits import SAVES, corrections_in, merge_saves
from cliploc.jobs.annotation_rows import KIND
from cliploc.jobs.corrections import read_corrections
from cliploc.jobs.evaluate import read_map
from cliploc.metrics import Convention, checked_map
from cliploc.polygons import draw, outlines_of
from cliploc.teaching.learnt import load_learnt
from cliploc.teaching.sides import LENGTH
from tests.datasets import labelled, test_flickr30k, test_lvis, test_refcoco

CORPUS = Path(__file__).with_name("corpus")
NUMBERS = (*'-1 0 1e999 NaN ² ٣ null true "" [] {}'.encode().split(), b"9" * 5000)
INTEGERS = (b"\x00" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff" * 8, b"\x00" * 64)


@dataclass(frozen=True)
class Target:
    """A kind of file: `made` gives seeds beside those of its folder in `corpus`; in text, words are replaced, too."""

    name: str
    read: Callable[[bytes], object]
    made: Callable[[], Sequence[bytes]] = tuple
    text: bool = True

    def seeds(self) -> list[bytes]:
        """All seeds."""
        kept = sorted(path for path in (CORPUS / self.name).glob("*") if path.is_file())
        return [*(path.read_bytes() for path in kept), *self.made()]


def damaged(seed: bytes, text: bool) -> st.SearchStrategy[bytes]:
    """A seed with bytes replaced, words replaced, pieces left out and repeated, and its end cut off."""
    pieces = st.sampled_from(NUMBERS if text else INTEGERS) | st.binary(max_size=4)
    edit = st.tuples(st.integers(0, max(0, len(seed) - 1)), st.integers(0, 8), pieces, st.integers(0, 3))

    def apply(edits: list[tuple[int, int, bytes, int]]) -> bytes:
        found = bytearray(seed)
        for place, length, piece, how in edits:
            end = place + (length if how else len(piece))
            if text and how == 1:  # a whole word, such as a number
                while end < len(found) and chr(found[end]).isalnum():
                    end += 1
            found[place:end] = found[place:end] * 2 if how == 2 else piece if how != 3 else b""
        return bytes(found)

    return st.lists(edit, max_size=4).map(apply)


@contextlib.contextmanager
def file(content: bytes, name: str = "a") -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        path = Path(made, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        yield path


# --------------------------------------------------------------------------------------------------------- calibrations
def calibration(content: bytes) -> None:
    with file(content, "a.json") as path, contextlib.suppress(CliplocError):
        load_calibration(path)


# ------------------------------------------------------------------------------------------------------------- pictures
def picture(content: bytes) -> None:
    """A picture is read as RGB, and a label map as whole numbers."""
    with file(content) as path:
        for read in (lambda: np.asarray(load(path).image), lambda: read_labels(path)):
            try:
                found = read()
            except CliplocError as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                assert min(found.shape[:2]) > 0


def made_pictures() -> list[bytes]:
    pixels = np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    of_colours = [(pixels, one) for one in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM")]
    of_greys = [(pixels[..., 0], "PNG"), (pixels[..., 0].astype(np.int32), "TIFF"), (pixels[..., 0] > 99, "PNG")]
    made = []
    for array, kind in (*of_colours, *of_greys):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, kind, **({} if kind in ("GIF", "BMP", "PPM") else {"exif": exif}))
        made.append(buffer.getvalue())
    return made


# ---------------------------------------------------------------------------------------------------------------- texts
def label_file(content: bytes) -> None:
    with file(content, "labels.txt") as path, contextlib.suppress(CliplocError):
        found = labels.read_labels(path)
        assert len(found.entries) == len(found.thresholds)


def metadata(content: bytes) -> None:
    """Text files of data sets."""
    with file(content, "image_ids.txt") as path:
        for read in (csv_rows, lambda one: csv_rows(one, 2), lambda one: words(one, 2), listed):
            with contextlib.suppress(CliplocError):
                read(path)


def part(content: bytes) -> None:
    for line in content.splitlines():
        try:
            row = parse_json(line, AnnotatedRow)
        except DocumentError:
            continue
        json.dumps(row, allow_nan=False)
        assert all(math.isfinite(value) for box in row.get("boxes", ()) for value in box)


def saves(content: bytes) -> None:
    """corrections.jsonl of an editor that was killed."""
    with file(content, SAVES) as path, contextlib.suppress(CliplocError):
        before = corrections_in(path.parent, "0" * 16)
        merge_saves(path.parent, "0" * 16)
        assert not path.exists()
        assert corrections_in(path.parent, "0" * 16) == before


def manifest(content: bytes) -> None:
    with file(content, "manifest.json") as path, contextlib.suppress(CliplocError):
        assert folder.read_manifest(path.parent, KIND)["token"] == folder.token_for(path.parent)


def coco(content: bytes) -> None:
    with file(content, "annotations/instances_val2017.json") as path:
        (path.parents[1] / "val2017").mkdir()
        with contextlib.suppress(CliplocError):
            open_dataset("coco", path.parents[1])
    with contextlib.suppress(ValueError, LookupError, TypeError):
        for one in parse_json(content)["annotations"]:
            for outline in outlines_of(one["segmentation"], (40, 30)):
                assert draw(outline, (30, 40)).shape == (30, 40)


def phrases(content: bytes) -> None:
    """The files of RefCOCO, LVIS and Flickr30k Entities: each of these contents in turn."""
    sentences = {"test.txt": "7", "Sentences/7.txt": test_flickr30k.SENTENCES[0]}
    places = {
        "refcoco": ("refs(unc).json", {"instances.json": json.dumps(test_refcoco.INSTANCES)}, ("train2014",)),
        "lvis": ("lvis_v1_val.json", {}, ("val2017",)),
        "flickr30k": ("Annotations/7.xml", sentences, ("images",)),
    }
    for name, (place, others, folders) in places.items():
        with file(content, place) as path:
            root = path.parents[place.count("/")]
            for other, text in others.items():
                (root / other).parent.mkdir(exist_ok=True)
                (root / other).write_text(text)
            for one in folders:
                (root / one).mkdir()
            with contextlib.suppress(CliplocError):
                open_dataset(name, root)


SIZE, LABEL = (40, 30), ("cat",)
VOC = """<annotation><filename>{}.jpg</filename><size><width>40</width><height>30</height></size><object>
<name>cat</name><difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3.5</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object></annotation>"""
CVAT = """<annotations><image name="a.jpg" width="40" height="30"><box label="cat" xtl="1" ytl="2.5" xbr="9" ybr="8"
rotation="0"/><polygon label="cat" points="1,2;9,2;9,8.5"/><mask label="cat" rle="2, 6" left="1" top="2" width="4"
height="2"/></image></annotations>"""


def voc(content: bytes) -> None:
    """One file of a corrected set, beside a good one that stays; and of a data set."""
    with file(content, "a.xml") as path:
        (path.parent / "good-one.xml").write_text(VOC.format("good-one"))
        found = read_corrections(path.parent, {"a.jpg": SIZE, "good-one.jpg": SIZE}, [LABEL])
        assert "good-one.jpg" in found.pictures
        with contextlib.suppress(CliplocError):
            size = read_annotation(path).size_wh
            assert size is None or min(size) > 0


def cvat(content: bytes) -> None:
    with file(content, "a.xml") as path, contextlib.suppress(CliplocError):
        read_corrections(path, {"a.jpg": SIZE}, [LABEL], masks=True)


def yolo(content: bytes) -> None:
    """The boxes of one picture, of a corrected set and of a data set."""
    with file(content, "labels/a.txt") as path:
        (path.parents[1] / "data.yaml").write_text("names: [cat]\n")
        (path.parent / "b.txt").write_text("0 0.5 0.5 0.1 0.1\n")
        assert (
            "b.jpg" in read_corrections(path.parents[1], {"a.jpg": SIZE, "b.jpg": SIZE}, [LABEL], masks=True).pictures
        )
        (path.parents[1] / "images").mkdir()
        for name in ("a.png", "b.png"):
            Image.new("L", SIZE).save(path.parents[1] / "images" / name)
        assert "images/b.png/0" in {one.id for one in open_dataset("yolo", path.parents[1]).samples}


def class_list(content: bytes) -> None:
    """YAML, with the names of a YOLO set."""
    with file(content, "data.yaml") as path, contextlib.suppress(CliplocError):
        (path.parent / "labels").mkdir()
        (path.parent / "labels" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
        with contextlib.suppress(CliplocError):
            open_dataset("yolo", path.parent)
        read_corrections(path, {"a.jpg": SIZE}, [LABEL])


def run_lengths(content: bytes) -> None:
    with contextlib.suppress(CliplocError):
        assert rle.decode({"size": [5, 5], "counts": content.decode("latin-1")}).shape == (5, 5)


# -------------------------------------------------------------------------------------------------------------- weights
def checkpoint(content: bytes) -> None:
    """Weights in torch's two formats and as safetensors, trained heads, and what a folder has taught."""
    with file(content, "w.pt") as path, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (read_checkpoint, with_settings, read_config, load_learnt):
            try:
                read(path)
            except CliplocError as error:
                assert "\n" not in str(error)  # noqa: PT017


def with_settings(path: Path) -> None:
    """As C-RADIO's reader takes a file, with the settings of its training."""
    with contextlib.suppress(DocumentError):
        checked(dict(read_checkpoint(path, with_settings=True).settings), RadioSettings)


def made_checkpoints() -> list[bytes]:
    small = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.int64)}
    made = [save_tensors(small), save_tensors(small, {"cliploc_head": '{"format": 2, "classes": [], "templates": []}'})]
    learnt = {key: torch.ones(1) for key in ("bias", "share")}
    learnt |= {"weights": torch.ones(1, 4), "sides": torch.ones(1, LENGTH), "embedding": torch.ones(1, 2)}
    facts = '{"kind": "cliploc learnt", "version": 2, "names": ["cat"], "about": {}}'
    made.append(save_tensors(learnt, {"cliploc": facts}))
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(small, buffer, _use_new_zipfile_serialization=new)
        made.append(buffer.getvalue())
    teachers = [{"name": "clip", "type": "open_clip", "token_slot": 1}]
    buffer = io.BytesIO()
    torch.save({"state_dict": small, "args": Namespace(model="vit_base_patch16_224", teachers=teachers)}, buffer)
    made.append(buffer.getvalue())
    header = b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}'
    return [*made, struct.pack("<Q", len(header)) + header + bytes(8)]


# ------------------------------------------------------------------------------------------------- arrays and tables
def score_map(content: bytes) -> None:
    """A heatmap of another tool, as `cliploc evaluate` reads it."""
    with file(content, "a.npy") as path:
        for convention in get_args(Convention):
            with contextlib.suppress(CliplocError):
                assert checked_map(read_map(path, convention), convention).size > 0


def made_maps() -> list[bytes]:
    made = []
    for array in (np.ones((224, 224), np.float32), np.zeros((3, 4)), np.arange(6, dtype=">f2").reshape(2, 3)):
        buffer = io.BytesIO()
        np.save(buffer, np.asfortranarray(array))
        made.append(buffer.getvalue())
    return made


def matlab(content: bytes) -> None:
    """ImageNet-Segmentation, in HDF5."""
    with file(content, "gtsegs_ijcv.mat") as path, contextlib.suppress(CliplocError):
        for one in open_labelled("imagenet_seg", path.parent).samples:
            for read in (lambda one: np.asarray(one.picture()), lambda one: one.truth.read()):
                with contextlib.suppress(CliplocError):
                    assert min(read(one).shape[:2]) > 0


def made_matlab() -> list[bytes]:
    """Small pictures, so that most bytes are the file's own; plain, and compressed."""
    made = []
    for compression in (None, "gzip"):
        with tempfile.TemporaryDirectory() as folder:
            root = labelled.imagenet_seg(Path(folder), size_wh=(7, 5), compression=compression)
            made.append((root / "gtsegs_ijcv.mat").read_bytes())
    return made


def made_phrases() -> list[bytes]:
    documents = (json.dumps(one) for one in (test_refcoco.REFS, test_lvis.DOCUMENT))
    return [one.encode() for one in (*documents, test_flickr30k.XML)]


TARGETS = {
    one.name: one
    for one in (
        Target("picture", picture, made_pictures, text=False),
        Target("labels", label_file),
        Target("calibration", calibration, lambda: [json.dumps(own_calibration("mini").document()).encode()]),
        Target("metadata", metadata),
        Target("part", part),
        Target("saves", saves),
        Target("manifest", manifest),
        Target("coco", coco),
        Target("phrases", phrases, made_phrases),
        Target("voc", voc, lambda: [VOC.format("a").encode()]),
        Target("cvat", cvat, lambda: [CVAT.encode()]),
        Target("yolo", yolo, lambda: [b"0 0.5 0.5 0.1 0.1\n0 .1 .1 .9 .1 .9 .9\n"]),
        Target("class_list", class_list, lambda: [b"nc: 2\nnames:\n  0: cat\n  1: dog\n", b"names: [cat, 'a: b']"]),
        Target("run_lengths", run_lengths),
        Target("checkpoint", checkpoint, made_checkpoints, text=False),
        Target("score_map", score_map, made_maps, text=False),
        Target("matlab", matlab, made_matlab, text=False),
    )
}
