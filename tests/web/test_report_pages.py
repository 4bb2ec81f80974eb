"""The pages of the demo and of a benchmark in a real browser, with hostile names. `make test-web` runs this."""

import numpy as np
import pytest

from cliploc.draw.page import PageItem, write_page
from cliploc.evaluate.tasks.page import write_report
from tests.draw.conftest import build  # noqa: F401
from tests.draw.test_page import CLOSING, IMAGE
from tests.evaluate.benchmark_folder import CLASSES, make_folder
from tests.web.browsing import in_a_browser

pytestmark = in_a_browser

ADDRESS = "https://example.org/" + "photograph" * 9


@pytest.fixture
def demo(build, tmp_path):  # noqa: F811
    result = build(names=(IMAGE, CLOSING), hot=[(0, 0, 99, 99)] * 2, boxes=[(0, (0, 0, 99, 99), 0.9)], source=IMAGE)
    item = PageItem(result, f"{IMAGE}, {ADDRESS}", {IMAGE: np.array([[0, 0, 90, 90]])}, {IMAGE: 0.8, CLOSING: None})
    write_page(tmp_path / "demo.html", IMAGE, [item], {CLOSING: IMAGE}, CLOSING)
    return tmp_path / "demo.html"


@pytest.fixture
def benchmark(tmp_path):
    make_folder(tmp_path / "out", tmp_path / "root", samples=12, names=[IMAGE, CLOSING, *CLASSES[2:]], failed=[3])
    return write_report(tmp_path / "out")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", ["demo", "benchmark"])
def test_pages_fit_the_screen_and_run_nothing_from_outside(browser, request, name, width, scheme):
    path = request.getfixturevalue(name)
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is to the side"
    plots = page.locator("img.plot")
    for index in range(plots.count()):
        shown = plots.nth(index).evaluate("(image) => image.decode().then(() => image.currentSrc)")
        sources = plots.nth(index).evaluate("(image) => [image.src, image.previousElementSibling.srcset]")
        assert shown == sources[scheme == "dark"]
    assert said == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    context.close()


def test_nothing_is_cut_off_on_paper(browser, demo, benchmark):
    page = browser.new_page(viewport={"width": 1047, "height": 718})  # A4 across, with the browser's margins
    page.emulate_media(media="print")
    for path in (demo, benchmark):
        page.goto(path.as_uri())
        cut = """() => [...document.querySelectorAll(".scroll")]
            .filter((one) => one.scrollWidth > innerWidth || one.scrollHeight > one.clientHeight)
            .map((one) => one.ariaLabel)"""
        assert page.evaluate(cut) == []
    page.close()


def test_a_very_tall_picture_is_shown_whole_on_one_screen(browser, build, tmp_path):  # noqa: F811
    tall = build(size_wh=(20, 2000), names=("cat",), hot=[(0, 0, 9, 99)], source="tall.jpg")
    write_page(tmp_path / "tall.html", "tall", [PageItem(tall, "", {}, {})], {}, "")
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto((tmp_path / "tall.html").as_uri())
    assert page.locator("figure img").evaluate_all("(all) => Math.max(...all.map((one) => one.clientHeight))") <= 900
    page.close()
