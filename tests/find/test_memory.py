"""What a model computed is kept: no forward pass twice, the same results, no more than may be kept; texts on disk."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cliploc.find.memory import LruCache, Memory, TextCache, cache_folder
from cliploc.localizer import Localizer
from cliploc.support.reporter import Reporter
from tests.test_localizer import PHOTOS, WIDE, same
from tests.tiny import Counting, tower


def localizer_of(backbone: Any, memory: Memory | None, method: str, **how: Any) -> Localizer:
    return Localizer(backbone, method=method, memory=memory, text_cache=False, **how)


@pytest.mark.parametrize(("kind", "method"), [("gap_cnn", "cam"), ("gap_cnn", "score_cam"), ("vit", "legrad")])
def test_new_names_cost_no_forward_pass_and_find_the_same(kind: str, method: str) -> None:
    backbone, memory = Counting(tower(kind, (8, 8))), Memory()
    how: dict[str, Any] = {"scales": (1, 1.5), "flip": True, "windows": (2,), "refine": ["affinity", "level"]}
    localizer_of(backbone, memory, method, **how)([WIDE, *PHOTOS[:2]], ["red"])
    counts = backbone.traces, backbone.images
    for names in (["blue", "green"], ["red"]):
        again = localizer_of(backbone, memory, method, **how)([WIDE, *PHOTOS[:2]], names)
        assert (backbone.traces, backbone.images) == counts
        fresh = localizer_of(tower(kind, (8, 8)), None, method, **how)([WIDE, *PHOTOS[:2]], names)
        for one, expected in zip(again, fresh, strict=True):
            same(one, expected)


def test_another_picture_side_mirror_or_precision_is_not_mistaken_for_it() -> None:
    backbone, memory = Counting(tower("gap_cnn", (8, 8))), Memory()
    localizer_of(backbone, memory, "cam")(WIDE, ["red"])
    other = np.array(WIDE)
    other[0, 0, 0] ^= 128
    for image, how in ((other, {}), (WIDE, {"scales": (1.5,)}), (WIDE, {"flip": True})):
        before = backbone.traces
        localizer_of(backbone, memory, "cam", **how)(image, ["red"])
        assert backbone.traces == before + 1
    assert localizer_of(tower("gap_cnn", (8, 8)), memory, "cam")(WIDE, ["red"]).found is not None
    with torch.inference_mode():
        localizer_of(backbone, memory, "cam")(WIDE, ["red"])
    assert localizer_of(backbone, memory, "grad_cam")(WIDE, ["red"]).maps.max() == 1  # no inference tensor in a graph


@pytest.mark.parametrize("flip", [False, True])
def test_other_windows_whose_features_fill_the_same_grid_are_not_mistaken_for_them(flip: bool) -> None:
    """A step keeps what it makes of windows' features with these windows, not with the whole picture."""
    backbone, memory = tower("gap_cnn", (8, 8)), Memory()
    how: dict[str, Any] = {"refine": ["lposs"], "flip": flip}
    for windows in ((1.5,), (1.48,), (1.5,)):
        again = localizer_of(backbone, memory, "cam", windows=windows, **how)(WIDE, ["thing"])
        fresh = localizer_of(tower("gap_cnn", (8, 8)), None, "cam", windows=windows, **how)(WIDE, ["thing"])
        assert fresh.maps.max() == 1
        same(again, fresh)


def test_a_method_that_was_stopped_goes_on_where_it_was() -> None:
    backbone, memory = Counting(tower("gap_cnn", (8, 8))), Memory()
    whole = Counting(tower("gap_cnn", (8, 8)))
    Localizer(whole, method="score_cam")(WIDE, ["red"])

    def stop(done: int, left: int) -> None:
        raise KeyboardInterrupt

    localizer = localizer_of(backbone, memory, "score_cam", batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        list(localizer.stream([WIDE], ["red"], reporter=Reporter(masked=stop)))
    assert 0 < backbone.images < whole.images
    localizer(WIDE, ["red"])
    assert backbone.images == whole.images


def test_threads_that_ask_for_one_picture_share_a_forward_pass_and_others_do_not_wait() -> None:
    backbone, memory = Counting(tower("gap_cnn", (8, 8))), Memory()
    began, goes_on = threading.Event(), threading.Event()
    trace = backbone.trace

    def waits(images: Any, needs: Any) -> Any:
        if threading.current_thread().name == "first_0":
            began.set()
            assert goes_on.wait(30)
        return trace(images, needs)

    backbone.trace = waits
    first, others = ThreadPoolExecutor(1, "first"), ThreadPoolExecutor(2, "others")
    with first, others:
        slow = first.submit(localizer_of(backbone, memory, "cam"), WIDE, ["red"])
        assert began.wait(30)
        same_picture = others.submit(localizer_of(backbone, memory, "cam"), WIDE, ["blue"])
        another = others.submit(localizer_of(backbone, memory, "cam"), PHOTOS[2], ["blue"])
        assert another.result(30).names == ("blue",)
        assert not same_picture.done()
        goes_on.set()
        for result, name in ((slow, "red"), (same_picture, "blue")):
            same(result.result(30), localizer_of(tower("gap_cnn", (8, 8)), None, "cam")(WIDE, [name]))
    assert backbone.traces == 2


def test_names_are_embedded_once() -> None:
    backbone, memory = Counting(tower("gap_cnn", (8, 8))), Memory()
    first = localizer_of(backbone, memory, "cam").embed_names(["red", "blue"])
    backbone.encode_text = lambda texts: pytest.fail(f"embedded again: {texts}")
    torch.testing.assert_close(localizer_of(backbone, memory, "cam").embed_names(["blue", "red"]), first.flip(0))


def test_it_holds_no_more_than_it_may() -> None:
    backbone = Counting(tower("gap_cnn", (8, 8)))
    pictures = [np.full((32, 32, 3), value, np.uint8) for value in range(0, 250, 10)]
    all_of_it = Memory()
    for picture in pictures:
        localizer_of(backbone, all_of_it, "cam")(picture, ["red"])
    memory = Memory(max_bytes=all_of_it.bytes // 3)
    localizer = localizer_of(backbone, memory, "cam")
    for picture in pictures:
        localizer(picture, ["red"])
        assert memory.bytes <= memory.max_bytes
    before = backbone.traces
    localizer(pictures[-1], ["blue"])
    assert backbone.traces == before  # the last stays
    localizer(pictures[0], ["blue"])
    assert backbone.traces == before + 1  # the first went
    nothing = Memory(max_bytes=0)
    localizer_of(backbone, nothing, "cam")(WIDE, ["red"])
    assert nothing.bytes == 0


# ------------------------------------------------------------------------------------------------- texts, on the disk
WORDS, TEMPLATES = ("cat", "kitten"), ("a photo of a {}.", "{}")
VECTOR = torch.tensor([0.6, 0.8])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPLOC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text"


def test_a_text_is_found_again_for_the_same_key_alone(folder: Path) -> None:
    TextCache(folder, "weights").put(WORDS, TEMPLATES, VECTOR.double())
    again = TextCache(folder, "weights")
    found = again.get(WORDS, TEMPLATES, 2)
    assert found is not None
    assert torch.equal(found, VECTOR)
    others = [(WORDS[::-1], TEMPLATES), (("cat kitten",), TEMPLATES), (WORDS, TEMPLATES[:1])]
    assert [again.get(*other, 2) for other in [*others, (WORDS[:1], ("kitten", *TEMPLATES))]] == [None] * 4
    assert again.get(WORDS, TEMPLATES, 3) is None
    assert TextCache(folder, "other weights").get(WORDS, TEMPLATES, 2) is None


def test_a_folder_that_cannot_be_made_stops_nothing(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "file").write_text("in the way of the folder")
    blocked = TextCache(folder / "file", "weights")
    blocked.put(WORDS, TEMPLATES, VECTOR)
    assert blocked.get(WORDS, TEMPLATES, 2) is None


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"CLIPLOC_CACHE": "HERE"}, "text"),
        *[({"CLIPLOC_CACHE": off}, None) for off in ("off", "OFF", "0", "")],
        ({"XDG_CACHE_HOME": "HERE"}, "cliploc/text"),
        ({"HOME": "HERE"}, ".cache/cliploc/text"),
    ],
)
def test_where_texts_lie(
    variables: dict[str, str], place: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CLIPLOC_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("HERE", str(tmp_path)))
    assert cache_folder() == (None if place is None else tmp_path / place)


def asked_for(source: str | None, names: list[str], **options: Any) -> tuple[Any, list[str]]:
    """Scores by a new tower with weights of this file, and the sentences that it embedded."""
    backbone: Any = tower("attention_pool_cnn")
    asked: list[str] = []
    encode = backbone.encode_text
    backbone.encode_text = lambda sentences: (asked.extend(sentences), encode(sentences))[1]
    backbone.weights_file = Path(source) if source else None
    found = Localizer(backbone, min_presence=0, second_look=False, **options)(WIDE, names)  # else a bank too
    return found.scores, asked


def test_a_second_localizer_asks_the_text_tower_for_what_is_new_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, asked = asked_for("weights", ["cat|kitten", "red"])
    assert asked == ["a photo of a cat.", "a photo of a kitten.", "a photo of a red."]
    again, asked = asked_for("the same in another file", ["red", "cat|kitten", "drum"])
    assert asked == ["a photo of a drum."]
    assert again[[1, 0]] == pytest.approx(first, abs=1e-6)
    assert asked_for("weights", ["red"], templates=["{}"])[1] == ["red"]
    others: list[tuple[str | None, dict[str, Any]]] = [(None, {}), ("weights", {"text_cache": False})]
    for source, options in others:
        assert asked_for(source, ["red"], **options)[1] == ["a photo of a red."]
    files = [*folder.rglob("*.safetensors")]
    monkeypatch.setenv("CLIPLOC_CACHE", "off")
    assert asked_for("weights", ["drum"])[1] == ["a photo of a drum."]
    assert [*folder.rglob("*.safetensors")] == files


def test_what_is_used_stays_and_what_is_too_large_drives_nobody_out():
    kept = LruCache[int](most=2)
    for key, value, size in (("a", 1, 1), ("b", 2, 1), ("a", 3, 1), ("c", 4, 1), ("c", 5, 3)):
        kept.keep(key, value, size)
    assert [kept.get(one) for one in "abc"] == [3, None, None]


def test_what_is_old_is_dropped_whether_anybody_asks_or_not():
    now = 0.0
    kept = LruCache[int](9, seconds=10, clock=lambda: now)
    kept.keep("a", 1)
    now = 6.0
    kept.keep("b", 2)
    now = 11.0
    assert [kept.get(one) for one in "ab"] == [None, 2]
    now = 22.0
    kept.forget_old()
    assert kept.size == 0
