"""The page of a benchmark in a real browser, with hostile names. `make test-web` runs this."""

import pytest

from cliploc.evaluate.tasks.page import write_report
from tests.evaluate.benchmark_folder import CLASSES, make_folder
from tests.html_reader import CLOSING, IMAGE
from tests.web.browsing import in_a_browser

pytestmark = in_a_browser


@pytest.fixture
def benchmark(tmp_path):
    make_folder(tmp_path / "out", tmp_path / "root", samples=12, names=[IMAGE, CLOSING, *CLASSES[2:]], failed=[3])
    return write_report(tmp_path / "out")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_a_page_fits_the_screen_and_runs_nothing_from_outside(browser, benchmark, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(benchmark.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is to the side"
    plots = page.locator("img.plot")
    for index in range(plots.count()):
        shown = plots.nth(index).evaluate("(image) => image.decode().then(() => image.currentSrc)")
        sources = plots.nth(index).evaluate("(image) => [image.src, image.previousElementSibling.srcset]")
        assert shown == sources[scheme == "dark"]
    assert said == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    context.close()


def test_nothing_is_cut_off_on_paper(browser, benchmark):
    page = browser.new_page(viewport={"width": 1047, "height": 718})  # A4 across, with the browser's margins
    page.emulate_media(media="print")
    page.goto(benchmark.as_uri())
    cut = """() => [...document.querySelectorAll(".scroll")]
        .filter((one) => one.scrollWidth > innerWidth || one.scrollHeight > one.clientHeight)
        .map((one) => one.ariaLabel)"""
    assert page.evaluate(cut) == []
    page.close()
