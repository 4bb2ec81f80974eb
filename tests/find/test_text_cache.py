"""Embeddings of names on disk: found again for the same weights and sentences, and for nothing else."""

from pathlib import Path

import pytest
import torch

from cliploc import Localizer
from cliploc.find.memory import TextCache, cache_folder
from tests.tiny import tower

WORDS, TEMPLATES = ("cat", "kitten"), ("a photo of a {}.", "{}")
VECTOR = torch.tensor([0.6, 0.8])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPLOC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


def test_found_again_for_the_same_key_alone(folder):
    TextCache(folder, "weights").put(WORDS, TEMPLATES, VECTOR.double())
    again = TextCache(folder, "weights")
    assert torch.equal(again.get(WORDS, TEMPLATES, 2), VECTOR)
    assert again.get(WORDS[::-1], TEMPLATES, 2) is None
    assert again.get(("cat kitten",), TEMPLATES, 2) is None
    assert again.get(WORDS, TEMPLATES[:1], 2) is None
    assert again.get(WORDS[:1], ("kitten", *TEMPLATES), 2) is None
    assert again.get(WORDS, TEMPLATES, 3) is None
    assert TextCache(folder, "other weights").get(WORDS, TEMPLATES, 2) is None


def test_the_bank_of_a_large_model_is_read_again(folder):
    bank = torch.ones(1100 * 1024)
    TextCache(folder, "weights").put(WORDS, TEMPLATES, bank)
    assert torch.equal(TextCache(folder, "weights").get(WORDS, TEMPLATES, len(bank)), bank)


def test_a_folder_that_cannot_be_made_and_a_full_disk_stop_nothing_and_leave_no_part_behind(folder, monkeypatch):
    folder.mkdir(parents=True)
    (folder / "file").write_text("in the way of the folder")
    blocked = TextCache(folder / "file", "weights")
    blocked.put(WORDS, TEMPLATES, VECTOR)
    assert blocked.get(WORDS, TEMPLATES, 2) is None
    cache = TextCache(folder, "weights")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    cache.put(WORDS, TEMPLATES, VECTOR)
    assert list(cache.folder.iterdir()) == []


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPLOC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "text"
    for off in ("off", "OFF", "0", ""):
        monkeypatch.setenv("CLIPLOC_CACHE", off)
        assert cache_folder() is None
    monkeypatch.delenv("CLIPLOC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "cliploc" / "text"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "cliploc" / "text"


def counting(source):
    """A tower that says what sentences it was asked for."""
    backbone = tower("attention_pool_cnn")
    asked = []
    encode = backbone.encode_text
    backbone.encode_text = lambda sentences: (asked.extend(sentences), encode(sentences))[1]
    backbone.weights_file = Path(source) if source else None
    return backbone, asked


def ask(source, photo, names, **options):
    backbone, asked = counting(source)
    localizer = Localizer(model=backbone, min_presence=0, second_look=False, **options)  # else a bank too
    found = localizer(photo, names)
    return found.scores, asked


def test_a_second_localizer_asks_the_text_tower_for_what_is_new_only(folder, photo):
    first, asked = ask("weights", photo, ["cat|kitten", "red"])
    assert asked == ["a photo of a cat.", "a photo of a kitten.", "a photo of a red."]
    again, asked = ask("the same in another file", photo, ["red", "cat|kitten", "drum"])
    assert asked == ["a photo of a drum."]
    assert again[[1, 0]] == pytest.approx(first, abs=1e-6)
    _, asked = ask("weights", photo, ["red"], templates=["{}"])
    assert asked == ["red"]


def test_who_does_not_want_it_does_without(folder, photo, monkeypatch):
    for source, options in ((None, {}), ("weights", {"text_cache": False})):
        for _ in range(2):
            _, asked = ask(source, photo, ["red"], **options)
            assert asked == ["a photo of a red."]
    monkeypatch.setenv("CLIPLOC_CACHE", "off")
    ask("weights", photo, ["red"])
    assert not folder.exists()
