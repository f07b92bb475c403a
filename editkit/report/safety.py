"""What keeps data from becoming markup of the page: foreign HTML without anything live, and a policy for browsers.

A page shows texts of data sets, models and parameters. They arrive as text, in Markdown or inside HTML that a library
wrote; none of it may run, load or lead anywhere.
"""

import base64
import hashlib
from collections.abc import Iterable

from bs4 import BeautifulSoup
from nbconvert.preprocessors.sanitize import SanitizeHTML

TAGS = "a b br caption code col colgroup dd div dl dt em i li ol p pre span strong sub sup table tbody td tfoot th"
TAGS += " thead tr ul"
CELL = ["colspan", "rowspan", "scope"]
ATTRIBUTES = {"*": ["class", "style"], "th": CELL, "td": CELL}  # an a without href leads nowhere
STYLES = "background-color border-radius color font-style font-weight line-height margin padding text-align"


def clean(fragment: str) -> str:
    """Return an HTML fragment with texts, tables and their looks alone; any other tag is shown as text.

    Style sheets and scripts are left out with what they hold.
    """
    soup = BeautifulSoup(fragment, "html.parser")
    for element in soup.find_all(["style", "script"]):
        element.decompose()
    cleaner = SanitizeHTML(tags=TAGS.split(), attributes=ATTRIBUTES, styles=STYLES.split())
    return cleaner.sanitize_html_tags(str(soup))


def content_policy(scripts: Iterable[str]) -> str:
    """Return a Content-Security-Policy under which a page runs these inline scripts and loads nothing.

    Styles may stand in the page, as plotly writes them there; pictures may be data, or what a figure saves of itself.
    Source: https://www.w3.org/TR/CSP3/.
    """
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{one}'" for one in hashes) or "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in allowed.items())
