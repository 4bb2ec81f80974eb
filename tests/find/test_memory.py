"""What a model computed is kept: no forward pass twice, the same results, and no more than may be kept."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from cliploc.find.memory import Memory
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


def test_what_nobody_asks_for_goes_in_time() -> None:
    now = [0.0]
    backbone, memory = Counting(tower("gap_cnn", (8, 8))), Memory(max_seconds=60, clock=lambda: now[0])
    localizer = localizer_of(backbone, memory, "cam")
    localizer(WIDE, ["red"])
    for now[0], traces in ((50, 1), (100, 1), (161, 2)):  # each use counts anew
        localizer(WIDE, ["red"])
        assert backbone.traces == traces


def test_a_model_that_is_gone_leaves_nothing() -> None:
    memory = Memory()
    backbone: Any = tower("vit", (8, 8))
    localizer_of(backbone, memory, "legrad", second_look=True)(WIDE, ["red"])
    assert memory.bytes > 0
    gone = weakref.ref(backbone)
    del backbone
    gc.collect()
    assert gone() is None
    other = tower("gap_cnn", (8, 8))
    assert memory.text(other, ["red"], ["{}"]) is None
    assert memory.bytes == 0
