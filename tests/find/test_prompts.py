"""Names → sentences → one embedding for each name."""

import zlib

import pytest
import torch

from cliploc.errors import UsageError
from cliploc.find import prompts
from cliploc.find import texts as texts_module
from cliploc.values import TextSet


def encode(sentences):
    """A sentence's own direction; not unit norm, so that an average without normalising first would differ."""
    rows = []
    for sentence in sentences:
        generator = torch.Generator().manual_seed(zlib.crc32(sentence.encode()))
        rows.append(torch.randn(7, generator=generator) * (1 + len(sentence)))
    return torch.stack(rows)


def test_each_is_normalised_then_averaged_then_normalised():
    texts = prompts.parse(["cat|kitten|tabby cat", "dog"], ["a {}.", "two {}s!"])
    sentences = {
        "cat": ["a cat.", "two cats!", "a kitten.", "two kittens!", "a tabby cat.", "two tabby cats!"],
        "dog": ["a dog.", "two dogs!"],
    }
    expected = []
    for name in ("cat", "dog"):
        each = [encode([sentence])[0] for sentence in sentences[name]]
        mean = sum(vector / vector.norm() for vector in each) / len(each)
        expected.append(mean / mean.norm())
    torch.testing.assert_close(texts_module.embed(texts, encode), torch.stack(expected))


@pytest.mark.parametrize(
    ("names", "templates", "sentences"),
    [
        (["cat|kitten", "dog"], ["a {}.", "{}"], ["a cat.", "cat", "a kitten.", "kitten", "a dog.", "dog"]),
        (["{}", "{0}"], "a {}.", ["a {}.", "a {0}."]),  # names with braces are put in once
    ],
)
def test_all_sentences_reach_the_encoder_in_one_call(names, templates, sentences):
    calls = []
    texts_module.embed(prompts.parse(names, templates), lambda given: calls.append(list(given)) or encode(given))
    assert calls == [sentences]


@pytest.mark.parametrize(
    ("typed", "name", "words", "contrast"),
    [
        ("cat", "cat", ("cat",), ()),
        ("  black \t cat ", "black cat", ("black cat",), ()),
        ("cat | kitten|tabby  cat", "cat", ("cat", "kitten", "tabby cat"), ()),
        ("猫|🐈", "猫", ("猫", "🐈"), ()),
        ("x" * 300, "x" * 300, ("x" * 300,), ()),
        ("helmet~bare head", "helmet~bare head", ("helmet",), ("bare head",)),
        (" helmet | hard  hat ~ hair|bare head", "helmet~hair", ("helmet", "hard hat"), ("hair", "bare head")),
    ],
)
def test_what_is_typed(typed, name, words, contrast):
    texts = prompts.parse([typed, "helmet"])
    assert texts == TextSet((name, "helmet"), (words, ("helmet",)), prompts.DEFAULT_TEMPLATES, (contrast, ()))
    assert len(texts) == 2


@pytest.mark.parametrize(
    "names", [[], [""], ["x" * 10_000], ["cat", "cat"], "cat", ["cat", None], ["cat~"], ["a~b~c"], ["cat|dog~wolf|dog"]]
)
def test_names_that_are_refused(names):
    with pytest.raises(UsageError, match=r"^expected [^\n]+ got [^\n]+: [^\n]+$"):
        prompts.parse(names)


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        (None, ("a photo of a {}.",)),
        ("default", ("a photo of a {}.",)),
        ("name-only", ("{}",)),
        ("a sketch of {}", ("a sketch of {}",)),
        (["{} here", "my {}"], ("{} here", "my {}")),
    ],
)
def test_what_templates_mean(templates, expected):
    assert prompts.resolve_templates(templates) == expected


@pytest.mark.parametrize("templates", [[], "openai-8", ["a {}", "a photo"], ["a {}", 7]])
def test_templates_that_are_refused(templates):
    with pytest.raises(UsageError, match=r"^expected [^\n]*template[^\n]* got [^\n]+$"):
        prompts.parse(["cat"], templates)
