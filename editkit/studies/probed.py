"""The texts on which a study measures how far a model has moved: what neither C nor a trust score has seen."""

from editkit.editing.spec import EditSpec
from editkit.language.drift import PIECES, PROBE_TOKENS, TextProbe, held_out, sentences
from editkit.language.texts import other_prose
from editkit.studies.setting import Setting


def text_probes(setting: Setting, spec: EditSpec) -> dict[str, TextProbe]:
    """Make a probe of each kind of text that there is (:mod:`editkit.language.drift`), of the model as it stands.

    Args:
        spec: resolved, with the seed whose facts are edited.
    """
    draw, judged = setting.draws[spec.seed], spec.trust_heldout_samples * PROBE_TOKENS
    rows = {
        "text": held_out(setting.lm, setting.texts, spec.mom2_n_tokens, PIECES),
        "prose": held_out(setting.lm, prose(setting, spec), judged, PIECES),
        "subjects": sentences(setting.lm, draw.facts, draw.heldout, PIECES),
    }
    return {kind: TextProbe(setting.lm, tokens) for kind, tokens in rows.items() if tokens}


def prose(setting: Setting, spec: EditSpec) -> list[str]:
    """Read what a trust score, and after it the probes, take for other prose."""
    enough = (spec.trust_heldout_samples + PIECES) * PROBE_TOKENS
    return other_prose(setting.texts, lm=setting.lm, n_tokens=enough, store=setting.store)
