"""How names are read that a model does not read as they stand reaches whoever asked."""

import re
from pathlib import Path

import numpy as np
import pytest

from cliploc.cli import main
from cliploc.find import prompts
from cliploc.find.texts import REMARKS, Texts
from cliploc.localizer import Localizer
from cliploc.towers import create

ROOT = Path(__file__).parents[2]
CAT = str(ROOT / "src/cliploc/demo_photos/cat.jpg")
WIFE = "mini reads 'my wife' as 'woman'"


@pytest.fixture(scope="module")
def texts() -> Texts:
    return Texts(create("mini"), prompts.DEFAULT_TEMPLATES)


def test_a_result_has_it_as_a_note() -> None:
    localizer = Localizer("mini", method="cam")
    picture = np.zeros((32, 32, 3), np.uint8)
    assert localizer(picture, ["my wife", "cat"]).notes == (WIFE,)
    assert localizer(picture, ["cat"]).notes == ()
    assert localizer.readings(["cat", "my wife"]) == (WIFE,)


@pytest.mark.parametrize("how", [{"method": "cam"}, {"recipe": "fast"}])
def test_the_presence_of_a_name_that_the_model_does_not_know_is_not_known(how: dict[str, str]) -> None:
    found = Localizer("mini", **how)(CAT, ["happiness", "cat"])
    for result in (found, found.by(found.box_rule, 0.5)):
        assert result.presence is not None
        assert np.isnan(result.presence).tolist() == [True, False]


@pytest.mark.parametrize("names", [["tabby", "tabbies", "the tabby"], ["dog", "dogs"], ["kite", "kites"]])
def test_names_that_are_read_alike_have_the_same_chances(names: list[str]) -> None:
    """Of the bank, "Brittany dog" is read as "dog", too, and two entries are a "kite"."""
    found = Localizer("mini", recipe="fast", min_presence=0)(CAT, names)
    assert found.presence is not None
    np.testing.assert_allclose(found.presence, found.presence[0], rtol=1e-4)
    scores = found.boxes.score.reshape(len(names), -1)
    np.testing.assert_allclose(scores, scores[:1].repeat(len(names), 0), rtol=1e-4)


def test_synonyms_and_contrasts_are_told_of_too(texts: Texts) -> None:
    assert texts.readings(prompts.parse(["cat|my wife"])) == (WIFE,)
    assert texts.readings(prompts.parse(["cat~my wife"])) == (WIFE,)
    (lost,) = texts.readings(prompts.parse(["cat|happiness"]))
    assert lost.startswith("mini does not know 'happiness'")
    assert texts.readings(prompts.parse(["happiness"])) == ()  # the reason why it is not found says it


def test_many_are_counted(texts: Texts) -> None:
    said = texts.readings(prompts.parse([f"my {name}" for name in ("cat", "dog", "bird", "cup", "car", "bed", "tv")]))
    assert len(said) == REMARKS + 1
    assert said[-1] == "2 more names are not read as they stand"


@pytest.mark.parametrize(
    "command",
    ["classify {}", "segment {} --model mini-vit --out segmented", "explain {} --method cam --steps 2 --out explained"],
)
def test_commands_say_it(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command.format(CAT).split(), "-p", "my wife", "-p", "cat"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert WIFE in said.replace("mini-vit", "mini")


def test_of_names_that_nobody_typed_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", CAT]) == 0  # ImageNet's names: nobody typed them
    assert "mini reads" not in capsys.readouterr().err


def test_every_picture_of_the_regions_has_one_line_of_known_form() -> None:
    lines = (ROOT / "tools/everyday_regions.txt").read_text(encoding="utf-8").splitlines()
    rectangle = r"r\d(?:-\d)? c\d(?:-\d)?"
    region = rf"[a-z]+ {rectangle}(?:, {rectangle})*"
    lines = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(rf"n\d{{8}}: (?:-|{region}(?:; {region})*)", line) for line in lines)
    assert sorted(line[:9] for line in lines) == [one.wnid for one in prompts.imagenet_classes()]
