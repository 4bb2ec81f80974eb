"""Names → sentences → one embedding for each name."""

import zlib

import pytest
import torch

from cliploc.errors import UsageError
from cliploc.find import prompts
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
    torch.testing.assert_close(prompts.embed(texts, encode), torch.stack(expected))


def test_embeddings_are_float32_whatever_the_tower():
    half = prompts.embed(prompts.parse(["cat"]), lambda sentences: encode(sentences).half())
    assert half.dtype == torch.float32
    assert half.norm(dim=-1).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("names", "templates", "sentences"),
    [
        (["cat|kitten", "dog"], ["a {}.", "{}"], ["a cat.", "cat", "a kitten.", "kitten", "a dog.", "dog"]),
        (["{}", "{0}"], "a {}.", ["a {}.", "a {0}."]),  # names with braces are put in once
    ],
)
def test_all_sentences_reach_the_encoder_in_one_call(names, templates, sentences):
    calls = []
    prompts.embed(prompts.parse(names, templates), lambda given: calls.append(list(given)) or encode(given))
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
    ("names", "text"),
    [
        ([], "expected at least one name to look for, got none: add one, such as -p cat"),
        ([""], "expected a name, got an empty one (''): leave it out or fill it in"),
        (["x" * 10_000], "expected a name of at most 300 characters, got 10000 (xxxxxxxxxxxxxxxxxxxx…): shorten it"),
        (["cat", "dog", "cat"], "expected each name once, got 'cat' 2 times: remove the duplicate"),
        ("cat", "expected a list of names, got the single text 'cat': write ['cat']"),
        (["cat", None], "expected each name to be a text, got None: write all names in one list of texts"),
        (["cat~"], "expected a name, got an empty one ('cat~'): leave it out or fill it in"),
        (["a~b~c"], "expected one contrast of a name, got more ('a~b~c'): write them as a~b|c"),
        (["cat|dog~wolf|dog"], "expected another contrast than the name, got 'dog' as both: leave one out"),
    ],
)
def test_names_that_are_refused(names, text):
    with pytest.raises(UsageError) as error:
        prompts.parse(names)
    assert str(error.value) == text
    assert "\n" not in text


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


@pytest.mark.parametrize(
    ("templates", "text"),
    [
        ([], "expected at least one template, got none: leave the option out for the default"),
        (
            "openai-8",
            "expected a template with {} for the name, or one of default, openai-80, openai-7, name-only, or a .txt "
            "file of templates; got 'openai-8'",
        ),
        (
            ["a {}", "a photo"],
            "expected a template with {} for the name, or one of default, openai-80, openai-7, name-only, or a .txt "
            "file of templates; got 'a photo'",
        ),
        (["a {}", 7], "expected templates as a list of texts, got ['a {}', 7]"),
    ],
)
def test_templates_that_are_refused(templates, text):
    with pytest.raises(UsageError) as error:
        prompts.parse(["cat"], templates)
    assert str(error.value) == text
