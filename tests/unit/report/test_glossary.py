"""The glossary: its words are those of the package, and are marked where they are first used."""

from bs4 import BeautifulSoup

from editkit.figures.ladder import RUNGS
from editkit.report.citations import References
from editkit.report.glossary import Glossary
from editkit.report.markdown import Renderer


def marked(text: str) -> BeautifulSoup:
    soup = BeautifulSoup(text, "html.parser")
    Glossary().mark(soup)
    return soup


def test_a_word_is_marked_once_and_as_a_whole():
    soup = marked("<p>NS and NS; NSX, x-NS. The <em>null space</em>.</p><p>NS again, and PS</p>")
    links = soup.select("a.term")
    assert [(link.get_text(), link["href"]) for link in links] == [
        ("NS", "#term-ns"),
        ("null space", "#term-null-space"),
        ("PS", "#term-ps"),
    ]
    assert soup.get_text() == "NS and NS; NSX, x-NS. The null space.NS again, and PS"


def test_only_prose_is_marked():
    soup = marked("<h2>NS</h2><pre>NS</pre><table><tr><td><p>NS</p></td></tr></table><p><code>NS</code> <a>NS</a></p>")
    assert not soup.select("a.term")


def test_a_text_stays_text():
    soup = marked("<p>&lt;script&gt;NS&lt;/script&gt;</p>")
    assert soup.get_text() == "<script>NS</script>" and not soup.script


def test_it_explains_the_scores_and_every_rung():
    glossary = Glossary()
    words = {word for term in glossary.terms.values() for word in term["words"]}
    assert {"ES", "PS", "NS", "S", "GE", *RUNGS} <= words
    meanings = glossary.meanings(Renderer("glossary", set(), References(), ""))
    assert meanings.keys() == glossary.terms.keys()
    assert len({place for place, _ in meanings.values()}) == len(meanings)
    assert all(text.startswith("<p>") for _, text in meanings.values())
