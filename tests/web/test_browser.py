"""The page in a real browser. `make test-web` runs these."""

import json
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from cliploc.evaluate.tasks.page import write_report
from tests.evaluate.benchmark_folder import CLASSES, make_folder
from tests.html_reader import CLOSING, IMAGE
from tests.web.asking import served
from tests.web.browsing import in_a_browser, playwright, shoot

pytestmark = in_a_browser

DEMO = Path(__file__).parents[2] / "src/cliploc/demo_photos"
WAIT = 60_000  # ms; the machine may be busy


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served() as (url, _):
        yield url


@pytest.fixture
def page_of(browser):
    """A page in a browser of its own."""
    contexts = []

    def opened(width=1440, height=1000, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        made = contexts[-1].new_page()
        made.set_default_timeout(WAIT)
        return made

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def page(page_of):
    opened = page_of(accept_downloads=True)
    opened.asked = []
    opened.complaints = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.on("console", lambda said: opened.complaints.append(said.text) if said.type == "error" else None)
    return opened


def open_page(page, address, query=""):
    page.goto(address + query, wait_until="domcontentloaded")
    page.wait_for_function("() => document.querySelector('[name=method]').options.length > 0")  # the menus are there


def choose(page, photo, field="#picture"):
    page.locator(f"{field} input[type=file]").set_input_files(str(photo))
    playwright.expect(page.locator(f"{field} .chosen span")).to_have_text(photo.name)


def unfold(page, name):
    page.locator("summary", has_text=name).click()


def look(page, photo, names):
    choose(page, photo)
    page.locator("#names").fill(names)
    page.locator("#find").click()


def boxes(page):
    return page.locator("#results td.boxes").all_text_contents()


def move(page, slider, value):
    """Types a slider's number, and waits until the first name's boxes are others."""
    before = boxes(page)
    field = page.locator(f"{slider} input[type=number]")
    field.fill(value)
    field.press("Tab")
    page.wait_for_function(
        "before => [...document.querySelectorAll('#results td.boxes')].map(e => e.textContent).join() !== before",
        arg=",".join(before),
    )


def test_two_names_a_threshold_and_a_file(page, address):
    open_page(page, address)
    look(page, DEMO / "cat.jpg", "cat\ndog")
    page.locator("#results .stage").wait_for()
    assert page.locator("#results figure").count() == 1
    assert "1 of 2 names found" in page.locator("#status").inner_text()
    playwright.expect(page.locator(".heat[data-name='0']")).to_be_visible()  # of the one that is found
    playwright.expect(page.locator(".absences")).to_have_text("Not found: dog")
    unfold(page, "Scores and boxes")
    rows = page.locator("#results tbody tr").all_inner_texts()
    assert "✓ found" in rows[0]
    assert "✗ not found" in rows[1]
    alt = page.locator("#results .heat").first.get_attribute("alt")
    assert re.search(r"cat\.jpg with the heatmap for “cat”: box from \d+", alt)
    move(page, "#threshold", "0.8")
    move(page, "#min_presence", "0")
    page.wait_for_url(re.compile(r"(?=.*threshold=0\.8)(?=.*min_presence=0)"))  # the address opens the same
    assert page.locator("#results td.found").count() == 2
    unfold(page, "Downloads")
    page.locator("#make").click()
    page.locator("#files a[download]").first.wait_for()
    with page.expect_download() as waiting:
        page.locator("#files a[download$='.zip']").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        found = json.loads(archive.read("results.json"))["pictures"][0]
        assert {"cat_overlay.png", "cat_heatmaps.npy", "coco.json", "labelstudio.json"} <= set(archive.namelist())
    assert found["file"] == "cat.jpg"
    assert json.loads(page.locator("#json").input_value()) == [found]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    unfold(page, "The same again")
    page.get_by_role("button", name="Copy JSON").click()
    playwright.expect(page.locator("[data-copies=json]")).to_have_text("Copied")
    assert json.loads(page.evaluate("navigator.clipboard.readText()")) == [found]
    best = found["names"][0]["boxes"][0]["xyxy"]
    assert " ".join(boxes(page)[0].split()).startswith(
        " ".join(f"{value:.0f}" for value in best)
    )  # the table's are whole pixels
    assert [url for url in page.asked if not url.startswith((address, "data:", "blob:"))] == []
    assert page.complaints == []  # of the content security policy, above all


def test_a_refusal_of_the_server_and_its_end_are_sentences(page, address, tmp_path):
    open_page(page, address)
    choose(page, DEMO / "cat.jpg")
    page.locator("#names").fill("cat")
    answers = [
        (429, json.dumps({"error": "Too many <b> requests: try again in $& 3 seconds."}), "Too many <b> requests: try"),
        (502, "<html>", "The server did not take the request"),
        (200, json.dumps({"status": {"kind": "busy", "text": "half"}}) + "\n", "The server did not take"),
        (200, "half\n", "The server did not take"),
    ]
    for code, body, said in answers:
        page.route("**/api/show", lambda route, _, code=code, body=body: route.fulfill(status=code, body=body))
        page.locator("#find").click()
        playwright.expect(page.locator("#status .problem")).to_contain_text(said)
        page.unroute("**/api/show")
    page.locator("#find").click()
    page.locator("#results figure").first.wait_for()
    assert "still that of" not in page.locator("#status").inner_text()
    (tmp_path / "cat.jpg").write_bytes(b"no picture")  # of the same name, as pasted ones are
    look(page, tmp_path / "cat.jpg", "cat")
    playwright.expect(page.locator("#status .problem")).to_contain_text("The result below is still that of cat.jpg.")
    move(page, "#threshold", "0.8")
    playwright.expect(page.locator("#status .done")).to_contain_text("The result below is still that of cat.jpg.")


def test_the_empty_page_has_a_place_to_drop_examples_and_a_line(page, address, tmp_path):
    open_page(page, address)
    for there in ("#picture", "#names", "#find", ".about"):
        playwright.expect(page.locator(there)).to_be_visible()
    assert page.locator("#examples span").all_inner_texts()[0] == "cat, dog"
    for absent in ("#sliders", "#downloads", "#results table"):
        playwright.expect(page.locator(absent)).to_be_hidden()
    page.locator("#find").click()
    page.get_by_text("expected a picture, got none").wait_for()
    (tmp_path / "notes.txt").write_text("cat")
    page.locator("#picture input[type=file]").set_input_files(str(tmp_path / "notes.txt"))
    page.get_by_text("notes.txt is not a picture").wait_for()
    playwright.expect(page.locator("#picture .chosen")).to_be_hidden()
    choose(page, DEMO / "cat.jpg")
    page.get_by_role("button", name="Remove").click()
    playwright.expect(page.locator("#picture .chosen")).to_be_hidden()


DROPPED = """async ([kind, target, url]) => {
  const transfer = new DataTransfer(), blob = await (await fetch(url)).blob();
  transfer.items.add(new File([blob], `${kind}.jpg`, {type: "image/jpeg"}));
  const event = kind === "paste" ? new ClipboardEvent(kind, {clipboardData: transfer, bubbles: true})
    : new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true});
  document.querySelector(target).dispatchEvent(event);
}"""


@pytest.mark.parametrize(("kind", "target"), [("drop", "#picture label"), ("drop", "h1"), ("paste", "body")])
def test_a_photograph_is_dropped_or_pasted(page, address, kind, target):
    open_page(page, address)
    page.evaluate("document.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer()}))")
    page.get_by_text("expected a file, got something else").wait_for()
    page.evaluate(DROPPED, [kind, target, f"{address}/examples/cat.jpg"])
    playwright.expect(page.locator("#picture .chosen span")).to_have_text(f"{kind}.jpg")
    page.locator("#names").fill("cat")
    page.locator("#find").click()
    page.locator(f"#results img[alt^='{kind}.jpg']").first.wait_for()
    assert page.locator("#exemplar .chosen span").inner_text() == ""


def test_pointing_at_a_name_shows_its_heat_and_a_click_the_full_size(page, address):
    open_page(page, address)
    look(page, DEMO / "fig.jpg", "banana, bowl, fig")
    page.locator("#results .stage").wait_for()
    heats = [page.locator(f".stage .heat[data-name='{number}']") for number in range(3)]
    for number, one in ((1, ".box[data-name='1'] span"), (2, ".chip[data-name='2']")):
        page.locator(f".stage {one}").hover()
        for other, heat in enumerate(heats):
            assert heat.is_visible() == (other == number)
    page.locator("#status").hover()
    assert not any(heat.is_visible() for heat in heats)
    page.locator(".stage .canvas > img").first.click()
    playwright.expect(page.locator("dialog[open] .box")).to_have_count(page.locator(".stage .box").count())
    page.keyboard.press("Escape")
    playwright.expect(page.locator("dialog")).to_be_hidden()


def test_a_photograph_that_the_server_has_forgotten_is_sent_again(page, address):
    open_page(page, address)
    look(page, DEMO / "cat.jpg", "cat")
    page.locator("#results figure").first.wait_for()
    answers = [404]

    def forget(route):
        if answers and route.request.headers["content-type"] == "application/json":
            route.fulfill(status=answers.pop(), body='{"error": "There is no picture with this id"}')
        else:
            route.continue_()

    page.route("**/api/show", forget)
    page.locator("#names").fill("cat, dog")
    page.locator("#find").click()
    page.get_by_text("1 of 2 names found").wait_for()
    assert answers == []


def test_what_is_moved_during_a_search_counts_after_it(page, address):
    open_page(page, address)
    look(page, DEMO / "cat.jpg", "dog")
    page.locator("#results figure").first.wait_for()
    held = []
    page.route("**/api/show", lambda route: held.append(route), times=1)
    page.locator("#names").fill("cat")
    with page.expect_request("**/api/show"):
        page.locator("#find").click()
    threshold = page.locator("#threshold input[type=number]")
    threshold.fill("0.9")
    threshold.press("Tab")
    page.wait_for_url(re.compile("names=dog&threshold=0.9"))
    held[0].continue_()
    page.wait_for_url(re.compile("names=cat&threshold=0.9"))
    unfold(page, "Technical options")
    page.get_by_label("LayerCAM", exact=True).check()
    page.get_by_text("Press Find to search with these settings").wait_for()
    playwright.expect(threshold).to_have_value("0.9")
    page.locator("#find").click()
    page.get_by_text("LayerCAM: 1 of 1 name found").wait_for()


def test_an_example_is_found_at_once(page, address):
    open_page(page, address)
    page.locator("#examples button").first.click()  # a cat, asked for a cat and a dog
    page.locator("#results figure").first.wait_for()
    assert "1 of 2 names found" in page.locator("#status").inner_text()
    shoot(page, "page-1440")


@pytest.mark.parametrize("width", [1440, 390])
def test_a_picture_stands_for_a_name(page_of, address, width):
    page = page_of(width)
    open_page(page, address)
    choose(page, DEMO / "dogs.jpg")
    page.locator("#names").fill("boat")
    unfold(page, "Find more like a thing")
    choose(page, DEMO / "cat.jpg", "#exemplar")
    page.locator("[name=exemplar_name]").fill("pet")
    shown = page.locator("#exemplar .chosen img").bounding_box()
    page.mouse.move(shown["x"] + 0.1 * shown["width"], shown["y"] + 0.1 * shown["height"])
    page.mouse.down()
    page.mouse.move(shown["x"] + 0.5 * shown["width"], shown["y"] + 0.7 * shown["height"], steps=3)
    page.mouse.up()
    dragged = [float(edge) for edge in page.locator("[name=exemplar_box]").input_value().split()]
    assert dragged == pytest.approx([45, 30, 225, 210], abs=3)  # of 451 × 300 pixels
    page.locator("#find").click()
    page.locator("#results .stage").wait_for()
    assert page.locator("#results th[scope=row]").all_text_contents() == ["pet", "boat"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    unfold(page, "The same again")
    assert f"pet=@cat.jpg[{','.join(f'{edge:g}' for edge in dragged)}]" in page.locator("#command").input_value()
    unfold(page, "The same again")
    shoot(page, f"prompt-{width}", height=1064)


def test_names_and_files_that_are_markup_stay_text(page, address, tmp_path):
    names = ["<img src=x onerror=alert(1)>", "</figcaption><script>alert(2)</script>", "\"'><svg onload=alert(3)>"]
    said = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    photo = tmp_path / "<img src=x onerror=alert(4)>.jpg"
    shutil.copy(DEMO / "cat.jpg", photo)
    open_page(page, f"{address}/?names={quote(names[0])}&min_presence=0")
    look(page, photo, "\n".join(names))
    page.locator("#results .stage").wait_for()
    assert sorted(page.locator("#results th[scope=row]").all_text_contents()) == sorted(names)
    assert page.locator("#results :is(script, svg, img:not([src^='data:']))").count() == 0
    bad = tmp_path / "<svg onload=alert(5)>.jpg"
    bad.write_text("no picture")
    open_page(page, address)
    choose(page, bad)
    page.locator("#names").fill("cat")
    page.locator("#find").click()
    page.locator("#status .problem").wait_for()
    assert page.locator("#status .problem *").count() == 0
    assert said == []


def test_an_address_opens_its_settings_and_two_methods(page, address):
    open_page(page, address, "?names=dog&method=grad_cam&compare=layer_cam&min_score=0.1&min_presence=0")
    playwright.expect(page.locator("#names")).to_have_value("dog", timeout=WAIT)
    page.get_by_text("This link has filled in names: dog; method: grad_cam").wait_for()
    choose(page, DEMO / "dogs.jpg")
    page.locator("#find").click()
    page.locator("#results figure").nth(1).wait_for()
    first, second = (one.bounding_box() for one in page.locator("#results figure").all())
    assert first["y"] == second["y"]  # side by side
    assert page.locator("#results figcaption b").all_inner_texts() == ["dog · Grad-CAM", "dog · LayerCAM"]
    shoot(page, "compare-1440")
    choose(page, DEMO / "cat.jpg")  # the chosen method's own threshold belongs to what it will find
    before = boxes(page)
    unfold(page, "Technical options")
    page.locator("[name=method]").select_option("score_cam")
    page.get_by_text("Press Find to search with these settings").wait_for()
    assert boxes(page) == before


def test_a_long_method_stops_and_who_leaves_holds_nobody_up(page, browser, address):
    long_one = "?names=bird&method=score_cam&scales=1,1.43,2&flip=true"
    for leave in (False, True):
        open_page(page, address, long_one)
        playwright.expect(page.locator("#names")).to_have_value("bird", timeout=WAIT)
        choose(page, DEMO / "osprey.jpg")
        page.locator("#find").click()
        page.get_by_text(re.compile(r"[1-9]\d* of about [\d,]+ masked pictures done")).first.wait_for()
        if leave:
            page.goto("about:blank")
        else:
            page.locator("#stop").click()
            page.get_by_text("Stopped, as you asked").first.wait_for()
    began = time.monotonic()
    open_page(page, address)
    look(page, DEMO / "cat.jpg", "cat")
    page.locator("#results figure").first.wait_for()  # the model is free again
    assert time.monotonic() - began < WAIT / 1000
    assert page.locator("#results figure").count() == 1


def test_by_keyboard_alone(page, address):
    open_page(page, address)
    choose(page, DEMO / "cat.jpg")
    page.locator("#names").focus()
    page.keyboard.type("cat")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.press("Enter")
    page.locator("#results figure").first.wait_for()
    page.locator("#names").focus()
    page.keyboard.type(", dog")
    page.keyboard.press("Shift+Enter")
    page.get_by_text("1 of 2 names found").wait_for()
    before = boxes(page)
    page.locator("#threshold input[type=range]").focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('td.boxes').textContent !== before", arg=before[0])
    page.wait_for_load_state("networkidle")
    page.route("**/api/show", lambda route: None, times=1)
    for pressed, next_one in (("#find", "find"), ("#stop", "find"), ("#picture button", "picture-file")):
        page.locator(pressed).focus()
        page.keyboard.press("Enter")
        page.wait_for_function("next => document.activeElement.id === next", arg=next_one)
    page.get_by_text("Stopped, as you asked.").wait_for()


# WCAG 2.1: contrast of text, 1.4.3; names of controls, 4.1.2.
FAINT = """() => {
  const rgba = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = rgb => { const [r, g, b] = rgb.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = element => { for (let one = element; one; one = one.parentElement) {
    const [r, g, b, a = 1] = rgba(getComputedStyle(one).backgroundColor); if (a > .9) return [r, g, b]; }
    return [255, 255, 255]; };
  const faint = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    if (!text || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const style = getComputedStyle(element), [x, y] = [light(rgba(style.color).slice(0, 3)), light(behind(element))];
    const contrast = (Math.max(x, y) + .05) / (Math.min(x, y) + .05);
    const large = parseFloat(style.fontSize) >= 24 || parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700;
    if (contrast < (large ? 3 : 4.5)) faint.push(`${text.slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return faint;
}"""
NAMELESS = """() => [...document.querySelectorAll('input, textarea, select, button, [role=button], a[href]')]
  .filter(one => one.checkVisibility({visibilityProperty: true}))
  .filter(one => !(one.getAttribute('aria-label') || one.title || one.innerText?.trim() || one.placeholder
    || one.getAttribute('aria-labelledby') || [...(one.labels || [])].some(label => label.innerText.trim())
    || one.querySelector('img[alt]:not([alt=""])')))
  .map(one => one.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_and_controls_have_names(page_of, address, scheme):
    page = page_of(color_scheme=scheme)
    open_page(page, address)
    look(page, DEMO / "fig.jpg", "fig, bowl")
    page.locator("#results .stage").wait_for()
    for name in ("Technical options", "Scores and boxes", "Downloads", "The same again"):
        unfold(page, name)
    page.locator("#make").wait_for()
    assert page.evaluate(FAINT) == []
    assert page.evaluate(NAMELESS) == []
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("html").get_attribute("lang")
    page.emulate_media(forced_colors="active")
    legend = page.locator(".chip i").evaluate_all("(all) => all.map(one => getComputedStyle(one).backgroundColor)")
    assert len(set(legend)) == len(legend) == 2


def test_on_a_telephone_nothing_is_wider_than_the_screen(page_of, address, tmp_path):
    page = page_of(390, 844, device_scale_factor=1, has_touch=True)
    open_page(page, address)
    look(page, DEMO / "bee.jpg", "bee, flower")
    page.locator("#results .stage").wait_for()
    assert 0 <= page.locator("#status").bounding_box()["y"] < 422  # what is found came into sight
    shoot(page, "page-390")
    long = shutil.copy(DEMO / "bee.jpg", tmp_path / f"{'bee' * 60}.jpg")
    look(page, long, f"bee, flower{' of a long name' * 15}")
    page.locator("#results img[alt*='beebee']").first.wait_for()
    unfold(page, "Downloads")
    page.locator("#make").click()
    page.locator("#files li").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# --------------------------------------------------------------------------------------------------------- report pages


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
