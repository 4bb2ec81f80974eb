"""Names become embeddings, each once: by their words, or by pictures that stand for them (exemplars)."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import InputError, ModelError, UsageError
from cliploc.find import prompts
from cliploc.find.learnt import Learnt, load_learnt
from cliploc.find.memory import Memory, TextCache, cache_of
from cliploc.find.running import torch_modes
from cliploc.images.exemplars import Exemplar, exemplar_of
from cliploc.images.geometry import Frame
from cliploc.images.reading import load
from cliploc.options import Options
from cliploc.towers.tower import Backbone
from cliploc.values import TextSet

MOST_NAMES = 2**15  # that are kept in memory; a server is asked for new ones for ever
AT_ONCE = 256  # sentences that the text tower takes at once
NAMES_AT_ONCE = 64  # finished parts are kept when a thousand names are interrupted
REMARKS = 5  # on names, in a note each; more are only counted
ALIKE = 1 - 1e-5  # cosine of a name with its contrast from which their difference is nothing but rounding


@dataclass(frozen=True)
class Crop:
    """An exemplar's pixels."""

    exemplar: Exemplar  # what was asked for
    image: Image.Image  # RGB, upright, cut to the box
    digest: str  # SHA-256 of the pixels, which is part of a run's identity; the path is not


class Texts:
    """Embeds names with one model and templates; exemplars and `learnt` pictures stand for names, caches for work."""

    def __init__(
        self,
        backbone: Backbone,
        templates: tuple[str, ...],
        cache: TextCache | None = None,
        memory: Memory | None = None,
        exemplars: Mapping[str, Sequence[Crop]] | None = None,
        learnt: Learnt | None = None,
    ) -> None:
        self.backbone, self.templates, self.learnt = backbone, templates, learnt
        self._cache, self._memory, self._exemplars = cache, memory, exemplars or {}
        self._pictured: dict[str, Tensor] = {}  # name → the sum of its exemplars' embeddings
        self._embeddings: dict[tuple[str, ...], Tensor] = {}
        self._known_words = lru_cache(MOST_NAMES)(self._find_known)
        self._remark = lru_cache(MOST_NAMES)(backbone.remark)  # how the model reads a name; None: as it stands

    @classmethod
    def of(
        cls, backbone: Backbone, templates: tuple[str, ...], options: Options, crops: Mapping[str, Sequence[Crop]]
    ) -> Self:
        """Those of a localizer's options; what was learnt must fit the tower."""
        learnt = None if options.learnt is None else load_learnt(options.learnt)
        if learnt is not None:
            of_tower = {"model": backbone.name, "weights": backbone.weights_id}
            learnt.check({**of_tower, "embedding_size": backbone.embedding_size}, tuple(of_tower))
        cache = cache_of(backbone) if options.text_cache else None
        return cls(backbone, templates, cache, options.memory, crops, learnt)

    def embed(self, texts: TextSet) -> Tensor:
        """`[P, D]` unit norm; a name with exemplars is the mean of these and, where it counts too, its text."""
        with torch_modes(self.backbone.device):  # what is made is kept: also when only names are asked for
            spoken = [words for words in texts.synonyms if self._reads_text(words)]
            written = dict(zip(spoken, self._embed_words(spoken), strict=True)) if spoken else {}
            rows = []
            for words in texts.synonyms:
                pictured = self._of_pictures(words)
                if pictured is None:
                    rows.append(written[words])
                else:
                    rows.append(F.normalize(pictured + written[words] if words in written else pictured, dim=-1))
            return torch.stack(rows)

    def _reads_text(self, words: tuple[str, ...]) -> bool:
        if isinstance(words[0], prompts.Embedded):
            return False
        crops = self._exemplars.get(words[0])
        if crops:
            return crops[0].exemplar.with_text and self._known_words(words)[1] is None
        return not self.by_exemplars(words)

    def learnt_row(self, words: tuple[str, ...]) -> int | None:
        """The row of a name in what was learnt; None if it is not there."""
        return None if self.learnt is None else self.learnt.row(words[0])

    def learnt_rows(self, texts: TextSet) -> dict[int, tuple[int, float]]:
        """The number of each name that was learnt → its row, and the share of the text's map; see `Redrawn`."""
        if self.learnt is None:
            return {}
        rows = {p: self.learnt_row(words) for p, words in enumerate(texts.synonyms)}
        pictured = [self.by_exemplars(words) for words in texts.synonyms]  # then there is no map of a text
        return {p: (row, 0.0 if pictured[p] else self.learnt.share[row]) for p, row in rows.items() if row is not None}

    def _of_pictures(self, words: tuple[str, ...]) -> Tensor | None:
        """`[D]` the sum of the embeddings that stand for a name, of pictures or its own; None where none do."""
        name, row = words[0], self.learnt_row(words)
        if isinstance(name, prompts.Embedded):
            if (size := self.backbone.embedding_size) != len(name.embedding):
                got = f"{len(name.embedding)} for {str(name)!r}"
                raise UsageError(f"expected embeddings of {size} numbers, as {self.backbone.name} has, got {got}")
            return torch.from_numpy(name.embedding).to(self.backbone.device)
        if name not in self._exemplars:
            if self.learnt is None or row is None or not self.by_exemplars(words):
                return None
            return self.learnt.embedding[row].to(self.backbone.device)
        if name not in self._pictured:
            self._pictured[name] = embed_crops(self._exemplars[name], self.backbone).sum(dim=0)
        return self._pictured[name]

    def by_exemplars(self, words: tuple[str, ...]) -> bool:
        """Whether pictures or an embedding stand for a name, so that no presence score is calibrated for it."""
        if isinstance(words[0], prompts.Embedded) or words[0] in self._exemplars:
            return True
        row = self.learnt_row(words)
        if self.learnt is None or row is None:
            return False
        return self.learnt.share[row] == 0 or self._known_words(words)[1] is not None

    def presence_unknown(self, words: tuple[str, ...]) -> bool:
        """Whether the model cannot say if a name is in a picture, as it does not know it; it may have been learnt."""
        learnt = self.by_exemplars(words) and self.learnt_row(words) is not None
        return learnt or self.unknown_reason(words) is not None

    def learnt_presence(self, texts: TextSet, embedding: Tensor) -> Tensor:
        """The chance that names are in a picture `[D]`, by what was learnt: `[P]`; NaN of those where nothing was."""
        chances = embedding.new_full((len(texts),), torch.nan)
        if self.learnt is not None:
            rows = {p: row for p, words in enumerate(texts.synonyms) if (row := self.learnt_row(words)) is not None}
            chances[[*rows]] = self.learnt.chances(embedding, [*rows.values()])
        return chances

    def remarks(self, texts: TextSet) -> tuple[str, ...]:
        """Notes for a result with these names: how they are read (`readings`), and on exemplars and learnt names."""
        pictured = [words for words in texts.synonyms if self.by_exemplars(words)]
        learnt = [words[0] for words in pictured if self.presence_unknown(words) and not self._tells_presence(words)]
        others = [words[0] for words in pictured if not self.presence_unknown(words)]
        notes = [*self.readings(texts)]
        if learnt:
            notes.append(f"presence is not known of names that were learnt without text: {', '.join(learnt)}")
        if others:
            notes.append(
                f"presence is not calibrated where pictures or embeddings stand for a name: {', '.join(others)}"
            )
        return tuple(notes)

    def _tells_presence(self, words: tuple[str, ...]) -> bool:
        """Whether what was learnt of a name tells if it is in a picture."""
        row = self.learnt_row(words)
        return self.learnt is not None and row is not None and bool(self.learnt.alike[row].isfinite().all())

    def readings(self, texts: TextSet) -> tuple[str, ...]:
        """How names and contrasts are read that the model does not read as they stand, each in one line."""
        read: list[str | None] = []
        for words in texts.synonyms + texts.contrasts:
            if words and self._reads_text(words):
                read += map(self._remark, words)
                if self._known_words(words)[1] is None:
                    read += [self._known_words((word,))[1] for word in words]  # of those that are left out
        notes = list(dict.fromkeys(filter(None, read)))
        if len(notes) > REMARKS:
            notes[REMARKS:] = [f"{len(notes) - REMARKS} more names are not read as they stand"]
        return tuple(notes)

    @property
    def exemplar_facts(self) -> dict[str, list[str]]:
        """Name → checksums of its exemplars, and "text" where its text counts too: part of a run's identity."""
        return {
            name: [*(crop.digest for crop in crops), *(["text"] if crops[0].exemplar.with_text else [])]
            for name, crops in self._exemplars.items()
        }

    def _embed_words(self, synonyms: Sequence[tuple[str, ...]]) -> Tensor:
        """`[P, D]` unit norm of names by their words."""
        if len(self._embeddings) > MOST_NAMES + len(synonyms):
            self._embeddings = {}
        known, embeddings = [self._known_words(words)[0] for words in synonyms], self._embeddings
        new = []
        for words in dict.fromkeys(known):
            if words not in embeddings and (cached := self._cached(words, self._cache)) is not None:
                embeddings[words] = cached.to(self.backbone.device)
            elif words not in embeddings:
                new.append(words)
        for start in range(0, len(new), NAMES_AT_ONCE):
            part = new[start : start + NAMES_AT_ONCE]
            fresh = self._encoded(part)
            embeddings.update(zip(part, fresh, strict=True))
            for words, embedding in zip(part, fresh, strict=True):
                self._store(words, embedding, self._cache)
        return torch.stack([embeddings[words] for words in known])

    def embed_sentences(
        self, sentences: tuple[str, ...], cache: TextCache | None, progress: Callable[[int, int], None]
    ) -> Tensor:
        """`[n, D]` unit norm, cached together; `progress` is told how many more are embedded, and how many are left."""
        plain, size = self.beside(("{}",)), self.backbone.embedding_size
        with torch_modes(self.backbone.device):
            cached = plain._cached(sentences, cache, len(sentences))
            if cached is None:
                progress(0, len(sentences))
                parts = []
                for start in range(0, len(sentences), NAMES_AT_ONCE):
                    part = sentences[start : start + NAMES_AT_ONCE]
                    parts.append(plain._encoded([(sentence,) for sentence in part]))
                    progress(len(part), len(sentences) - start - len(part))
                cached = torch.cat(parts).flatten() if parts else torch.zeros(0)
                plain._store(sentences, cached, cache)
            return cached.to(self.backbone.device).view(len(sentences), size)

    def _encoded(self, synonyms: Sequence[tuple[str, ...]]) -> Tensor:
        texts = TextSet(tuple(words[0] for words in synonyms), tuple(synonyms), self.templates)
        return embed(texts, self.backbone.encode_text)

    def _cached(self, words: tuple[str, ...], cache: TextCache | None, count: int = 1) -> Tensor | None:
        """Embeddings `[count · D]` in memory or on disk, if they are there."""
        cached = None if self._memory is None else self._memory.text(self.backbone, words, self.templates)
        if cached is None and cache is not None:
            cached = cache.get(words, self.templates, count * self.backbone.embedding_size)
            if cached is not None and count > 1:
                self._store(words, cached, None)
        return cached

    def _store(self, words: tuple[str, ...], embedding: Tensor, cache: TextCache | None) -> None:
        if cache is not None:
            cache.put(words, self.templates, embedding)
        if self._memory is not None:
            self._memory.keep_text(self.backbone, words, self.templates, embedding)

    def beside(self, templates: tuple[str, ...]) -> "Texts":
        """A `Texts` with other templates, with the same cache and memory."""
        if templates == self.templates:
            return self
        return Texts(self.backbone, templates, self._cache, self._memory, self._exemplars, self.learnt)

    def contrasts(self, texts: TextSet) -> Tensor | None:
        """`[P, D]` unit norm: what each name is told from, NaN for a name without a contrast; None if none has one."""
        some = tuple(words for words in texts.contrasts if words)
        if not some:
            return None
        embeddings = self.embed(TextSet(tuple(words[0] for words in some), some, self.templates))
        rows = embeddings.new_full((len(texts), embeddings.shape[1]), torch.nan)
        rows[[bool(words) for words in texts.contrasts]] = embeddings
        return rows

    def directions(self, texts: TextSet) -> Tensor:
        """`[P, D]`, what methods explain: each name, minus its contrast if it has one."""
        names, contrasts = self.embed(texts), self.contrasts(texts)
        return names if contrasts is None else names - contrasts.nan_to_num(0.0)

    def empty_name(self, texts: TextSet | None = None) -> Tensor:
        """`[P, D]` for `Context.redundant`: the empty name's embedding, or zero where a contrast is subtracted."""
        empty = self.embed(TextSet(("",), (("",),), self.templates))
        bare = [not words for words in texts.contrasts] if texts else [True]
        return empty * torch.tensor(bare).to(empty)[:, None]

    def unknown_reasons(self, texts: TextSet) -> tuple[str | None, ...]:
        """For each name, why the model cannot know it or tell it from its contrast; None when it can."""
        reasons = [self.unknown_reason(words) for words in texts.synonyms]
        contrasts = self.contrasts(texts)
        if contrasts is None:
            return tuple(reasons)
        alike = ((contrasts * self.embed(texts)).sum(dim=1) > ALIKE).tolist()
        for p, words in enumerate(texts.contrasts):
            if words and reasons[p] is None:
                notes = (
                    f"{self.backbone.name} reads {texts.synonyms[p][0]!r} and {words[0]!r} alike: name another contrast"
                )
                reasons[p] = self.unknown_reason(words) or (notes if alike[p] else None)
        return tuple(reasons)

    def unknown_reason(self, words: tuple[str, ...]) -> str | None:
        """Why the model cannot know a name by any of its synonyms; None when it can, or when pictures stand for it."""
        if not self._reads_text(words):
            return None
        return self._known_words(words)[1]

    def _find_known(self, words: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
        """The synonyms that the model knows, and None; if it knows none, all synonyms and the reason."""
        reasons = [self.backbone.unknown_reason(word) for word in words]
        known = tuple(word for word, reason in zip(words, reasons, strict=True) if reason is None)
        return (known, None) if known else (words, reasons[0])


def read_exemplars(exemplars: Sequence[str | Exemplar]) -> dict[str, list[Crop]]:
    """Name → its exemplars' pixels."""
    crops: dict[str, list[Crop]] = {}
    for entry in exemplars:
        exemplar = exemplar_of(entry) if isinstance(entry, str) else entry
        source = f"the exemplar of {exemplar.name!r}"
        try:
            image = load(exemplar.image, source).image
        except InputError as error:
            raise InputError(f"{error} (an exemplar of {exemplar.name!r})") from None
        if exemplar.box is not None:
            x0, y0, x1, y1 = (round(edge) for edge in exemplar.box)
            if not (0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height):
                raise UsageError(
                    f"expected the box of {source} inside its {image.width}×{image.height} pixels, got "
                    f"{[x0, y0, x1, y1]}"
                )
            image = image.crop((x0, y0, x1, y1))
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        beside = crops.setdefault(exemplar.name, [])
        if beside and beside[0].exemplar.with_text != exemplar.with_text:
            raise UsageError(
                f"expected all exemplars of {exemplar.name!r} with its text or without, got both: choose one"
            )
        beside.append(Crop(exemplar, image, digest))
    return crops


def embed_crops(crops: Sequence[Crop], backbone: Backbone) -> Tensor:
    """`[n, D]` float32, unit norm: each crop is fitted to the model's input as any picture is."""
    rows = []
    for crop in crops:
        try:
            frame = Frame.fit(backbone.resize_policy, (crop.image.height, crop.image.width), backbone.input_hw)
        except InputError:  # too narrow to be cropped or padded: stretched
            frame = Frame.fit("squash", (crop.image.height, crop.image.width), backbone.input_hw)
        pixels = np.asarray(frame.apply(crop.image, backbone.interpolation)).transpose(2, 0, 1).copy()
        images = torch.from_numpy(pixels)[None].to(backbone.device).float() / 255  # [1, 3, H, W]
        rows.append(F.normalize(backbone.encode_image(backbone.normalize(images)).float(), dim=-1)[0])
    return torch.stack(rows)


def embed(texts: TextSet, encode: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """One embedding for each name, `[P, D]` float32, unit norm, by a backbone's `encode_text`.

    "Embed every (name, template), L2-normalise each, average over both, normalise again" (Radford 2021, section 3.1.4;
    the average over synonyms as in VL-Score, Gao & Wang 2022).
    """
    sentences = [t.replace("{}", word) for words in texts.synonyms for word in words for t in texts.templates]
    parts = [sentences[start : start + AT_ONCE] for start in range(0, len(sentences), AT_ONCE)]
    each = F.normalize(torch.cat([*map(encode, parts)]).float(), dim=-1)  # [Σ synonyms · templates, D]
    if not (numbers := each.isfinite().all(dim=1)).all():
        raise ModelError(
            f"the model gave an embedding that is not a number for {sentences[int(numbers.int().argmin())]!r}: use a "
            "higher precision or check the weights"
        )
    counts = [len(words) * len(texts.templates) for words in texts.synonyms]
    if len(each) > len(counts):
        each = torch.stack([group.mean(dim=0) for group in torch.split(each, counts)])  # [P, D]
    return F.normalize(each, dim=-1)
