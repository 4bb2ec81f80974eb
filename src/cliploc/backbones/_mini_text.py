"""The text tower of `mini`: it embeds a name as a mixture of ImageNet's classes and of WordNet's nodes above them.

An embedding is unit(Σ_n p_n(text) · row_n): row_n is the classifier's centred weight row of a class, or the row of an
inner node ("bird"), which tools/build_mini.py learnt from the classifier's own answers. The mixture p comes from

* the lexicon, for words in it: softmax(β · score) over the few nodes nearest to a word's sense; nodes and scores were
  computed by tools/build_mini.py from WordNet and a sentence encoder;
* everyday names, for what no class resembles (person, sky, hand) and for what the tower's places say more sharply than
  the classes do (chair, wall): each is a node with a row of its own, learnt by tools/build_everyday.py, and stands alone;
* static word vectors, for other words: softmax(β · cosine) of the mean of the text's WordPiece vectors to all nodes'
  names.

The head noun of a name has most weight ("yellow *bird* on a branch"), the words before it have a little. If one of them
means a kind of the head, it stands alone ("*crane* bird"). Words around a name ("a photo of", "origami", "in a video
game") have none. A text in which nothing resembles any node is *unknown*: it still gets a unit vector, and
`unknown_reason` gives the reason.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from torch.nn import functional as F

MAX_WORDS = 64  # words of a text that are read
MIN_PIECE = 2.2  # least mean letters of a piece: "xqzvkw" is split into single letters, whose vectors mean nothing
MAX_PHRASE = 5  # words of one entry of the lexicon
KIND_SHARE = 0.25  # of a word's meanings that must be kinds of the head to stand for it


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


FUNCTION_WORDS = _set("a an the my your his her its our their this that these those one some many is are")
PICTURE_WORDS = _set(
    "photo photos photograph picture pictures image images snapshot drawing painting sketch rendering rendition "
    "sculpture doodle tattoo graffiti art itap illustration depiction shot view"
)
# Other words of OpenAI's 80 templates, and similar ones: they describe how a thing is shown, not what it is.
MODIFIERS = PICTURE_WORDS | _set(
    "bad good hard to see low resolution cropped embroidered bright clean dirty dark cool plastic close up closeup "
    "black white and pixelated jpeg corrupted blurry origami toy large big small little nice weird old new cartoon "
    "plushie real single other"
)
PREPOSITIONS = _set(
    "of on in at with without by near under over behind beside inside against from for like and or "
    "riding holding wearing sitting standing lying eating playing running walking"
)
STOP_WORDS = FUNCTION_WORDS | PREPOSITIONS
# Names that ImageNet or OpenAI's list has for a class, of which WordNet's senses say nothing, or another thing first.
ALIASES = {
    "baby pacifier": "nipple",
    "japanese chin": "japanese spaniel",
    "remote": "remote control",
    "solar thermal collector": "solar collector",
    "vespa": "motor scooter",
}
PLURALS = {"ies": "y", "ses": "s", "xes": "x", "zes": "z", "ches": "ch", "shes": "sh", "men": "man", "s": ""}


def normalise(text: str) -> str:
    """Lower-case words of a–z and 0–9, one space between: "Jack-o'-lantern" → "jack olantern"; accents are dropped."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c)).replace("'", "").replace("’", "")
    return " ".join(re.findall(r"[a-z0-9]+", plain))


class Everyday(NamedTuple):
    """The anchors of everyday names."""

    rows: Tensor  # [E, 1280]
    words: tuple[tuple[str, ...], ...]  # of each anchor, its name first


class Reading(NamedTuple):
    """The words found in a text."""

    known: tuple[tuple[int, float], ...]  # (row in the lexicon, weight)
    others: tuple[str, ...]  # words to look up as vectors, if no word is in the lexicon
    outside: bool  # whether WordNet has the words but they resemble no class
    letters: bool  # whether the text has any word of a–z or 0–9


class Segment(NamedTuple):
    """Words that the lexicon has as one phrase, or a word that it does not have."""

    phrase: str
    row: int | None  # in the lexicon
    outside: bool  # whether WordNet has the word but it resembles no class


class MiniTextTower(nn.Module):
    """Class-anchor text encoder: texts → float32 `[n, 1280]`, unit norm. Deterministic; each text is independent."""

    class_rows: Tensor  # [1000, 1280]
    inner_rows: Tensor  # [I, 1280]
    everyday_rows: Tensor  # [E, 1280]; N = 1000 + I + E
    members: Tensor  # [N, 1000], 1 where a class is below a node
    rows: Tensor  # [N, 1280]
    present: Tensor  # [N]
    token_vectors: Tensor  # [1 + V, 128], the first for unknown pieces
    anchor_vectors: Tensor  # [A, 128]
    anchor_node: Tensor  # [A]
    sense_nodes: Tensor  # [S, K]
    sense_scores: Tensor  # [S, K]
    word_senses: Tensor  # [W, s], −1 where a word has fewer senses
    word_weights: Tensor  # [W, s]

    def __init__(
        self,
        tensors: dict[str, Tensor],
        words: Sequence[str],
        outside: Sequence[str],
        vocabulary: Sequence[str],
        facts: dict[str, float],
        everyday: Everyday | None = None,
    ) -> None:
        super().__init__()
        self.sense_beta, self.word_beta = facts["sense_beta"], facts["word_beta"]
        self.score_step, self.min_cosine = facts["score_step"], facts["min_cosine"]
        self.modifier_weight = facts["modifier_weight"]
        self._words = {word: row for row, word in enumerate(words)}
        self._first_everyday = len(words)  # the rows of everyday words follow those of the lexicon
        self._names = tuple(names[0] for names in everyday.words) if everyday else ()
        for row, names in enumerate(everyday.words if everyday else (), len(words)):
            self._words.update(dict.fromkeys(names, row))
        self._outside = frozenset(outside)
        pieces = {token: i for i, token in enumerate(["[UNK]", *vocabulary])}
        self._tokenizer = Tokenizer(WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=100))
        self._tokenizer.pre_tokenizer = WhitespaceSplit()

        classes, counts = tensors["class_rows"].float(), tensors["node_sizes"].long()
        self.register_buffer("class_rows", classes)
        self.register_buffer("everyday_rows", everyday.rows if everyday else classes.new_zeros(0, classes.shape[1]))
        members = torch.zeros(len(counts) + len(self._names), len(classes), dtype=torch.float32)
        members[torch.arange(len(counts)).repeat_interleave(counts), tensors["node_classes"].long()] = 1
        self.register_buffer("members", members)
        learnt = tensors["inner_rows"].float() * tensors["inner_scale"].float()[:, None]
        self.register_buffer("inner_rows", F.normalize(learnt, dim=1))
        vectors = F.pad(tensors["token_vectors"].float() * tensors["token_scale"].float()[:, None], (0, 0, 1, 0))
        self.register_buffer("token_vectors", vectors)
        of_names = [self._vector((name,)) for name in self._names]  # each [128]
        of_nodes = F.normalize(tensors["anchor_vectors"].float(), dim=1)
        self.register_buffer("anchor_vectors", torch.cat([of_nodes, *(one[None] for one in of_names)]))
        anchor_node = torch.cat([tensors["anchor_node"].long(), len(counts) + torch.arange(len(of_names))])
        self.register_buffer("anchor_node", anchor_node)
        for name in ("sense_nodes", "sense_scores", "word_senses", "word_weights"):
            self.register_buffer(name, tensors[name])
        self._set_rows(members, self.inner_rows)

    @classmethod
    def load(cls, folder: Path, *, everyday: bool = True) -> MiniTextTower:
        """Loads the tower that tools/build_mini.py wrote to a folder, with what tools/build_everyday.py added."""
        known, outside = (folder / "lexicon.txt").read_text().split("\n\n")
        anchors = None
        if everyday and (folder / "everyday.txt").exists():  # not yet while they are built
            stored = load_file(folder / "everyday.safetensors")
            rows = F.normalize(stored["rows"].float() * stored["scale"].float()[:, None], dim=1)
            lines = (folder / "everyday.txt").read_text(encoding="utf-8").splitlines()
            anchors = Everyday(rows, tuple(tuple(line.split("|")) for line in lines))
        return cls(
            load_file(folder / "text.safetensors"),
            known.split("\n"),
            outside.split(),
            (folder / "vocabulary.txt").read_text().split(),
            json.loads((folder / "mini.json").read_text())["text"],
            anchors,
        )

    def without(self, classes: Sequence[int]) -> MiniTextTower:
        """A copy without some of the 1,000 classes, to test the tower on classes that it does not have.

        Its inner nodes are the means of the classes that are left: the learnt rows have seen those taken out.
        """
        other = copy.copy(self)
        other._buffers = dict(self._buffers)  # so that `_set_rows` does not change this tower
        members = self.members.clone()
        members[:, list(classes)] = 0
        inner = members[len(self.class_rows) : len(members) - len(self.everyday_rows)]
        other._set_rows(members, inner @ self.class_rows)
        return other

    def _set_rows(self, members: Tensor, inner: Tensor) -> None:
        own = self.class_rows * members[: len(self.class_rows)].sum(dim=1, keepdim=True)  # [1000, 1280], 0 if left out
        rows = F.normalize(torch.cat([own, inner, self.everyday_rows]), dim=1)
        self.register_buffer("rows", rows, persistent=False)
        present = members.sum(dim=1) > 0
        present[len(members) - len(self.everyday_rows) :] = True
        self.register_buffer("present", present, persistent=False)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embeds `n` texts: `[n, 1280]` float32, unit norm. Texts with the same `Reading` are computed once."""
        if not texts:
            return self.rows.new_zeros(0, self.rows.shape[1])
        readings = list(map(self._read, texts))
        embeddings: dict[Reading, Tensor] = {}
        for reading in dict.fromkeys(readings):
            embeddings[reading] = self.embed_reading(reading)
        return torch.stack([embeddings[reading] for reading in readings])

    @torch.no_grad()
    def unknown_reason(self, text: str, model: str = "mini") -> str | None:
        """Why the model of this name cannot read the text, in one line; None where it can."""
        reading = self._read(text)
        shown = repr(text if len(text) <= 40 else f"{text[:39]}…")
        if reading.known:
            return None
        if not reading.letters:
            return f"{model} reads English words, and finds none in {shown}"
        if not reading.outside and float(self._likeness(reading.others).max()) >= self.min_cosine:
            return None
        return f"{model} does not know {shown}: it has words for 1,000 classes and what resembles them"

    def embed_reading(self, reading: Reading) -> Tensor:
        """The embedding of one text's reading: `[1280]`, unit norm."""
        if reading.known:
            *before, (head, _) = reading.known
            mixture = self._mixture_of(head)  # [N]
            narrower = [kind for word, _ in before if (kind := self._kind_of(mixture, word)) is not None]
            if narrower:
                mixture = torch.stack(narrower).sum(dim=0)
            else:
                for word, weight in before:
                    mixture += weight * self._mixture_of(word)
        else:
            likeness = self._likeness(reading.others).masked_fill(~self.present, -torch.inf)  # [N]
            mixture = torch.softmax(self.word_beta * likeness, dim=0)
        return F.normalize((mixture @ self.rows).float(), dim=0)  # [1280]

    def _mixture_of(self, word: int) -> Tensor:
        """A known word's mixture of nodes `[N]`, over its senses and the nodes near each sense."""
        mixture = self.rows.new_zeros(len(self.rows))
        if self._is_everyday(word):
            mixture[len(self.rows) - len(self.everyday_rows) + word - self._first_everyday] = 1
            return mixture
        for sense, weight in zip(self.word_senses[word].tolist(), self.word_weights[word].tolist(), strict=True):
            if sense >= 0:
                nodes = self.sense_nodes[sense].long()  # [K]
                scores = self.sense_scores[sense].float() * self.score_step  # [K]
                scores = scores.masked_fill(~self.present[nodes], -1e4)
                mixture[nodes] += weight / 255 * torch.softmax(self.sense_beta * scores, dim=0)
        return mixture

    def _is_everyday(self, word: int) -> bool:
        return word >= self._first_everyday

    def _kind_of(self, head: Tensor, word: int) -> Tensor | None:
        """What a word before the head means, if that is a kind of the head: "crane bird" is the crane that is a bird.

        The part of the word's mixture `[N]` below the first node of the head's, its sum 1; None if that part is small.
        """
        below = self.members[int(head.argmax())]  # [1000]
        if below.sum() < 2:
            return None
        inside = self.members @ below == self.members.sum(dim=1)  # [N]
        kind = self._mixture_of(word) * inside
        return kind / kind.sum() if kind.sum() >= KIND_SHARE else None

    def _likeness(self, words: tuple[str, ...]) -> Tensor:
        """Cosine of the words' mean vector with each node's nearest name, `[N]`; zeros if no word has a vector."""
        cosines = self.anchor_vectors @ self._vector(words)  # [A]
        return cosines.new_full((len(self.rows),), -1.0).scatter_reduce(0, self.anchor_node, cosines, "amax")

    def _vector(self, words: tuple[str, ...]) -> Tensor:
        """The words' mean static vector `[128]`, unit norm; zero if no word has one."""
        pieces = [self._tokenizer.encode(word).ids for word in words]
        readable = [ids for word, ids in zip(words, pieces, strict=True) if len(word) >= MIN_PIECE * len(ids)]
        ids = torch.tensor([i for ids in readable for i in ids], dtype=torch.long, device=self.token_vectors.device)
        return F.normalize(self.token_vectors[ids].sum(dim=0), dim=0)

    def _read(self, text: str) -> Reading:
        words = _without_picture_words(normalise(text).split()[:MAX_WORDS])
        segments = self._segments(words)
        content = [s for s in segments if s.phrase not in STOP_WORDS] or segments
        content = [s for s in content if s.phrase not in MODIFIERS] or content
        first = next((i for i, s in enumerate(segments) if s.row is not None and s in content), len(segments))
        end = next((i for i, s in enumerate(segments[first:], first) if s.phrase in PREPOSITIONS), len(segments))
        rows = [s.row for s in segments[first:end] if s.row is not None and s in content]
        if not rows:  # only as the whole name: beside other words, they mean what they mean to WordNet
            forms = _singulars(" ".join(s.phrase for s in content))
            rows = [self._words[ALIASES[form]] for form in forms if form in ALIASES][:1]
        # Before a head, everyday names say of what or where it is ("water bottle", "street lamp"): not what it looks like.
        rows = [row for row in rows[:-1] if not self._is_everyday(row)] + rows[-1:]
        weights = [self.modifier_weight] * (len(rows) - 1) + [1.0]
        return Reading(
            known=tuple(zip(rows, weights, strict=True)) if rows else (),
            others=() if rows else tuple(s.phrase for s in content),
            outside=bool(content) and all(s.outside for s in content),
            letters=bool(words),
        )

    def _segments(self, words: list[str]) -> list[Segment]:
        """Splits words into the longest phrases of the lexicon."""
        segments = []
        start = 0
        while start < len(words):
            for end in range(min(len(words), start + MAX_PHRASE), start, -1):
                part, row = words[start:end], None
                forms = _singulars(" ".join(part))
                if FUNCTION_WORDS.isdisjoint(part):
                    forms += _singulars("".join(part))  # WordNet has "wineglass" for "wine glass"; "a corn" is no acorn
                if len(part) > 1 or part[0] not in STOP_WORDS:
                    row = next((self._words[form] for form in forms if form in self._words), None)
                if row is not None or len(part) == 1:
                    outside = row is None and not self._outside.isdisjoint(forms)
                    segments.append(Segment(" ".join(part), row, outside))
                    start = end
                    break
        return segments


def _without_picture_words(words: list[str]) -> list[str]:
    """What follows "a bad photo of", and what "in a video game" follows."""
    for i, (word, following) in enumerate(itertools.pairwise(words[:8])):
        if word in PICTURE_WORDS and following == "of" and len(words) > i + 2:
            words = words[i + 2 :]
            break
    return words[:-4] if words[-4:] == ["in", "a", "video", "game"] and len(words) > 4 else words


def _singulars(phrase: str) -> list[str]:
    """The phrase and its possible singulars, by WordNet's rules of detachment (morphy(7WN))."""
    fits = [(end, new) for end, new in PLURALS.items() if phrase.endswith(end) and len(phrase) > len(end) + 1]
    return [phrase, *(phrase.removesuffix(end) + new for end, new in fits)]
