"""The bank of other names, on towers with planted colours: rivals by hand, and when it is not asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cliploc.find import presence as module
from cliploc.find import prompts
from cliploc.find.calibration import package_calibration
from cliploc.find.memory import Memory
from cliploc.find.presence import Bank, bank_names
from cliploc.find.prompts import labels_of
from cliploc.find.texts import Texts
from cliploc.label.worker import AnnotateWorker
from tests.test_localizer import TALL, WIDE, build

NAMES = [("red", "scarlet"), ("green",), ("blue", "azure"), ("cat", "kitten")] + [(f"thing {i}",) for i in range(36)]
SENTENCES = (("a photo.",), ("a photo of the sky.", "sky"))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A bank of 40 names and two sentences."""
    monkeypatch.setattr(module, "bank_names", lambda every=1: NAMES[::every])
    packaged = prompts.packaged_entries
    monkeypatch.setattr(prompts, "packaged_entries", lambda file: SENTENCES if "object" in file else packaged(file))


def counted(backbone):
    """What the tower's texts are asked for from now on."""
    asked, encode = [], backbone.texts
    backbone.encode_text = lambda texts: asked.extend(texts) or encode(texts)
    return asked


@pytest.mark.parametrize("words", [("red",), ("Kitten", "red"), ("sky",), ("a new thing",)])
@pytest.mark.parametrize(("related", "every"), [(0.1, 1), (0, 1), (0.3, 1), (0.3, 8)])
def test_rivals_by_hand(gap, words, related, every):
    """What is no rival shares a word with the name, or is of the share of the bank that is nearest to it."""
    views = torch.nn.functional.normalize(torch.randn(3, 24, generator=torch.Generator().manual_seed(1)), dim=1)
    found = Bank(Texts(gap, ("a {} thing",)), related, every).rivals([("green",), words]).z_scores(views)
    own = torch.nn.functional.normalize(gap.encode_text([f"a photo of a {word}." for word in words]).mean(0), dim=0)
    kept = []
    bank = NAMES[::every] + list(SENTENCES)
    for entry in bank:
        sentence = f"a photo of a {entry[0]}." if entry in NAMES else entry[0]
        if not {word.casefold() for word in entry} & {word.casefold() for word in words}:
            kept.append(gap.encode_text([sentence])[0])
    kept.sort(key=lambda one: -float(one @ own))
    rivals = torch.stack(kept[int(related * len(bank)) :])
    for v, view in enumerate(views):
        cosines = rivals @ view
        expected = (view @ own - cosines.mean()) / cosines.std(correction=0)
        assert found[v, 1].item() == pytest.approx(float(expected), abs=1e-3)


def test_names_that_the_model_cannot_know_are_no_rivals(gap):
    gap.unknown_reason = lambda word: "never heard" if word.startswith(("thing", "a photo")) else None
    asked = counted(gap)
    Bank(Texts(gap, ("{}",))).rivals([("dog",)])
    assert asked == [f"a photo of a {word}." for word in ("red", "green", "blue", "cat", "dog")]
    gap.unknown_reason = lambda word: "never heard"
    assert Bank(Texts(gap, ("{}",))).rivals([("dog",)]) is None
    found = build(gap, min_presence=0.5)(TALL, ["red"])
    assert (found.presence, found.presence_rule) == (None, None)


def test_the_bank_holds_imagenets_and_cocos_names_once():
    names = [entry[0] for entry in bank_names()]
    assert len(names) == len(set(names))
    assert {one.name for one in prompts.imagenet_classes()} < set(names)
    assert {"person", "zebra", "tv"} <= set(names)
    assert bank_names(8) == bank_names()[:1000:8] + bank_names()[1000:]


@pytest.mark.parametrize("windows", [(), (2,)])
def test_a_named_method_says_absent_by_the_first_look(gap, windows):
    """Its presence is what it is before a second look at the same views."""
    found, looked = (
        build(gap, min_presence=0.5, windows=windows, second_look=second)(TALL, ["red", "something"])
        for second in (False, True)
    )
    second = looked.second_look
    np.testing.assert_allclose(found.presence, second.calibration.first(second.of_names), atol=1e-6)
    assert found.presence_rule == "bank"
    bar = float(found.presence.max()) + 0.01
    strict = build(gap, min_presence=bar, windows=windows)(TALL, ["red", "something"])
    assert f"presence {strict.presence[1]:.2f} (uncalibrated) is below" in strict.reasons[1]
    every = build(gap, min_presence=1e-6, windows=windows)(TALL, ["red", "something"])
    assert every.by(every.rule, bar).reasons[0] == strict.reasons[0]
    assert not strict.found.any()


def test_a_minimum_of_zero_boxes_all_and_embeds_no_bank(gap):
    asked = counted(gap)
    localizer = build(gap, min_presence=0)
    found = localizer(WIDE, ["red", "blue"])
    assert found.found.all()
    assert (found.presence, found.presence_rule) == (None, None)
    assert asked == ["a red thing", "a blue thing"]
    [one] = localizer.compare([WIDE], ["red"], ["cam"], presence=True)
    assert one["cam"].presence_rule == "bank"
    assert one["cam"].found.all()


def test_the_bank_is_embedded_once(gap):
    asked, memory = counted(gap), Memory()
    localizer = build(gap, min_presence=0.5, memory=memory)
    localizer([TALL, WIDE], ["a dog"])
    assert len(asked) == len(set(asked)) == 2 + 7  # the name by both templates, an eighth of 40 names, two sentences
    first = len(asked)
    localizer(WIDE, ["a dog"])
    build(gap, min_presence=0.2, memory=memory)(WIDE, ["a dog"])
    assert len(asked) == first


def test_where_no_chance_is_fitted_every_eighth_name_is_embedded(gap, tmp_path):
    """The bank's names are 40 here; a part of them is part of a run's identity."""
    asked, file = counted(gap), tmp_path / "calibration.json"
    guessing = build(gap, min_presence=0.5)
    guessing(TALL, ["a dog"])
    sentences = [f"a photo of a {entry[0]}." for entry in NAMES] + [entry[0] for entry in SENTENCES]
    assert asked == [*sentences[:40:8], *sentences[40:], "a a dog thing", "a photo of a a dog."]
    replace(package_calibration("mini"), models=(gap.name,), lifts={}).save(file)
    fitted = build(gap, min_presence=0.5, calibration=file)
    asked.clear()
    fitted(TALL, ["a dog"])
    assert asked[:42] == sentences
    gap.packs_texts = True  # texts take seconds
    packing = build(gap, min_presence=0.5)
    versions = [one.describe()["first_look"]["bank"] for one in (guessing, fitted, packing)]
    assert versions == ["1, every 8 of ImageNet", 1, 1]


def test_a_part_of_the_bank_counts_as_the_whole_in_ranks(gap):
    views = torch.nn.functional.normalize(torch.randn(3, 24, generator=torch.Generator().manual_seed(1)), dim=1)
    rivals = Bank(Texts(gap, ("{}",)), related_share=0, every=8).rivals([("a new thing",)])
    above = (views @ rivals.bank.T > views @ rivals.names.T).sum(dim=1)
    assert rivals.z_scores_of(views, torch.zeros(3, dtype=torch.long))[1].tolist() == (1 + 8 * above).tolist()


@pytest.mark.parametrize("text_cache", [True, False])
def test_the_bank_comes_from_the_disk_as_one_file(gap, tmp_path, monkeypatch, text_cache):
    monkeypatch.setenv("CLIPLOC_CACHE", str(tmp_path / "cache"))
    gap.weights_file = tmp_path / "weights.pt"
    first = build(gap, min_presence=0.5, text_cache=text_cache)(TALL, ["a dog"])
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1 + 2 * text_cache  # the bank is one
    asked = counted(gap)
    second = build(gap, min_presence=0.5, text_cache=text_cache)(TALL, ["a dog"])
    assert asked == ([] if text_cache else ["a a dog thing", "a photo of a a dog."])
    np.testing.assert_array_equal(second.presence, first.presence)


def test_annotate_always_asks_for_presence(gap):
    def worker(labels, **chosen):
        from cliploc.options import Options

        return AnnotateWorker(labels_of(labels), Options(model=gap, method="cam"), **chosen)

    for least in (None, 0, 0.3):
        described = worker(["red", "blue"], least=least).describe()
        assert "first_look" in described
        assert described["min_presence"] == (0.32 if least is None else least)
