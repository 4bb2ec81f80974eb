"""Pictures as prompts: what is typed, what is embedded, and what a run of them is."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cliploc.errors import InputError, UsageError
from cliploc.images.exemplars import Exemplar, exemplar_of, split_entries
from cliploc.localizer import Localizer
from cliploc.web.settings import from_mapping
from tests.commands import CAT, COFFEE, document_of, refused, succeeded
from tests.tiny import tower

GRID = (4, 4)


def noise(seed, hw=(16, 16)):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def embedding_of(localizer, pixels):
    images = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float() / 255
    return localizer.backbone.encode_image(localizer.backbone.normalize(images))[0]


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
def test_a_crop_stands_for_a_name(kind):
    """The embedding is the crop's, as if it were a picture; with text, each has one vote."""
    photo = noise(0, (40, 50))
    part, whole = photo[4:20, 8:24], noise(1)
    exemplars = [
        Exemplar("cup", photo, (8, 4, 24, 20)),
        Exemplar("lid", photo, (8, 4, 24, 20)),
        Exemplar("lid", whole),
        Exemplar("red", whole, with_text=True),
    ]
    localizer = Localizer(tower(kind, GRID), method="cam" if kind == "gap_cnn" else "gem", exemplars=exemplars)
    cup, lid, red, blue = localizer.embed_names(["cup", "lid", "red", "blue"])
    seen, shown = embedding_of(localizer, part), embedding_of(localizer, whole)
    plain = Localizer(localizer.backbone, method=localizer.method.name)
    torch.testing.assert_close(cup, seen)
    torch.testing.assert_close(lid, F.normalize(seen + shown, dim=0))
    torch.testing.assert_close(red, F.normalize(shown + plain.embed_names(["red"])[0], dim=0))
    assert torch.equal(blue, plain.embed_names(["blue"])[0])
    found = localizer(part, ["cup"])
    assert found.scores[0] == pytest.approx(1, abs=1e-5)


def test_a_run_is_known_by_the_pixels(tmp_path):
    """The same pixels elsewhere are the same run; other pixels under the same path are another."""
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        Image.fromarray(noise(seed)).save(tmp_path / name)
    said = [
        Localizer(tower("gap_cnn", GRID), method="cam", exemplars=[text]).describe()["exemplars"]
        for text in (*(f"cup=@{tmp_path / name}" for name in ("a.png", "b.png", "c.png")), f"cup|@{tmp_path / 'a.png'}")
    ]
    assert said[0] == said[1]
    assert len({json.dumps(one) for one in said}) == 3


def test_what_is_typed():
    assert split_entries(["cat|kitten", "dog"]) == (["cat|kitten", "dog"], [])
    assert split_entries(["@a/cup.jpg"]) == (["cup"], ["cup=@a/cup.jpg"])
    assert split_entries(["@demo:cat.jpg"]) == (["cat"], ["cat=@demo:cat.jpg"])
    assert split_entries(["cup=@photo.jpg[1,2,3,4]"]) == (["cup"], ["cup=@photo.jpg[1,2,3,4]"])
    assert split_entries(["cup| @c.jpg|mug"]) == (["cup|mug"], ["cup|@c.jpg"])
    assert split_entries(["lid=@a|@b[0,0,9,9]", "@s.png"]) == (["lid", "s"], ["lid=@a", "lid=@b[0,0,9,9]", "s=@s.png"])
    assert exemplar_of("cup|@a b.jpg") == Exemplar("cup", "a b.jpg", with_text=True)
    assert exemplar_of("cup=@photo.jpg[10 20 90 110]").box == (10.0, 20.0, 90.0, 110.0)  # as the page prints boxes
    assert exemplar_of("cup=@photo.jpg[10,20,90,110]") == Exemplar("cup", "photo.jpg", (10.0, 20.0, 90.0, 110.0))
    for wrong, line in (
        ("cup", "expected an exemplar as NAME=@FILE"),
        ("cup=@a.jpg[1,2]", r"expected a box as \[x0,y0,x1,y1\] after a.jpg"),
        ("cup=@a.jpg[5,0,5,9]", "with x0 < x1"),
        ("cup=@a.jpg[0,0,inf,9]", "with x0 < x1"),
    ):
        with pytest.raises(UsageError, match=line):
            exemplar_of(wrong)
    with pytest.raises(UsageError, match="expected a file after @"):
        split_entries(["cup|@"])
    for contrast in ("cup~@bowl.jpg", "cup~bowl| @bowl.jpg", "cup|@cup.jpg|mug~bowl|@bowl.jpg"):
        with pytest.raises(UsageError, match=r"expected words after ~ in .*, got a picture"):
            split_entries([contrast])
    assert split_entries(["cup|@~/a~b.jpg|@c.jpg"])[1] == ["cup|@~/a~b.jpg", "cup|@c.jpg"]
    assert split_entries(["@cup.jpg|cup~bowl"]) == (["cup~bowl"], ["cup~bowl|@cup.jpg"])
    with pytest.raises(UsageError, match="expected a list of exemplars"):
        Localizer("mini", exemplars="cup=@a.jpg")


@pytest.mark.parametrize(
    ("given", "asked"),
    [("two  words", "two  words"), (" two words ", "two words"), ("two words|pair", "two words|pair")],
)
def test_an_exemplar_is_found_by_its_name_as_it_was_asked_for(given, asked):
    """Names are compared as `prompts.parse` leaves them; a name that nobody reads would be a silent text."""
    localizer = Localizer(tower("gap_cnn", GRID), method="cam", exemplars=[Exemplar(given, noise(0))])
    torch.testing.assert_close(localizer.embed_names([asked])[0], embedding_of(localizer, noise(0)))
    assert (
        "presence is not calibrated where pictures or embeddings stand for a name: two words"
        in localizer(noise(1), [asked]).notes
    )


def test_what_cannot_be_used_is_refused():
    for box in (("a", "b", "c", "d"), (1, None, 3, 4), (0, 0, float("inf"), 4), (0, 0, 4)):
        with pytest.raises(UsageError, match="expected an exemplar's box as x0, y0, x1, y1"):
            Exemplar("cup", noise(0), box)
    with pytest.raises(UsageError, match="expected the name that an exemplar stands for"):
        Exemplar(" |cup", noise(0))
    with pytest.raises(UsageError, match=r"inside its 16×16 pixels, got \[0, 0, 17, 4\]"):
        Localizer("mini", exemplars=[Exemplar("cup", noise(0), (0, 0, 17, 4))])
    with pytest.raises(UsageError, match="with its text or without, got both"):
        Localizer("mini", exemplars=[Exemplar("cup", noise(0)), Exemplar("cup", noise(1), with_text=True)])
    with pytest.raises(InputError, match="an exemplar of 'cup'"):
        Localizer("RN50", "none.pt", exemplars=["cup=@none.jpg"])


@pytest.mark.parametrize("with_text", [False, True])
def test_presence_is_not_asked_of_exemplars(with_text):
    """Two pictures are always much alike, and the model's vocabulary does not matter."""
    localizer = Localizer("mini", recipe="fast", exemplars=[Exemplar("zyxwv", CAT, None, with_text)], min_presence=0.99)
    found = localizer(COFFEE, ["zyxwv", "giraffe"])
    assert found.reasons[0] is None or "presence" not in found.reasons[0]
    assert found.reasons[1] is not None
    assert found.presence[0] == 1
    assert "presence is not calibrated where pictures or embeddings stand for a name: zyxwv" in found.notes
    assert localizer.unknown_names(["zyxwv"]) == {}


def test_localize_compare_and_annotate_take_files(tmp_path):
    box = "[100,50,300,250]"
    fast = ("--recipe", "fast")
    document = document_of("localize", CAT, "-p", f"it=@{CAT}{box}", "-p", f"cup|@{COFFEE}", "-p", "dog", *fast)
    assert document["settings"]["names"] == ["it", "cup", "dog"]
    assert {name: one[1:] for name, one in document["settings"]["exemplars"].items()} == {"it": [], "cup": ["text"]}
    succeeded("compare", CAT, "-p", f"@{COFFEE}", "--method", "cam", "--out", tmp_path / "compare")
    (tmp_path / "labels.txt").write_text(f"it=@{CAT}{box} @0.3\ndog\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(CAT.read_bytes())
    asked = ("--labels", tmp_path / "labels.txt", "--out", tmp_path / "drafts", *fast)
    succeeded("annotate", tmp_path / "photos", *asked)
    assert "none.jpg" in refused("localize", CAT, "-p", "cup=@none.jpg")


def test_the_page_reads_no_file():
    """A name from the network is a text, whatever it looks like; exemplars are no setting of the page."""
    with pytest.raises(UsageError):
        from_mapping({"exemplars": ["x=@/etc/hostname"]})
    assert from_mapping({"names": f"cup=@{CAT}"}).arguments.get("exemplars") is None
    localizer = Localizer(tower("gap_cnn", GRID), method="cam")
    assert localizer(noise(0), [f"cup=@{CAT}"]).names == (f"cup=@{CAT}",)
