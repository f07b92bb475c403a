"""What a text that a model wrote freely says: where its first sentence ends, and whether it names an object.

Texts are compared in a normal form: lower case, without accents of Latin and Greek letters, punctuation and English
articles, as SQuAD's evaluation does (arXiv 1606.05250), but a hyphen or an apostrophe parts words: "Paris-based" and
"France's" name Paris and France.
"""

import unicodedata

import regex

from editkit.models.language import UNSPACED

# A full stop after a single letter or one of these is part of a name: "Washington, D.C.", "St. Petersburg".
SHORT = r"\p{L}|St|Ste|Mt|Ft|Mr|Mrs|Ms|Dr|Prof|Gen|Col|Sen|Gov|Rev|Hon|Capt|Lt"
SENTENCE_END = regex.compile(
    r"(?<=\S)[^\S\n]*\n"  # a line's end
    r"|[。！？｡]"
    # "3.5", "..." and the "1." of a list end nothing.
    rf"|(?:[!?]+|(?<!\.)(?<!\b(?:{SHORT}))(?<!^\s*\d+)\.)[)\]\"'”’»]*(?=\s)"
)
ACRONYM_STOP = regex.compile(r"(?<=\b\p{L})\.(?=\p{L}\b|\W|$)")
ACCENT = regex.compile(r"(?<=[\p{Latin}\p{Greek}])\p{Mn}+")
PUNCTUATION = regex.compile(r"\p{P}+")
ARTICLE = regex.compile(r"\b(?:a|an|the)\b")
# A letter or digit that goes on with a word; in Korean particles follow their word without a space.
IN_WORD = regex.compile(rf"[[\p{{L}}\p{{N}}\p{{M}}]--{UNSPACED.pattern}--\p{{Hangul}}]", regex.V1)


def sentence_end(text: str) -> int | None:
    """Find where the first sentence of a text ends, closing quotes included; None while what follows could go on.

    A line's end is one, and a full stop before white space that no abbreviation has.
    """
    found = SENTENCE_END.search(text)
    if found is None:
        return None
    return found.start() if found[0].endswith("\n") else found.end()


def normalised(text: str) -> str:
    """Write a text in the form in which texts are compared.

    What would leave nothing is not taken away: the object "A" stays "a", and "?" stays "?".
    """
    bare = _bare(text)
    return _spaced(ARTICLE.sub(" ", bare)) or bare


def _bare(text: str) -> str:
    """Write a text in the normal form, articles included."""
    folded = ACCENT.sub("", unicodedata.normalize("NFKD", text.casefold()))
    folded = unicodedata.normalize("NFKC", folded)
    return _spaced(PUNCTUATION.sub(" ", ACRONYM_STOP.sub("", folded))) or _spaced(folded)


def is_exactly(text: str, wanted: str) -> bool:
    """Tell whether a text is an object and nothing else, in normal form."""
    return normalised(text) == normalised(wanted)


def names(text: str, wanted: str) -> bool:
    """Tell whether a text names an object in whole words, in normal form; scripts without spaces have no words."""
    return any(_holds(form(text), form(wanted)) for form in (normalised, _bare))  # the object "A" is an article too


def _holds(text: str, part: str) -> bool:
    before = f"(?<!{IN_WORD.pattern})" if IN_WORD.match(part[:1]) else ""
    after = f"(?!{IN_WORD.pattern})" if IN_WORD.match(part[-1:]) else ""
    return bool(regex.search(before + regex.escape(part) + after, text, regex.V1))


def _spaced(text: str) -> str:
    return " ".join(text.split())
