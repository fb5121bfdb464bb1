"""The page in a browser: it opens from disk, and every control changes what is shown."""

import shutil

import numpy as np
import pytest

from flowguide import evaluation, page
from flowguide.build import Splits
from flowguide.networks import Network
from flowguide.page import assemble, drawing
from flowguide.schema import Images, Vectors
from tests.page.conftest import CONFIG, GAMMAS
from tests.support.toy import ONE
from tests.support.toy_data import dataset

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SHOWN = "return document.querySelector('[data-view={}] canvas').toDataURL()"
WIDTHS = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
CONTROLS = {
    "explorer-gamma": "ARROW_RIGHT",
    "explorer-steps": "ARROW_LEFT",
    "explorer-condition": "ARROW_DOWN",
    "explorer-negative": "ARROW_DOWN",
    "explorer-rule": "ARROW_DOWN",
}
COLOURS = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"


def velocity(params, t, x, c):
    """Gently towards a brightness, so that no pixel leaves its range at any γ."""
    hat = c.present["hat"] * (c.value["hat"] + 1) / 40
    return hat.reshape(-1, *(1,) * (x.ndim - 1)) - x


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, found, tmp_path):
    """Opens the page of a kind of example."""

    def open_page(examples):
        model = ONE._replace(info=ONE.info._replace(examples=examples), network=Network(ONE.network.init, velocity))
        data = Splits(dataset("train", 60, 0, model.info), dataset("test", 24, 1, model.info))
        settings = evaluation.settings(model, GAMMAS, (CONFIG, CONFIG._replace(guidance="apg")))
        plan = page.plan(settings, data, page.Wanted(5, ["1", "4", "7"], ["4"], [1, 2, 3]))
        file = tmp_path / "evaluation.html"
        file.write_text(assemble.html(found, plan, drawing.draw(plan)))
        resize(browser, 1200, 900)
        browser.get(file.as_uri())
        return browser

    yield open_page
    log = browser.get_log("browser")
    assert not log, log
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def resize(browser, width, height):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(browser, name, value):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": name, "value": value}]})


def changes(browser, script, act):
    """Whether what a script returns is soon another thing after an action."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    before = settled(browser, script)
    act()
    try:
        return WebDriverWait(browser, 3, 0.05).until(lambda _: browser.execute_script(script) != before)
    except TimeoutException:
        return False


def settled(browser, script):
    """What a script returns once the picture is drawn."""
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    return browser.execute_script(script)


def press(browser, name, key):
    from selenium.webdriver.common.keys import Keys

    browser.find_element("id", name).send_keys(getattr(Keys, key))


def test_every_control_changes_the_picture_by_keyboard(opened):
    browser = opened(Images((8, 8, 3)))
    shown = SHOWN.format("explorer")
    assert browser.execute_script("return document.querySelectorAll('[data-view] canvas').length") == 2
    for name, key in CONTROLS.items():
        assert changes(browser, shown, lambda name=name, key=key: press(browser, name, key)), name
    text = browser.find_element("css selector", "[data-status=explorer]").text
    assert text == "condition 4, γ = 4, 2 steps, apg"  # which takes no negative condition
    assert not browser.find_element("id", "explorer-negative").is_enabled()
    assert (
        browser.find_element("css selector", "[data-view=explorer] canvas").get_attribute("aria-label").endswith(text)
    )
    # The other view has the same γ and condition.
    assert browser.find_element("id", "trajectory-gamma").get_attribute("aria-valuetext") == "4"
    assert changes(browser, SHOWN.format("trajectory"), lambda: press(browser, "trajectory-condition", "ARROW_DOWN"))
    assert browser.find_element("id", "explorer-condition").get_attribute("value") == "2"


def test_time_goes_by_hand_and_by_itself(opened):
    browser = opened(Images((8, 8, 1)))
    shown, now = SHOWN.format("trajectory"), "return document.getElementById('t').value"
    assert changes(browser, shown, lambda: press(browser, "t", "ARROW_LEFT"))
    assert browser.execute_script(now) == "1"
    prefer(browser, "prefers-reduced-motion", "no-preference")
    assert changes(browser, now, browser.find_element("id", "play").click)
    assert browser.find_element("id", "play").text in ("Pause", "Play")
    assert changes(browser, now, lambda: None) or browser.execute_script(now) == "3"
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 5).until(lambda _: browser.find_element("id", "play").text == "Play")
    assert browser.execute_script(now) == "3"
    prefer(browser, "prefers-reduced-motion", "reduce")
    for state in ("0", "1", "2"):  # one state a press
        browser.find_element("id", "play").click()
        assert settled(browser, now) == state
        assert browser.find_element("id", "play").text == "Play"
    assert "t = 0.6667" in browser.find_element("css selector", "[data-status=trajectory]").text


def test_it_fits_a_phone_and_the_dark(opened):
    browser = opened(Images((8, 8, 1)))
    for width in (360, 1200):
        resize(browser, width, 740)
        scrolled, seen = settled(browser, WIDTHS)
        assert scrolled <= seen
        canvas = browser.execute_script("return document.querySelector('canvas').getBoundingClientRect().width")
        assert 200 < canvas < width
    prefer(browser, "prefers-color-scheme", "light")
    light = np.array([brightness(colour) for colour in browser.execute_script(COLOURS)])
    prefer(browser, "prefers-color-scheme", "dark")
    dark = np.array([brightness(colour) for colour in browser.execute_script(COLOURS)])
    assert light[0] < 80 < 200 < light[1]
    assert dark[1] < 80 < 200 < dark[0]


def test_points_move(opened):
    browser = opened(Vectors((2,)))
    places = "return [...document.querySelectorAll('[data-view={}] circle')].map(c => c.getAttribute('cx')).join()"
    for name, key in (("explorer-gamma", "ARROW_RIGHT"), ("explorer-steps", "ARROW_LEFT")):
        assert changes(browser, places.format("explorer"), lambda name=name, key=key: press(browser, name, key))
    assert changes(browser, places.format("trajectory"), lambda: press(browser, "t", "ARROW_LEFT"))
    resize(browser, 360, 740)
    scrolled, seen = settled(browser, WIDTHS)
    assert scrolled <= seen


def brightness(colour):
    return np.mean([float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]])
