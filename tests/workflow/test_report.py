"""The report of the smoke experiment in headless Chromium: opened from disk, with nothing but the file.

Screenshots at two widths lie in the folder that COUNTERPROBE_SCREENSHOTS names, else in pytest's own.
"""

import importlib.util
import os
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
HERE = Path(__file__).parent


def _browser():
    made = importlib.util.spec_from_file_location("workflow_browser", HERE / "browser.py")
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module


browser = _browser()


@pytest.fixture(scope="module")
def report(request):
    """The page of a run, or the one that COUNTERPROBE_REPORT names."""
    if browser.find() is None:
        pytest.skip("needs Chromium: python tests/workflow/browser.py install")
    if "COUNTERPROBE_REPORT" in os.environ:
        return Path(os.environ["COUNTERPROBE_REPORT"])
    checkout = request.getfixturevalue("smoke")
    checkout.run("write_report", "--configfile", "config/smoke.yaml")
    return checkout.root / "results/smoke/report.html"


@pytest.fixture(scope="module")
def page(report):
    opened = browser.Page(1280, 900)
    opened.seconds = opened.open(report)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    named = os.environ.get("COUNTERPROBE_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


SHOWN = "[...document.querySelectorAll('#claims-table > tbody > tr')].filter(row => !row.hidden)"


def choose(page, control, value):
    page.evaluate(
        f"(() => {{ const c = document.getElementById('{control}'); c.value = {value!r};"
        "c.dispatchEvent(new Event(c.tagName === 'SELECT' ? 'change' : 'input')); })()"
    )


def test_it_opens_at_once_and_asks_no_network_for_anything(report, page):
    assert report.stat().st_size < 15e6
    assert page.seconds < 3
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in page.requests) == 1


def test_every_link_inside_resolves_and_every_image_is_there(page):
    dead = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
        ".filter(id => !document.getElementById(id))"
    )
    assert dead == []
    assert page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth || !i.alt).length") == 0
    addresses = page.evaluate("[...document.querySelectorAll('a[download]')].map(a => a.href)")
    assert all(address.startswith(("data:text/csv", "file:")) for address in addresses)


def test_columns_sort_both_ways_with_missing_numbers_last(page):
    column = "[...document.querySelectorAll('#claims-table > tbody > tr')].map(row => row.cells[3].dataset.sort)"
    for order in ("ascending", "descending"):
        page.evaluate("document.querySelectorAll('#claims-table th button')[3].click()")
        assert page.evaluate("document.querySelectorAll('#claims-table th')[3].getAttribute('aria-sort')") == order
        values = page.evaluate(column)
        numbers = [float(value) for value in values if value != "nan"]
        assert numbers == sorted(numbers, reverse=order == "descending")
        assert set(values[len(numbers) :]) <= {"nan"}
    page.evaluate("document.querySelectorAll('#claims-table th button')[0].click()")
    assert page.evaluate(f"{SHOWN}.map(row => row.id)") == [f"C{number:02}" for number in range(1, 57)]


def test_filters_and_search_narrow_the_table_and_the_file_it_saves(page):
    choose(page, "by-verdict", "not run")
    assert set(page.evaluate(f"{SHOWN}.map(row => row.dataset.verdict)")) == {"not run"}
    choose(page, "by-family", "dictionaries")
    choose(page, "search", "hoagy ANALYSIS")
    assert page.evaluate(f"{SHOWN}.map(row => row.id)") == ["C22"]
    assert page.evaluate("document.getElementById('shown').textContent") == "1 of 56 rows"
    page.evaluate("document.getElementById('save').addEventListener('click', event => event.preventDefault())")
    page.evaluate("document.getElementById('save').click()")
    saved = page.evaluate("decodeURIComponent(document.getElementById('save').href.split(',').slice(1).join(','))")
    assert re.findall(r'^"(C\d\d)"', saved, flags=re.MULTILINE) == ["C22"]
    for control in ("by-verdict", "by-family", "search"):
        choose(page, control, "")
    assert page.evaluate(f"{SHOWN}.length") == 56


def test_it_can_be_used_from_the_keyboard(report, page):
    page.open(report)
    page.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(40):
        page.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"search", "by-verdict", "by-family", "save", "BUTTON", "SUMMARY"} <= reached
    page.evaluate("document.querySelector('#claims-table th button').focus()")
    page.press("Enter", "\r")
    assert page.evaluate("document.querySelector('#claims-table th').getAttribute('aria-sort')") == "ascending"


def test_a_link_to_a_claim_opens_its_criterion(page):
    page.evaluate("location.hash = '#C10'")
    assert page.evaluate(
        "new Promise(done => setTimeout(() => done(document.querySelector('#C10 details').open), 100))"
    )


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_nothing_is_wider_than_the_window(page, report, pictures, width, height):
    page.resize(width, height)
    page.open(report)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for section in ("answer", "claims", "figures", "cost"):
        page.evaluate(f"document.getElementById('{section}').scrollIntoView()")
        page.screenshot(pictures / f"{section}_{width}.png")
    page.resize(1280, 900)
    assert page.errors == []


def test_words_stand_out_from_what_is_behind_them(page, report):
    """WCAG's contrast of 4.5 (https://www.w3.org/TR/WCAG21/#contrast-minimum) for verdicts, and a sign besides colour."""
    page.open(report)
    colours = page.evaluate(
        "[...new Set([...document.querySelectorAll('.v, .small, a, td, th')].map(e => {"
        "let b = e; while (b && getComputedStyle(b).backgroundColor === 'rgba(0, 0, 0, 0)') b = b.parentElement;"
        "return getComputedStyle(e).color + '|' + (b ? getComputedStyle(b).backgroundColor : 'rgb(255, 255, 255)'); }))]"
    )
    assert len(colours) > 3
    for pair in colours:
        text, behind = ([int(x) for x in re.findall(r"\d+", part)[:3]] for part in pair.split("|"))
        light, dark = sorted((luminance(text), luminance(behind)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, pair
    signs = page.evaluate(
        "[...document.querySelectorAll('#claims p .v')].map(e => getComputedStyle(e, '::before').content)"
    )
    assert len(set(signs)) == 4


def luminance(colour):
    parts = [c / 255 for c in colour]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_it_prints(page):
    assert page.pdf().startswith(b"%PDF")
