"""Names → sentences → one text embedding per name.

"Embed every (name, template), L2-normalise each, average over both, normalise again" (Radford 2021, section 3.1.4; the
average over synonyms as in VL-Score, Gao & Wang 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cliploc.errors import UsageError
from cliploc.schema import TextSet

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_TEMPLATES = ("a photo of a {}.",)
MAX_NAME_LENGTH = 300  # characters; CLIP reads 77 tokens

# The 80 templates that OpenAI chose for ImageNet (Radford 2021; CLIP's repository, MIT licence, "Prompt Engineering").
OPENAI_80_TEMPLATES = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
TEMPLATE_SETS = {"default": DEFAULT_TEMPLATES, "openai-80": OPENAI_80_TEMPLATES, "name-only": ("{}",)}


def parse(names: Sequence[str], templates: Sequence[str] | str | None = None) -> TextSet:
    """Makes a `TextSet` of what a user typed.

    Args:
        names: one entry a name; synonyms are separated by "|", the first being the label ("cat|kitten").
        templates: sentences with one `{}`; or the name of a set: "default", "openai-80", "name-only".

    Raises:
        UsageError: no name, an empty or over-long one, one asked for twice, or a template without its `{}`.

    Example:
        >>> parse(["cat|kitten"]).synonyms
        (('cat', 'kitten'),)
    """
    if isinstance(names, str):
        raise UsageError(f"expected a list of names, got the single text {names!r}: write [{names!r}]")
    synonyms = []
    for entry in names:
        if not isinstance(entry, str):
            raise UsageError(f"expected each name to be a text, got {entry!r}: write all names in one list of texts")
        words = tuple(" ".join(word.split()) for word in entry.split("|"))
        if not all(words):
            raise UsageError(f"expected a name, got an empty one ({entry!r}): leave it out or fill it in")
        for word in words:
            if len(word) > MAX_NAME_LENGTH:
                raise UsageError(
                    f"expected a name of at most {MAX_NAME_LENGTH} characters, got {len(word)} ({word[:20]}…): "
                    "shorten it"
                )
        synonyms.append(words)
    labels = tuple(words[0] for words in synonyms)
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(
                f"expected each name once, got {label!r} {labels.count(label)} times: remove the repetition"
            )
    return TextSet(labels, tuple(synonyms), resolve_templates(templates))


def resolve_templates(templates: Sequence[str] | str | None) -> tuple[str, ...]:
    """The sentences meant by a set's name, a single template, a list of them, or None (the default).

    Raises:
        UsageError: a text that is neither a set's name nor a template.
    """
    if templates is None:
        return DEFAULT_TEMPLATES
    if isinstance(templates, str):
        if templates in TEMPLATE_SETS:
            return TEMPLATE_SETS[templates]
        if "{}" not in templates:
            raise UsageError(
                f"expected a template with {{}} for the name, or one of {', '.join(TEMPLATE_SETS)}; got {templates!r}"
            )
        return (templates,)
    if not templates:
        raise UsageError("expected at least one template, got none: leave the option out for the default")
    return tuple(templates)


def embed(texts: TextSet, encode: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """One unit-norm embedding for each name.

    Args:
        texts: P names with their synonyms and templates.
        encode: sentences → unit-norm `[n, D]`, a backbone's `encode_text`.

    Returns:
        `[P, D]` float32, unit norm.
    """
    import torch
    from torch.nn import functional as F

    sentences = [t.replace("{}", word) for words in texts.synonyms for word in words for t in texts.templates]
    each = F.normalize(encode(sentences).float(), dim=-1)  # [Σ synonyms · templates, D]
    counts = [len(words) * len(texts.templates) for words in texts.synonyms]
    means = torch.stack([group.mean(dim=0) for group in torch.split(each, counts)])  # [P, D]
    return F.normalize(means, dim=-1)
