"""What has to be the same wherever numbers are compared, and the refusal to compare them where it is not.

Every row of results carries ``protocol``, a hash of :func:`stated`, and ``facts``, one of the facts of its seed; the
moment is a column of its own, and so is each rung (:mod:`editkit.language.metrics`).
"""

from typing import Any

import pandas as pd

from editkit.cache import digest
from editkit.facts.fact import part_of
from editkit.language.metrics import MAX_NEW_TOKENS
from editkit.studies.setting import Setting

LENGTH = 12  # of a hash in a table
MEASURED = {
    "success": "P(new) > P(true), on neighbourhood prompts P(true) > P(new); P: mean log-probability per token, forced",
    "accuracy": "every token of the wanted object is the first choice, those before it forced",
    "said": f"greedy, up to a sentence's end or {MAX_NEW_TOKENS} tokens; contains the wanted object in whole words",
    "normal form": "lower case, without accents, punctuation and articles (SQuAD)",
    "GE": "100 tokens, each drawn from the five likeliest; n-gram entropy of words in bits",
}


def stated(setting: Setting) -> dict[str, Any]:
    """State the protocol of a setting: facts and their part, the untouched model and start token, how it is scored."""
    lm, parts = setting.lm, {part_of(fact) for draw in setting.draws.values() for fact in draw.facts}
    model = {"model": lm.name, "weights": lm.fingerprint(), "start token": lm.tokenizer.decode([lm.start_id])}
    return {"dataset": setting.dataset, "part": " and ".join(sorted(parts)), **model, **MEASURED}


def provenance(setting: Setting) -> dict[str, Any]:
    """Return what stands beside a table of results: the hashes of the facts of each seed, and the protocol."""
    return {"facts": setting.hashes, "protocol": stated(setting)}


def named(setting: Setting, seed: int) -> dict[str, str]:
    """Return the columns ``protocol`` and ``facts`` of what is measured on the facts of a seed."""
    return {"protocol": digest(stated(setting))[:LENGTH], "facts": setting.hashes[seed][:LENGTH]}


def origin(setting: Setting, seed: int) -> dict[str, Any]:
    """Return the columns that say of what the rows of a seed are: model, data, seed, and those of :func:`named`."""
    return {"model": setting.lm.name, "dataset": setting.dataset, "seed": seed, **named(setting, seed)}


def check_one(*frames: pd.DataFrame) -> None:
    """Raise ``ValueError`` where frames hold rows of several protocols, or of different facts under one seed."""
    together = pd.concat(frames) if len(frames) > 1 else frames[0]
    if "protocol" in together and len(found := together.protocol.dropna().unique()) > 1:
        raise ValueError(f"protocols {' and '.join(map(str, found[:2]))} are mixed: these numbers cannot be compared")
    if {"facts", "seed"} <= {*together}:
        for seed, found in together.dropna(subset="facts").groupby("seed").facts.unique().items():
            if len(found) > 1:
                raise ValueError(f"seed {seed}: facts {' and '.join(map(str, found[:2]))} are mixed in one table")
