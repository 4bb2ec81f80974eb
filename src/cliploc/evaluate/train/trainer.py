"""Trains a head on cached features from image labels; resumed from an epoch's checkpoint, the same head."""

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import InputError, ModelError, UsageError
from cliploc.evaluate.train.features import FeatureCache
from cliploc.evaluate.train.train_settings import TrainSettings
from cliploc.evaluate.train.training_set import LabelledPictures, PictureSplit, hold_out, only_usable_classes
from cliploc.find import prompts
from cliploc.find.heads import HEADS, HeadConfig, SemanticHead, save_head, tower_fingerprint
from cliploc.find.texts import embed
from cliploc.support.files import user_path, write_output
from cliploc.support.reporter import SILENT, Reporter
from cliploc.towers.tower import Backbone
from cliploc.values import TextSet


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
    while len(run.history) < settings.epochs and not run.out_of_patience:
        epoch = run.epoch(reporter)
        write_history(folder, run.history)  # before the checkpoint: a kill between the two repeats the epoch
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

    @property
    def out_of_patience(self) -> bool:
        return len(self.history) - self.best_epoch >= self.settings.patience  # without a held-out part the last is best

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
            sums += self._backward(batch, which)
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

    def _backward(self, batch: np.ndarray[Any, Any], which: int) -> Tensor:
        """Computes the gradients of a batch; returns summed loss and hits, float64."""
        logits, target = self._logits(batch.tolist(), which, self.train_columns)
        loss = F.cross_entropy(logits, target)
        loss.backward()  # type: ignore[no-untyped-call]
        right = (logits.argmax(dim=1) == target).sum()
        return torch.stack([loss.detach().double() * len(batch), right.double()])

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


def write_history(folder: Path, history: Sequence[Epoch]) -> None:
    """Writes the table of epochs."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(asdict(history[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in history)
    write_output(folder / "history.csv", table.getvalue().encode(), "--out")
