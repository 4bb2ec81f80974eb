"""The text tower of `mini`: it embeds a name as a mixture of ImageNet's classes and of WordNet's nodes above them.

An embedding is unit(Σ_n p_n(text) · row_n): row_n is the classifier's centred weight row of a class, or the row of an
inner node ("bird"), which tools/build_mini.py learnt from the classifier's own answers. The mixture p comes from

* the lexicon, for words in it: softmax(β · score) over the few nodes nearest to a word's sense; nodes and scores were
  computed by tools/build_mini.py from WordNet and a sentence encoder;
* everyday names, for what no class resembles (person, sky, hand) and for what places show more sharply than the classes
  do (chair, wall): each is a node with a row of its own, learnt by tools/build_everyday.py, and stands alone;
* static word vectors, for other words: softmax(β · cosine) of the mean of the text's WordPiece vectors to all nodes'
  names.

The head noun of a name has most weight ("yellow *bird* on a branch"), the words before it have a little. If one of them
means a kind of the head, it stands alone ("*crane* bird"). Words around a name ("a photo of", "origami", "in a video
game") have none. A text in which nothing resembles any node is *unknown*: it still gets a unit vector, and
`unknown_reason` gives the reason. `remark` says how a text is read that is not read as it stands.
"""

import copy
import difflib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

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
ALIKE = 0.7  # least likeness (difflib's) of a word to the one that was perhaps meant
NEAR = 0.6  # least cosine of a name's word vector to be offered for one that is unknown
NEAREST = 3  # names that are offered for one that is unknown
EXACT = 1.9  # a sense with such a score for a node is that node
ARTICLES = frozenset(("a", "an", "the"))
# Who needs a name that these models lack: OpenAI's smallest at patches of 16 (its file has 599 MB in float32).
READS_ALL = "--model ViT-B-16 reads any text (600 MB, once)"
KIND_SHARE = 0.25  # of a word's meanings that must be kinds of the head to stand for it


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


FUNCTION_WORDS = _set("a an the my your his her its our their this that these those one some many is are")
PICTURE_WORDS = _set(
    "photo photos photograph picture pictures image images snapshot drawing painting sketch rendering rendition "
    "sculpture doodle tattoo graffiti art itap illustration depiction shot view"
)
# Before "of", these say how much of a thing there is, too, and not what it is.
BEFORE_OF = PICTURE_WORDS | _set(
    "piece pieces part parts pack stack pile heap set side edge school litter sheet sheets roll"
)
# Other words of OpenAI's 80 templates, and similar ones: they describe how a thing looks in it, not what it is.
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
# Names of which WordNet's senses say nothing, or another thing first (a black cat is a marten).
ALIASES = {
    "baby pacifier": "nipple",
    "black cat": "cat",
    "japanese chin": "japanese spaniel",
    "remote": "remote control",
    "solar thermal collector": "solar collector",
    "vespa": "motor scooter",
}
PLURALS = {"ies": "y", "ses": "s", "xes": "x", "zes": "z", "ches": "ch", "shes": "sh", "men": "man", "s": ""}


def normalise(text: str) -> str:
    """Lower-case words of a–z and 0–9, one space between: "Jack-o'-lantern" → "jack olantern"; accents are dropped."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    if not plain.isascii():
        plain = "".join(c for c in plain if not unicodedata.combining(c)).replace("’", "")
    return " ".join(re.findall(r"[a-z0-9]+", plain.replace("'", "")))


class Everyday(NamedTuple):
    """The anchors of everyday names."""

    rows: Tensor  # [E, 1280]
    words: tuple[tuple[str, ...], ...]  # of each anchor that mean it, its name first
    kinds: tuple[tuple[str, ...], ...]  # of each anchor that mean a kind of it and are read as it
    # Names of ImageNet's that hold such a word ("chain link fence") and are read without anchors.
    excepted: frozenset[str]


class Reading(NamedTuple):
    """The words found in a text."""

    known: tuple[tuple[int, float], ...]  # (row in the lexicon, weight)
    others: tuple[str, ...]  # words of a–z or 0–9 to look up as vectors, if no word is in the lexicon
    outside: bool  # whether WordNet has the words but they resemble no class
    used: tuple[str, ...] = ()  # the words of `known`, as they were written


class Segment(NamedTuple):
    """Words that the lexicon has as one phrase, or a word that it does not have."""

    phrase: str
    row: int | None  # in the lexicon
    outside: bool  # whether WordNet has the word but it resembles no class


def read_facts(path: Path) -> Any:
    """What a build measured, as attributes."""
    return json.loads(path.read_text(), object_hook=lambda fields: SimpleNamespace(**fields))


class MiniTextTower(nn.Module):
    """Class-anchor text encoder: texts → float32 `[n, 1280]`, unit norm. Deterministic; each text is independent."""

    class_rows: Tensor  # [1000, 1280]
    inner_rows: Tensor  # [I, 1280]
    everyday_rows: Tensor  # [E, 1280]; N = 1000 + I + E
    members: Tensor  # [N, 1000], 1 where a class is below a node
    rows: Tensor  # [N, 1280]
    present: Tensor  # [N]
    token_vectors: Tensor  # [V, 128] int8
    token_scale: Tensor  # [V]
    anchor_vectors: Tensor  # [A, 128]
    anchor_node: Tensor  # [A]
    sense_nodes: Tensor  # [S, K]
    sense_scores: Tensor  # [S, K]
    word_senses: Tensor  # [W, s], −1 where a word has fewer senses
    word_weights: Tensor  # [W, s]
    is_node: Tensor  # [W] bool: a word's first sense is a node, and not only like some

    def __init__(
        self,
        tensors: dict[str, Tensor],
        words: Sequence[str],
        outside: Sequence[str],
        vocabulary: Sequence[str],
        facts: Any,  # "text" of mini.json
        everyday: Everyday | None = None,
    ) -> None:
        super().__init__()
        self.facts = facts
        self._lexicon = tuple(words)
        self._plain = {word: row for row, word in enumerate(words)}
        self._words = dict(self._plain)
        self._first_everyday = len(words)  # the rows of everyday words follow those of the lexicon
        same, kinds = ((), ()) if everyday is None else (everyday.words, everyday.kinds)
        self._excepted = frozenset() if everyday is None else everyday.excepted
        self._names = tuple(names[0] for names in same)
        self._read_as: dict[str, str] = {}  # a kind's word → the name of its anchor
        for number, (names, of_kinds) in enumerate(zip(same, kinds, strict=True)):
            self._words.update(dict.fromkeys((*names, *of_kinds), len(words) + number))
            self._read_as.update(dict.fromkeys(of_kinds, names[0]))
        self._outside = frozenset(outside)
        spaced = {} if everyday is None else {name.replace(" ", ""): name for name in self._words if " " in name}
        self._spaced = {joined: name for joined, name in spaced.items() if joined not in self._outside}
        pieces = {token: i for i, token in enumerate(["[UNK]", *vocabulary])}
        self._tokenizer = Tokenizer(WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=100))
        self._tokenizer.pre_tokenizer = WhitespaceSplit()

        for name in ("token_vectors", "token_scale", "sense_nodes", "sense_scores", "word_senses", "word_weights"):
            self.register_buffer(name, tensors[name])
        classes, counts = tensors["class_rows"].float(), tensors["node_sizes"].long()
        self.register_buffer("class_rows", classes)
        self.register_buffer("everyday_rows", everyday.rows if everyday else classes.new_zeros(0, classes.shape[1]))
        members = torch.zeros(len(counts) + len(self._names), len(classes), dtype=torch.float32)
        members[torch.arange(len(counts)).repeat_interleave(counts), tensors["node_classes"].long()] = 1
        self.register_buffer("members", members)
        learnt = tensors["inner_rows"].float() * tensors["inner_scale"].float()[:, None]
        self.register_buffer("inner_rows", F.normalize(learnt, dim=1))
        of_names = [self._vector((name,)) for name in self._names]  # each [128]
        of_nodes = F.normalize(tensors["anchor_vectors"].float(), dim=1)
        self.register_buffer("anchor_vectors", torch.cat([of_nodes, *(rows[None] for rows in of_names)]))
        anchor_node = torch.cat([tensors["anchor_node"].long(), len(counts) + torch.arange(len(of_names))])
        self.register_buffer("anchor_node", anchor_node)
        likeness = self.sense_scores[self.word_senses[:, 0].long(), 0].float() * self.facts.score_step  # [W]
        self.register_buffer("is_node", likeness >= EXACT, persistent=False)
        self._set_rows(members, self.inner_rows)

    @classmethod
    def load(cls, folder: Path, *, everyday: bool = True) -> Self:
        """Loads the tower that tools/build_mini.py wrote to a folder, with what tools/build_everyday.py added."""
        known, outside = (folder / "lexicon.txt").read_text().split("\n\n")
        anchors = None
        if everyday and (folder / "everyday.txt").exists():  # not yet while they are built
            stored = load_file(folder / "everyday.safetensors")
            rows = F.normalize(stored["rows"].float() * stored["scale"].float()[:, None], dim=1)
            lines = (folder / "everyday.txt").read_text(encoding="utf-8").splitlines()
            same, kinds = zip(*(map(_split, line.split("||")) for line in lines[:-1]), strict=True)
            anchors = Everyday(rows, same, kinds, frozenset(_split(lines[-1])))
        tensors, facts = load_file(folder / "text.safetensors"), read_facts(folder / "mini.json").text
        vocabulary = (folder / "vocabulary.txt").read_text().split()
        return cls(tensors, known.split("\n"), outside.split(), vocabulary, facts, anchors)

    def without(self, classes: Sequence[int]) -> Self:
        """A copy without some classes, for mini's card; its inner nodes are the means of the classes that are left."""
        other = copy.copy(self)
        other._buffers = dict(self._buffers)  # so that `_set_rows` does not change this tower
        members = self.members.clone()
        members[:, list(classes)] = 0
        inner = members[len(self.class_rows) : len(members) - len(self.everyday_rows)]
        other._set_rows(members, inner @ self.class_rows)
        return other

    def _set_rows(self, members: Tensor, inner: Tensor) -> None:
        left = self.class_rows * members[: len(self.class_rows)].sum(dim=1, keepdim=True)  # [1000, 1280], 0 if left out
        rows = F.normalize(torch.cat([left, inner, self.everyday_rows]), dim=1)
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
        rows = {reading: row for row, reading in enumerate(dict.fromkeys(readings))}
        return self.embed_readings([*rows])[[rows[reading] for reading in readings]]

    @torch.no_grad()
    def unknown_reason(self, text: str, model: str = "mini") -> str | None:
        """Why the model of this name cannot read the text, and what helps, in one line; None where it can."""
        reading = self._read(text)
        if reading.known:
            return None
        if not reading.others:
            return f"{model} reads English nouns, and finds none in {_quoted(text)}"
        likeness = self._likeness(reading.others)  # [N]
        if not reading.outside and float(likeness.max()) >= self.facts.min_cosine and not self._misread(text, reading):
            return None
        meant = self._meant(reading)
        hint = f"did you mean {_quoted(meant)}?" if meant else ""
        if not hint and (near := self._nearest(text, likeness, NEAR)):
            hint = f"nearest that it knows: {_listed(near)};"
        return f"{model} does not know {_quoted(text)}: {hint} {READS_ALL}".replace(":  ", ": ")

    @torch.no_grad()
    def remark(self, text: str, model: str = "mini") -> str | None:
        """How the model of this name reads a text that it does not read as it stands, in one line; else None."""
        parts = [part.strip() for part in re.split(r"[,;/&+]", text) if part.strip()][:NEAREST]
        if len(parts) > 1 and all(self._read(part).known for part in parts):
            return f"{_quoted(text)} is taken as one name: for several, ask for {_listed(parts)} one by one"
        reading = self._read(text)
        if not reading.known:
            likeness = self._likeness(reading.others)  # [N]
            if reading.outside or likeness.max() < self.facts.min_cosine or self._misread(text, reading):
                return None
            return self._instead(model, text, self._nearest(text, likeness, self.facts.min_cosine))
        used, row = " ".join(reading.used), reading.known[-1][0]
        head = next((form for form in _singulars(reading.used[-1]) if form in self._words), reading.used[-1])
        anchor = self._read_as.get(head)
        if row < self._first_everyday and not self.is_node[row]:
            likeness = self.rows @ self.embed_readings([reading])[0]
            if near := self._nearest(text, likeness, self.facts.min_cosine):
                return self._instead(model, text, near)
        if anchor is None and _without_articles(used.split()) == _without_articles(normalise(text).split()):
            return None
        return f"{model} reads {_quoted(text)} as {_quoted(anchor or used)}"

    @staticmethod
    def _instead(model: str, text: str, near: Sequence[str]) -> str:
        like = f"what resembles {_listed(near)}" if near else "what its parts resemble"
        return f"{model} does not know {_quoted(text)}: it looks for {like} instead"

    def _meant(self, reading: Reading) -> str:
        """The word of the lexicon that a misspelt name may stand for; empty where there is none."""
        wrong = " ".join(reading.others)[:40]
        if reading.outside or len(wrong) < 5:
            return ""
        # Few letters of a word are wrong, and the first one seldom: this leaves some hundred words to compare.
        near = [word for word in self._words if abs(len(word) - len(wrong)) <= 2 and word[0] == wrong[0]]
        best = difflib.get_close_matches(wrong, [word for word in near if word not in self._read_as], 1, ALIKE)
        return best[0] if best and _spelling(best[0]) != _spelling(wrong) else ""

    def _misread(self, text: str, reading: Reading) -> bool:
        """Whether a misspelt name is read as another thing than the one that was meant."""
        meant = self._meant(reading)
        if not meant:
            return False
        row, of_meant = self([text, meant])
        return float(row @ of_meant) < self.facts.min_cosine

    def _nearest(self, text: str, likeness: Tensor, least: float) -> tuple[str, ...]:
        """The shortest names of the nodes that a text is most like, with at least this cosine `[N]`; not itself."""
        order = likeness.argsort(descending=True, stable=True)[: 10 * NEAREST].tolist()
        near = [node for node in order if likeness[node] >= least]
        only = self.word_senses[:, 1] < 0  # [W]
        of_words = self.sense_nodes[self.word_senses[:, 0].long(), 0]  # [W]
        of_near = torch.isin(of_words, of_words.new_tensor(near))
        start = len(self.rows) - len(self.everyday_rows)
        names: dict[int, str] = {}
        for row in (self.is_node & only & of_near).nonzero().flatten().tolist():
            node = int(of_words[row])
            if node not in names or len(self._lexicon[row]) < len(names[node]):
                names[node] = self._lexicon[row]
        names.update(enumerate(self._names, start))
        of_spelling: dict[str, str] = {}  # "cell phone" and "cellphone" are one
        for name in (names[node] for node in near if node in names):
            of_spelling.setdefault(_spelling(name), name)
        of_spelling.pop(_spelling(text), None)
        return tuple(of_spelling.values())[:NEAREST]

    def embed_readings(self, readings: Sequence[Reading]) -> Tensor:
        """The embeddings of texts by their readings: `[n, 1280]`, unit norm."""
        words = [*dict.fromkeys(word for reading in readings for word, _ in reading.known)]
        of_words = self.rows.new_zeros(len(words), len(self.rows))  # [W, N] each word's mixture of nodes
        first = len(self.rows) - len(self.everyday_rows) - self._first_everyday
        others = [number for number, word in enumerate(words) if word < self._first_everyday]
        for number in {*range(len(words))} - {*others}:
            of_words[number, first + words[number]] = 1
        senses = self.word_senses[[words[number] for number in others]].long()  # [w, s]
        weights = self.word_weights[[words[number] for number in others]].float() / 255 * (senses >= 0)
        nodes = self.sense_nodes[senses.clamp(min=0)].long()  # [w, s, K]
        scores = self.sense_scores[senses.clamp(min=0)].float() * self.facts.score_step
        scores = scores.masked_fill(~self.present[nodes], -1e4)
        shares = weights[:, :, None] * torch.softmax(self.facts.sense_beta * scores, dim=2)
        of_others = of_words.new_zeros(len(others), len(self.rows))
        for sense in range(senses.shape[1]):  # in turn: each has a node once, so sums have one order on every device
            of_others.scatter_add_(1, nodes[:, sense], shares[:, sense])
        of_words[others] = of_others
        mixture_of = dict(zip(words, of_words, strict=True))
        mixtures = torch.stack([self._mixture(reading, mixture_of) for reading in readings])  # [n, N]
        text, node = mixtures.nonzero().unbind(dim=1)  # few nodes are in each
        firsts = torch.searchsorted(text, torch.arange(len(readings), device=text.device))  # [n]
        # Summed one after another: the last bits do not depend on the other texts.
        summed = F.embedding_bag(node, self.rows, firsts, mode="sum", per_sample_weights=mixtures[text, node])
        return F.normalize(summed, dim=1)

    def _mixture(self, reading: Reading, of_words: Mapping[int, Tensor]) -> Tensor:
        """A reading's mixture of nodes `[N]`, of those of its words that are known."""
        if not reading.known:
            likeness = self._likeness(reading.others).masked_fill(~self.present, -torch.inf)  # [N]
            return torch.softmax(self.facts.word_beta * likeness, dim=0)
        *before, (head, _) = reading.known
        mixture = of_words[head]
        narrower = []
        for word, _ in before:
            below = self.members[int(mixture.argmax())]  # [1000] of the head's first node
            if below.sum() < 2:
                break
            at = of_words[word].nonzero().flatten()
            of_nodes = self.members[at]  # [n, 1000]
            kind = torch.zeros_like(mixture)  # the part of the word's mixture below that node: "crane bird"
            kind[at] = of_words[word][at] * (of_nodes @ below == of_nodes.sum(dim=1))
            if kind.sum() >= KIND_SHARE:
                narrower.append(kind / kind.sum())
        if narrower:
            return torch.stack(narrower).sum(dim=0)
        for word, weight in before:
            mixture = mixture + weight * of_words[word]
        return mixture

    def _likeness(self, words: tuple[str, ...]) -> Tensor:
        """Cosine of the words' mean vector with each node's nearest name, `[N]`; zeros if no word has a vector."""
        cosines = self.anchor_vectors @ self._vector(words)  # [A]
        return cosines.new_full((len(self.rows),), -1.0).scatter_reduce(0, self.anchor_node, cosines, "amax")

    def _vector(self, words: tuple[str, ...]) -> Tensor:
        """The words' mean static vector `[128]`, unit norm; zero if no word has one."""
        pieces: list[int] = []
        for word in words:
            of_word = self._tokenizer.encode(word).ids
            if len(word) >= MIN_PIECE * len(of_word):
                pieces += of_word
        ids = torch.tensor(pieces, dtype=torch.long, device=self.token_vectors.device)
        vectors = self.token_vectors[ids - 1].float() * self.token_scale[ids - 1].float()[:, None]
        return F.normalize(vectors.masked_fill(ids[:, None] == 0, 0.0).sum(dim=0), dim=0)  # 0: an unknown piece

    def _read(self, text: str) -> Reading:
        """Splits a text into the longest phrases of the lexicon, and chooses among them."""
        words = _without_picture_words(normalise(text).split()[:MAX_WORDS])
        excepted = _without_articles(words) in self._excepted
        known = self._plain if excepted else self._words
        segments: list[Segment] = []
        start = 0
        while start < len(words):
            for end in range(min(len(words), start + MAX_PHRASE), start, -1):
                part, row = words[start:end], None
                forms = _singulars(" ".join(part))
                if len(part) == 1 and not excepted:
                    forms += [self._spaced[form] for form in forms if form in self._spaced]  # "tshirt"
                elif FUNCTION_WORDS.isdisjoint(part):
                    forms += _singulars("".join(part))  # WordNet has "wineglass" for "wine glass"; "a corn" is no acorn
                if len(part) > 1 or part[0] not in STOP_WORDS:
                    row = next((known[form] for form in forms if form in known), None)
                if row is not None or len(part) == 1:
                    outside = row is None and not self._outside.isdisjoint(forms)
                    segments.append(Segment(" ".join(part), row, outside))
                    start = end
                    break
        named = [s for s in segments if s.phrase not in STOP_WORDS]
        content = [s for s in named if s.phrase not in MODIFIERS] or named
        first = next((i for i, s in enumerate(segments) if s.row is not None and s in content), len(segments))
        end = next((i for i, s in enumerate(segments[first:], first) if s.phrase in PREPOSITIONS), len(segments))
        chosen = [(s.row, s.phrase) for s in segments[first:end] if s.row is not None and s in content]
        # Aliases only as the full name: beside other words, they mean what they mean to WordNet.
        forms = _singulars(" ".join(s.phrase for s in content))
        if alias := next((form for form in forms if form in ALIASES), None):
            chosen = [(self._words[ALIASES[alias]], forms[0])]
        # Before a head, everyday names say of what or where it is ("street lamp"), not what it looks like.
        chosen = [row for row in chosen[:-1] if row[0] < self._first_everyday] + chosen[-1:]
        weights = [self.facts.modifier_weight] * (len(chosen) - 1) + [1.0]
        return Reading(
            known=tuple((row, weight) for (row, _), weight in zip(chosen, weights, strict=True)) if chosen else (),
            others=() if chosen else tuple(s.phrase for s in content),
            outside=bool(content) and all(s.outside for s in content),
            used=tuple(phrase for _, phrase in chosen),
        )


def _split(words: str) -> tuple[str, ...]:
    return tuple(filter(None, words.split("|")))


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def _listed(words: Sequence[str]) -> str:
    """ "'a', 'b' and 'c'"."""
    return " and ".join(", ".join(map(_quoted, words)).rsplit(", ", 1))


def _without_articles(words: list[str]) -> str:
    return " ".join(word for word in words if word not in ARTICLES)


def _without_picture_words(words: list[str]) -> list[str]:
    """What follows "a bad photo of" and "a piece of", and what "in a video game" follows."""
    starts = [i + 2 for i in range(min(len(words) - 2, 11)) if words[i] in BEFORE_OF and words[i + 1] == "of"]
    words = words[max(starts, default=0) :]
    return words[:-4] if words[-4:] == ["in", "a", "video", "game"] and len(words) > 4 else words


def _spelling(name: str) -> str:
    return name.replace(" ", "").replace("-", "").removesuffix("s")


def _singulars(phrase: str) -> list[str]:
    """The phrase and its possible singulars, by WordNet's rules of detachment (morphy(7WN))."""
    forms = [phrase]
    if phrase.endswith(("s", "men")):
        for end, new in PLURALS.items():
            if phrase.endswith(end) and len(phrase) > len(end) + 1:
                forms.append(phrase.removesuffix(end) + new)
    return forms
