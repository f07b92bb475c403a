"""A page in a browser whose network is off."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright

from editkit.figures import find_browser


@dataclass
class Opened:
    """What a browser made of a page, once its figures have been looked at."""

    html: str
    said: list[str]
    """Lines of its console, and errors."""
    asked: list[str]
    """Addresses that it asked for, beside the page."""

    @property
    def soup(self) -> BeautifulSoup:
        return BeautifulSoup(self.html, "html.parser")


@pytest.fixture
def opened():
    """Open a page, look at every figure, and tell."""
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chrome, Chromium or Edge to open the report")

    def look(page: Path, scripts: bool = True) -> Opened:
        said, asked = [], []
        with sync_playwright() as playwright, playwright.chromium.launch(executable_path=browser) as chromium:
            context = chromium.new_context(offline=True, java_script_enabled=scripts)
            tab = context.new_page()
            tab.on("console", lambda message: said.append(message.text))
            tab.on("pageerror", lambda error: said.append(str(error)))
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto(page.as_uri())
            for picture in tab.query_selector_all(".picture"):
                picture.scroll_into_view_if_needed()
                if scripts:
                    picture.wait_for_selector("svg.main-svg", state="attached", timeout=20000)
            return Opened(tab.content(), said, [url for url in asked if url[:5] not in ("file:", "data:", "blob:")])

    return look
