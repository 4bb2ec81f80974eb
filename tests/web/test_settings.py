"""Settings: typed by anybody, into an address and back, and into lines that run."""

import shlex

import pytest

from cliploc.errors import UsageError
from cliploc.web.settings import (
    MOST_NAMES,
    Settings,
    command_lines,
    from_mapping,
    from_query,
    python_lines,
    recipe_in,
    to_query,
)
from tests.commands import check_refusal


def test_names_are_one_a_line_or_with_commas():
    assert Settings(names="cat,  remote   control\n\n dog|puppy,cat,").prompts == ["cat", "remote control", "dog|puppy"]
    with pytest.raises(UsageError, match="type one"):
        _ = Settings(names=" , \n").prompts
    with pytest.raises(UsageError, match=f"at most {MOST_NAMES} names"):
        _ = Settings(names=",".join(f"n{i}" for i in range(MOST_NAMES + 1))).prompts
    for files in ("@cup.jpg", "cup=@a.jpg", "cup| @a.jpg", "cup~@a.jpg"):
        with pytest.raises(UsageError, match="without @"):
            _ = Settings(names=f"dog, {files}").prompts


def test_an_address_gives_the_settings_back():
    settings = Settings(
        names="cat\nbird & bee", method="layer_cam", compare=("cam", "grad_cam"), flip=True,
        refine=("guided", "affinity"), threshold=0.25, max_boxes=3, min_score=0.1, scales=(1.0, 1.5), windows=(2.0,),
        resize="pad", templates="openai-7",
    )  # fmt: skip
    assert from_query(to_query(settings)) == settings
    none = Settings(method="recipe:fast", refine=(), flip=False, windows=(), scales=(1.0,), split_peaks=1.0)
    assert from_query(to_query(none)) == none
    assert to_query(Settings()) == ""


def test_a_recipe_stands_in_the_place_of_a_method():
    assert from_mapping({"recipe": "fast"}) == from_query("recipe=fast") == from_query("method=recipe:fast")
    assert [recipe_in(method) for method in ("recipe:fast", "cam", "")] == ["fast", None, None]
    for given in ({}, {"recipe": None}, {"flip": None, "refine": None, "split_peaks": None, "scales": ""}):
        assert from_mapping(given) == Settings()
        assert from_mapping(given).arguments == {}
    for none in ("none", ["none"], []):
        assert from_mapping({"refine": none}).arguments == {"refine": ()}


def test_an_exemplar_is_among_the_names_and_in_the_lines():
    settings = Settings(names="spoon, cup|mug", exemplar_box="[1, 2 30, 40.5]", method="cam").with_exemplar(
        "/up/cup.jpg"
    )
    assert settings.prompts == ["spoon", "cup|mug"]  # it is there already
    assert settings.with_exemplar("/up/cup.jpg") == settings
    assert settings.with_exemplar(None) == Settings(names="spoon, cup|mug", method="cam")
    assert Settings(exemplar_name="our  cup").with_exemplar("/up/a.jpg").prompts == ["our cup"]
    assert Settings().with_exemplar("/up/@a=b|c.jpg").prompts == ["a b c"]
    assert from_query(to_query(settings)) == settings
    rules = [({"method": "cam"}, 0.3)]
    lines = python_lines(settings, "a.jpg", {"model": "mini"}, rules, "cup.jpg")
    assert "from cliploc.images.exemplars import Exemplar\n" in lines
    assert "exemplars=[Exemplar(name='cup', image='cup.jpg', box=(1.0, 2.0, 30.0, 40.5), with_text=False)]" in lines
    assert "--prompt=spoon '--prompt=cup=@cup.jpg[1,2,30,40.5]'" in command_lines(
        settings, "a.jpg", {}, rules, "cup.jpg"
    )
    assert "Exemplar" not in python_lines(settings, "a.jpg", {}, rules)


@pytest.mark.parametrize("box", ["1,2,3", "left", "0,0,inf,9", "5,5,5,9", "9,9,1,1"])
def test_a_box_of_an_exemplar_that_is_none_is_a_sentence(box):
    with pytest.raises(UsageError, match=r"expected an exemplar's box as x0, y0, x1, y1"):
        Settings(exemplar_box=box, exemplar_name="cup").exemplar(None)
    with pytest.raises(UsageError, match="expected a name for the exemplar without = "):
        Settings(exemplar_name="cup=@/etc/passwd").with_exemplar("/up/a.jpg")


def test_methods_to_compare_are_a_list_or_names_with_commas():
    for given in ("layer_cam, grad_cam", ["layer_cam", "grad_cam"], "layer_cam,cam,grad_cam,layer_cam"):
        settings = from_mapping({"method": "cam", "compare": given})
        assert settings.methods == ("cam", "layer_cam", "grad_cam")
    assert from_mapping({"method": "cam", "compare": ""}).methods == ("cam",)
    assert from_query("compare=layer_cam").compare == ("layer_cam",)  # as links had it when there was one


def test_an_address_that_makes_no_sense_opens_the_page_with_the_rest():
    assert from_query("names=cat&threshold=7&what=else&max_boxes=many&flip=yes") == Settings(names="cat")
    assert from_query("&".join(f"names=n{i}" for i in range(100))) == Settings(), "no link of the page is so long"


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"thresold": 0.3}, "thresold"), ({"device": "cpu"}, "device"), ({"threshold": "auto"}, "auto"),
        ({"max_boxes": 10**9}, "max_boxes from 0 to 1"), ({"masks": 1}, "masks to be one of true, false"),
        ({"names": ["cat"]}, "names as a text"),
        ({"templates": "secrets.txt"}, "secrets.txt"),  # a path is no name of a set
        ({"scales": "1,99"}, "1,99"), ({"refine": [1]}, "refine as a list"), ({"recipe": ["fast"]}, "fast"),
        ({"recipe": "fast", "method": "cam"}, "'cam' and fast"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_sentence(values, names):
    with pytest.raises(UsageError) as error:
        from_mapping(values)
    check_refusal(str(error.value), names)


def test_only_what_the_model_computes_makes_another_run():
    one = Settings(names="cat, dog", method="cam")
    assert one.computed == Settings(names="cat\ndog", method="cam", threshold=0.9, max_boxes=1, opacity=0.1).computed
    assert one.computed != Settings(names="cat, dog", method="cam", flip=True).computed
    assert one.computed != Settings(names="dog, cat", method="cam").computed


def test_the_command_is_one_that_a_shell_takes_whole():
    settings = Settings(names="rocket; rm -rf ~, it's", flip=True, min_presence=0, max_boxes=2)
    line = command_lines(settings, "-my photo.jpg", {"model": "mini", "pretrained": None}, [({"method": "cam"}, 0.3)])
    words = shlex.split(line)
    assert words[:2] == ["cliploc", "localize"]
    assert "--prompt=rocket; rm -rf ~" in words
    assert "--prompt=it's" in words
    assert words[-2:] == ["--", "-my photo.jpg"]
    assert {"--flip", "--max-boxes=2", "--threshold=0.3", "--min-presence=0"} <= set(words)


def test_python_lines_compile_whatever_was_typed():
    settings = Settings(names='a "cat"\nb\\', compare=("layer_cam",), method="cam", min_score=0.2)
    rules = [({"method": "cam"}, 0.3), ({"method": "layer_cam"}, 0.2)]
    text = python_lines(settings, "o'k.jpg", {"model": "mini", "pretrained": None}, rules)
    compile(text, "lines", "exec")
    assert repr(['a "cat"', "b\\"]) in text
    assert "localizer = cliploc.Localizer(model='mini', method='layer_cam', threshold=0.2, min_score=0.2)" in text
