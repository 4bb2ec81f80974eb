"""Trains a head from image labels: the pictures, their cached features, and epochs that resume to the same head."""

import csv
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import InputError, ModelError, UsageError
from cliploc.evaluate.train.train_settings import TrainSettings
from cliploc.find import prompts
from cliploc.find.heads import HEADS, HeadConfig, Seen, SemanticHead, look, save_head, seen_needs, tower_fingerprint
from cliploc.find.texts import embed
from cliploc.images.geometry import Frame
from cliploc.images.reading import SUFFIXES, load
from cliploc.methods import Context
from cliploc.support.files import csv_text, files_below, read_text, user_path, write_output
from cliploc.support.reporter import SILENT, Reporter
from cliploc.towers.tower import Backbone
from cliploc.values import Interpolation, ResizePolicy, TextSet

CROP = 224 / 256  # side of a random crop, as a share of the resized picture's: 224 of 256, as published


@dataclass(frozen=True)
class LabelledPictures:
    """A training set of pictures with one label each."""

    paths: tuple[Path, ...]  # paths of the pictures, in a fixed order
    labels: tuple[int, ...]  # for each picture an index into `classes`
    classes: tuple[tuple[str, ...], ...]  # each class as its name followed by its synonyms

    def __len__(self) -> int:
        return len(self.paths)


def read_folder(root: str | Path) -> LabelledPictures:
    """A training set `ROOT/CLASS/…/picture`; "cat,kitten" has a synonym, or CLASS is a WordNet id."""
    root = user_path(root)
    if not root.is_dir():
        raise UsageError(
            f"expected --root to be a folder with a folder for each class, got {root}, which is "
            "not a folder: check the path"
        )
    rows = []
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    for folder in folders:
        paths = [path for path in files_below(folder) if path.suffix.lower() in SUFFIXES and path.is_file()]
        rows += [(path, folder.name) for path in paths]
    # A class without pictures is one of those that `train` says it leaves out.
    return _labelled(rows, [folder.name for folder in folders], f"a folder for each class in {root}")


def read_csv(file: str | Path) -> LabelledPictures:
    """A training set of lines `path,label`, paths from the file's folder, "cat|kitten" or a WordNet id."""
    file = user_path(file)
    try:
        lines = list(csv.reader(read_text(file).splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"expected --root to be a CSV file of path,label, but {file} cannot be read: {reason}"
        ) from None
    rows = []
    for number, cells in enumerate(lines, start=1):
        if not any(cells) or (number == 1 and [cell.strip().lower() for cell in cells] == ["path", "label"]):
            continue
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            raise UsageError(f"{file}, line {number}: expected path,label, got {','.join(cells)!r}")
        rows.append((file.parent / cells[0].strip(), cells[1].strip()))
    rows = [*dict.fromkeys(rows)]  # a picture that is there twice must not be trained on and held out
    return _labelled(rows, [label for _, label in rows], f"lines path,label in {file}")


def _labelled(rows: list[tuple[Path, str]], labels: list[str], where: str) -> LabelledPictures:
    wordnet = prompts.imagenet_entries()
    if (count := len({label for _, label in rows})) < 2:
        raise UsageError(f"expected pictures of at least two classes ({where}), found {count}: add another class")
    entries = {label: wordnet.get(label, _entry(label)) for label in labels}
    texts = prompts.parse(list(entries.values()), contrasts=False)
    index = {label: number for number, label in enumerate(entries)}
    return LabelledPictures(tuple(path for path, _ in rows), tuple(index[label] for _, label in rows), texts.synonyms)


def only_usable_classes(pictures: LabelledPictures, usable: tuple[int, ...]) -> LabelledPictures:
    """The set without classes of which no picture can be read: those pictures get the label −1."""
    used = sorted({pictures.labels[number] for number in usable})
    if len(used) < 2:
        raise UsageError(
            f"expected pictures that can be read of at least two classes, got them of {len(used)} of "
            f"{len(pictures.classes)}: check the files"
        )
    place = {label: index for index, label in enumerate(used)}
    labels = tuple(place.get(label, -1) for label in pictures.labels)
    return LabelledPictures(pictures.paths, labels, tuple(pictures.classes[label] for label in used))


def _entry(label: str) -> str:
    words = [word for word in re.split(r"[|,]", label) if word.strip()]
    return "|".join(word if " " in word.strip() else word.replace("_", " ") for word in words) or label


def view(
    path: Path,
    number: int,
    which: int,
    policy: ResizePolicy,
    input_hw: tuple[int, int],
    interpolation: Interpolation = "bicubic",
) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """`[3, H, W]` uint8: view 0 as in localisation, others random crops of 7/8 with flips, by their numbers."""
    image = load(path).image
    height, width = input_hw
    if which == 0:
        laid = Frame.fit(policy, (image.height, image.width), input_hw).apply(image, interpolation)
    else:
        larger = (round(height / CROP), round(width / CROP))
        laid = Frame.fit(policy, (image.height, image.width), larger).apply(image, interpolation)
        random = np.random.default_rng([which, number])
        y, x = (int(random.integers(0, big - small + 1)) for big, small in zip(larger, input_hw, strict=True))
        laid = laid.crop((x, y, x + width, y + height))
        if random.random() < 0.5:
            laid = laid.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.ascontiguousarray(np.asarray(laid).transpose(2, 0, 1))


@dataclass(frozen=True)
class PictureSplit:
    """The split into training and held-out pictures; indices into `LabelledPictures.paths`."""

    train: tuple[int, ...]  # pictures to train on
    held_out: tuple[int, ...]  # pictures to validate on; may be empty
    train_classes: tuple[int, ...]  # the classes to choose from in training
    held_out_classes: tuple[int, ...]  # the classes to choose from in validation


def hold_out(labels: tuple[int, ...], usable: tuple[int, ...], share: float, by: str, seed: int) -> PictureSplit:
    """Holds out this share, of each class's "pictures" (one stays) or of "classes", for early stopping."""
    random = np.random.default_rng([seed, 0])
    of_class: dict[int, list[int]] = {}
    for index in usable:
        of_class.setdefault(labels[index], []).append(index)
    classes = sorted(of_class)
    if by == "classes":
        count = round(share * len(classes))
        if share > 0 and not 2 <= count <= len(classes) - 2:
            raise UsageError(
                f"expected --held-out to hold out at least two of {len(classes)} classes and leave two, got {share:g}"
            )
        out = set(random.permutation(classes)[:count].tolist())
        validation = [index for label in sorted(out) for index in of_class[label]]
        train = [index for label in classes if label not in out for index in of_class[label]]
        return PictureSplit(
            tuple(train), tuple(validation), tuple(c for c in classes if c not in out), tuple(sorted(out))
        )
    train, validation = [], []
    for label in classes:
        order = random.permutation(of_class[label]).tolist()
        count = min(len(order) - 1, round(share * len(order)) or (1 if len(order) * share >= 0.5 else 0))
        validation += order[:count]
        train += order[count:]
    if share > 0 and not validation:
        most = max(Counter(labels[index] for index in usable).values())
        raise UsageError(
            f"a share of {share:g} holds out no picture of classes with at most {most}: use a larger --held-out, "
            f"0 for none, or --hold-out classes with an open head"
        )
    return PictureSplit(tuple(sorted(train)), tuple(sorted(validation)), tuple(classes), tuple(classes))


# ------------------------------------------------------------------------------------------------------------- features
FORMAT = 2  # raise it when the stored values change
PART_BYTES = 16 << 20  # size of a file
DECODERS = 2  # threads that read the next pictures while the tower computes
Pixels = npt.NDArray[np.uint8]


class FeatureCache:
    """The features of a training set, in its folder of a folder of features: a file for each view and part."""

    def __init__(
        self,
        folder: Path,
        backbone: Backbone,
        pictures: LabelledPictures,
        *,
        dense: bool,  # whether to store the tower's dense reading too (for open heads that start from it)
        augmentations: int,  # number of views besides the plain one
        input_hw: tuple[int, int],  # height and width of the tower's input
        batch_size: int = 16,  # pictures sent through the tower at once; not part of the digest
    ) -> None:
        self.backbone, self.pictures = backbone, pictures
        self.dense, self.augmentations, self.input_hw, self.batch_size = dense, augmentations, input_hw, batch_size
        features = self._look(np.zeros((1, 3, *input_hw), np.uint8))
        self.channels = features.tokens.shape[1]
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(features).values())
        self.part_size = max(1, min(256, PART_BYTES // size))
        self.folder = folder / self._digest()[:24]
        self._load = cache(_load)

    def _digest(self) -> str:
        files = []
        for path in self.pictures.paths:
            status = path.stat() if path.exists() else None
            files.append((str(path), -1, -1) if status is None else (str(path), status.st_size, status.st_mtime_ns))
        tower = self.backbone
        of = [FORMAT, tower.weights_id, tower.resize_policy, files, tower.interpolation, self.input_hw, self.part_size]
        return hashlib.sha256(json.dumps([*of, self.dense]).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def parts(self) -> list[tuple[int, int]]:
        """All `(view, part)`."""
        count = math.ceil(len(self.pictures) / self.part_size)
        return [(which, part) for which in range(self.augmentations + 1) for part in range(count)]

    def fill(self, reporter: Reporter = SILENT) -> None:
        """Computes missing features."""
        missing = [key for key in self.parts if not self._path(*key).exists()]
        if missing:
            count = sum(len(self._rows(part)) for _, part in missing)
            reporter.phase("features of the frozen tower")
            reporter.start(count, count)
        with ThreadPoolExecutor(DECODERS, "cliploc-decode") as pool:
            for key in missing:
                self._make(*key, pool, reporter)

    def _make(self, which: int, part: int, pool: ThreadPoolExecutor, reporter: Reporter) -> None:
        def decoded(number: int) -> Pixels | None:
            path, tower = self.pictures.paths[number], self.backbone
            try:
                return view(path, number, which, tower.resize_policy, self.input_hw, tower.interpolation)
            except InputError:
                return None

        made: list[dict[str, Tensor]] = []
        readable: list[bool] = []
        blank = np.zeros((3, *self.input_hw), np.uint8)
        decoding = pool.map(decoded, self._rows(part))
        while chunk := list(itertools.islice(decoding, self.batch_size)):
            readable += [pixels is not None for pixels in chunk]
            made.append(_tensors(self._look(np.stack([blank if pixels is None else pixels for pixels in chunk]))))
            reporter.images(len(chunk))
        tensors = {name: torch.cat([chunk[name] for chunk in made]) for name in made[0]}
        tensors["readable"] = torch.tensor(readable, dtype=torch.uint8)
        write_output(self._path(which, part), save(tensors), "--features")

    @torch.no_grad()
    def _look(self, pixels: Pixels) -> Seen:
        backbone = self.backbone
        images = backbone.normalize(torch.from_numpy(pixels).to(backbone.device).float().div_(255))
        trace = backbone.trace(images, seen_needs(backbone.kind, attention=True, dense=self.dense))
        text = torch.zeros(len(images), 1, backbone.embedding_size, dtype=torch.float32, device=backbone.device)
        return look(Context(lambda: images, text, trace, backbone), attention=True, dense=self.dense)

    def _rows(self, part: int) -> range:
        return range(part * self.part_size, min(len(self.pictures), (part + 1) * self.part_size))

    def _path(self, which: int, part: int) -> Path:
        return self.folder / f"view-{which:02d}" / f"part-{part:05d}.safetensors"

    def usable(self) -> tuple[int, ...]:
        """The pictures that could be read, in all views."""
        usable = set(range(len(self.pictures)))
        for which, part in self.parts:
            readable = self._load(self._path(which, part))["readable"].tolist()
            usable -= {number for number, good in zip(self._rows(part), readable, strict=True) if not good}
        if not usable:
            raise UsageError(f"expected pictures that can be read, got none of {len(self.pictures)}: check --root")
        return tuple(sorted(usable))

    def rows(self, numbers: Sequence[int], which: int, device: torch.device) -> Seen:
        """The features of some pictures in one view, float32."""
        places = [divmod(number, self.part_size) for number in numbers]
        rows = [(self._load(self._path(which, part)), row) for part, row in places]
        names = rows[0][0].keys() - {"readable"}
        stacked = {name: torch.stack([tensors[name][row] for tensors, row in rows]) for name in names}
        return Seen(**{name: tensor.to(device).float() for name, tensor in stacked.items()})


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)  # memory-mapped: nothing is read before it is used
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"cannot read features in {path}: {error}: delete it and start again") from None


def _tensors(seen: Seen) -> dict[str, Tensor]:
    """The tensors to store. Half precision is enough for values of variance or length 1, and takes half the space."""
    tensors = {"tokens": seen.tokens.half(), "attention": seen.attention.float()}
    if seen.dense is not None:
        tensors["dense"] = seen.dense.half()
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


# ------------------------------------------------------------------------------------------------------------- training
@dataclass(frozen=True)
class Epoch:
    """The numbers of one epoch."""

    epoch: int  # its number, from 1
    lr: float  # learning rate at its end
    loss: float  # mean cross-entropy in training
    train_accuracy: float  # top-1 accuracy in training
    accuracy: float | None  # top-1 accuracy on the held-out part; None without one

    def line(self, of: int) -> str:
        """The epoch as a line for the terminal."""
        validation = "" if self.accuracy is None else f", held out {self.accuracy:.3f}"
        return f"epoch {self.epoch} of {of}  loss {self.loss:.4f}  accuracy {self.train_accuracy:.3f}{validation}"


@dataclass(frozen=True)
class Trained:
    """The result of a training."""

    head: SemanticHead  # the head of the best epoch, on the CPU
    history: tuple[Epoch, ...]  # the numbers of all epochs
    best: int  # the epoch of the head: the best on the held-out part, or the last
    parts: PictureSplit  # the split of the pictures
    unread: tuple[str, ...]  # the pictures that could not be read


def train(
    backbone: Backbone,
    pictures: LabelledPictures,
    out: str | Path,
    settings: TrainSettings,
    *,
    features: str | Path | None = None,
    input_hw: tuple[int, int] | None = None,
    templates: Sequence[str] | str | None = None,
    pretrained: str | None = None,
    reporter: Reporter = SILENT,
) -> Trained:
    """Trains a head and saves it.

    Beside `out`, in the folder `<out>.training`, are the checkpoint of the last epoch and `history.csv`. Started again
    with the same settings, training resumes from the checkpoint.

    A class of which no picture can be read is left out, so the head does not know it. In training a picture counts once
    per epoch for the reporter.

    Args:
        features: folder of the cached features; None for `features` beside `out`.
        input_hw: height and width of the tower's input; None for the tower's own.
        templates: prompt templates that an open head is trained with; as for `Localizer`.
    """
    out, sentences = user_path(out), prompts.resolve_templates(templates)
    if input_hw is not None:
        backbone.grid(*input_hw)  # refuses a size that is not a multiple of the patch
    cache = FeatureCache(
        user_path(features or out.parent / "features"),
        backbone,
        pictures,
        dense=settings.kind == "open" and settings.start == "zero-shot",
        augmentations=settings.augmentations,
        input_hw=input_hw or backbone.input_hw,
    )
    cache.fill(reporter)
    usable = cache.usable()
    unread = [str(pictures.paths[number]) for number in sorted({*range(len(pictures))}.difference(usable))]
    for path in unread:
        reporter.failed(path, InputError(f"{path} cannot be read as a picture"))
    classes, pictures = pictures.classes, only_usable_classes(pictures, usable)
    parts = hold_out(pictures.labels, usable, settings.held_out, settings.hold_out, settings.seed)
    text = _text(backbone, pictures, sentences) if settings.kind == "open" else None
    config = HeadConfig(
        method=settings.method,
        kind=settings.kind,
        classes=pictures.classes,
        channels=cache.channels,
        embedding_size=backbone.embedding_size,
        logit_scale=float(backbone.logit_scale),
        tower=backbone.name,
        tower_kind=backbone.kind,
        weights=backbone.weights_id,
        start=settings.start,
        experts=settings.experts,
        pretrained=pretrained,
        templates=sentences,
        training=asdict(settings),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = HEADS[settings.method](config)
    run = _Training(settings, cache, pictures.labels, parts, text, head.to(backbone.device))

    folder = out.with_name(out.name + ".training")
    checkpoint = folder / "checkpoint.safetensors"
    identity = f"{asdict(config)} {parts} {pictures.labels} {cache.folder.name}"
    digest = hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()
    run.resume(checkpoint, digest)
    reporter.phase("training")
    if lost := [words[0] for words in classes if words not in pictures.classes]:
        reporter.note(f"left out, as none of their pictures can be read: {', '.join(lost)}")
    reporter.start((settings.epochs - len(run.history)) * len(parts.train), settings.epochs * len(parts.train))
    # Without a held-out part the last is the best.
    while len(run.history) < min(settings.epochs, run.best_epoch + settings.patience):
        epoch = run.epoch(reporter)
        rows = [asdict(one) for one in run.history]  # before the checkpoint: a kill between the two repeats the epoch
        write_output(folder / "history.csv", csv_text([*rows[0]], rows).encode(), "--out")
        run.save(checkpoint, digest)
        reporter.note(epoch.line(settings.epochs))

    best = replace(config, training={**asdict(settings), "history": [asdict(epoch) for epoch in run.history]})
    trained = HEADS[settings.method](best)
    trained.load_state_dict(run.best_weights)
    trained.eval().requires_grad_(False)
    save_head(out, trained, tower_fingerprint(backbone))
    return Trained(trained, tuple(run.history), run.best_epoch, parts, tuple(unread))


@torch.no_grad()
def _text(backbone: Backbone, pictures: LabelledPictures, templates: Sequence[str]) -> Tensor:
    """The classes' text embeddings, `[classes, D]`, from the synonyms that the model knows."""
    synonyms = []
    for words in pictures.classes:
        reasons = [backbone.unknown_reason(word) for word in words]
        if all(reasons):
            raise UsageError(f"class {words[0]!r} cannot be learnt by an open head: {reasons[0]}: rename or remove it")
        synonyms.append(tuple(word for word, reason in zip(words, reasons, strict=True) if reason is None))
    texts = TextSet(tuple(words[0] for words in pictures.classes), tuple(synonyms), tuple(templates))
    return embed(texts, backbone.encode_text)


class _Training:
    """The state of a training between two epochs, with the step to the next."""

    def __init__(
        self,
        settings: TrainSettings,
        cache: FeatureCache,
        labels: tuple[int, ...],
        parts: PictureSplit,
        text: Tensor | None,
        head: SemanticHead,
    ) -> None:
        self.settings, self.cache, self.labels, self.parts = settings, cache, labels, parts
        self.text, self.head = text, head
        self.device = next(head.parameters()).device
        self.history: list[Epoch] = []
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        s = settings
        if s.optimizer == "adamw":
            adamw = torch.optim.AdamW(head.parameters(), s.lr, weight_decay=s.weight_decay)
            self.optimizer: torch.optim.Optimizer = adamw
        else:
            self.optimizer = torch.optim.SGD(head.parameters(), s.lr, momentum=0.9, weight_decay=s.weight_decay)
        # The classes to choose from: rows of `text`, columns of a closed head's logits.
        self.train_columns = torch.tensor(parts.train_classes, device=self.device)
        self.validation_columns = torch.tensor(parts.held_out_classes, device=self.device)
        self.steps_an_epoch = math.ceil(len(parts.train) / s.batch_size)

    # ------------------------------------------------------------------------------------------------------ one epoch
    def epoch(self, reporter: Reporter) -> Epoch:
        """Trains on the training part once, then computes the accuracy on the held-out part."""
        number, s = len(self.history), self.settings
        which = number % (s.augmentations + 1)
        order = np.random.default_rng([s.seed, 1, number]).permutation(self.parts.train)
        batches = np.array_split(order, range(s.batch_size, len(order), s.batch_size))
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)  # loss, right
        for step, batch in enumerate(batches):
            done, every = number * self.steps_an_epoch + step, s.epochs * self.steps_an_epoch  # steps
            lr = s.lr * 0.5 * (1 + math.cos(math.pi * done / every))
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.zero_grad()
            logits, target = self._logits(batch.tolist(), which, self.train_columns)
            batch_loss = F.cross_entropy(logits, target)
            batch_loss.backward()  # type: ignore[no-untyped-call]
            hits = (logits.argmax(dim=1) == target).sum()
            sums += torch.stack([batch_loss.detach().double() * len(batch), hits.double()])
            self.optimizer.step()
            reporter.images(len(batch))
        loss, right = (sums / len(order)).tolist()
        accuracy = self._accuracy() if self.parts.held_out else None
        if not math.isfinite(loss):
            raise ModelError(f"the loss is not a number in epoch {number + 1}: use a smaller --lr than {s.lr:g}")
        self.history.append(Epoch(number + 1, lr, loss, right, accuracy))
        best = self.history[self.best_epoch - 1].accuracy if self.best_epoch else None
        if accuracy is None or best is None or accuracy > best:
            self.best_epoch = number + 1
            self.best_weights = {name: t.detach().cpu().clone() for name, t in self.head.state_dict().items()}
        return self.history[-1]

    def _logits(self, numbers: list[int], which: int, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[B, columns]` float32 and targets `[B]` among the columns."""
        seen = self.cache.rows(numbers, which, self.device)
        text = None if self.text is None else self.text[columns]
        logits = self.head(seen, text).float()
        logits = logits[:, columns] if text is None else logits
        labels = torch.tensor([self.labels[number] for number in numbers], device=self.device)
        return logits, torch.searchsorted(columns, labels)

    @torch.no_grad()
    def _accuracy(self) -> float:
        """Top-1 accuracy on the held-out part, in the plain view."""
        held_out = self.parts.held_out
        right = torch.zeros((), device=self.device)
        for start in range(0, len(held_out), self.settings.batch_size):
            numbers = list(held_out[start : start + self.settings.batch_size])
            logits, target = self._logits(numbers, 0, self.validation_columns)
            right += (logits.argmax(dim=1) == target).sum()
        return float(right) / len(held_out)

    # ------------------------------------------------------------------------------------------------ save and resume
    def save(self, path: Path, digest: str) -> None:
        """Writes a checkpoint: everything that the next epoch depends on."""
        tensors = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        states: dict[int, dict[str, Tensor | None]] = self.optimizer.state_dict()["state"]
        for index, state in states.items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if value is not None}
        history = msgspec.json.encode(self.history).decode()
        metadata = {"digest": digest, "history": history, "best_epoch": str(self.best_epoch)}
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
        write_output(path, content, "--out")

    def resume(self, path: Path, digest: str) -> None:
        """Loads the checkpoint, if there is one."""
        if not path.exists():
            return
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            same, history = metadata["digest"] == digest, msgspec.json.decode(metadata["history"], type=list[Epoch])
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _under("optimizer.", tensors).items():
                index, key = name.split(".", 1)
                state.setdefault(int(index), {})[key] = tensor
            groups = self.optimizer.state_dict()["param_groups"]
            if same:
                self.head.load_state_dict(_under("head.", tensors))
                self.optimizer.load_state_dict({"state": state, "param_groups": groups})
                self.history, self.best_epoch = history, int(metadata["best_epoch"])
                self.best_weights = _under("best.", tensors)
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UsageError(f"cannot read the checkpoint {path} ({reason}): delete it to start again") from None
        if not same:
            raise UsageError(
                f"{path.parent} holds a training with other settings, pictures or weights: delete it to start again, "
                "or choose another --out"
            )


def _under(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
