"""Where an edit happens: the subject's last token, and contexts that can be read back."""

import pytest
import torch

from editkit import Fact
from editkit.language.keys import edit_keys, locate, sample_contexts


@pytest.mark.parametrize("subject", ["Łódź", "Huế", "東京", "Cần Thơ", "Cafe\u0301", "São Tomé", "👩‍🔬", "Rome"])
@pytest.mark.parametrize("template", ["The city of {} is", "{}", "“{}” lies in", "{}的首都是"])
def test_the_last_byte_of_a_subject_counts(tiny, subject, template):
    """Cutting the tokens after that one, as the public code does, gives the subject whole."""
    lm = tiny()
    row = locate(lm, template, subject)
    assert lm.tokenizer.decode(row.ids[1 : row.subject_last + 1]).endswith(subject)
    assert not lm.tokenizer.decode(row.ids[1 : row.subject_last]).endswith(subject)


def test_subjects_that_differ_in_their_last_byte_have_keys_of_their_own(tiny):
    lm = tiny()
    one, other = (
        Fact.make(subject=subject, prompt="The city of {} is", target_new="France", target_true="Italy")
        for subject in ("甲", "男")
    )
    assert lm.encode("甲")[0][:-1] == lm.encode("男")[0][:-1]
    keys = edit_keys(lm, [one, other], 1, [])
    assert not torch.allclose(keys[:, 0], keys[:, 1])


def test_contexts_hold_neither_special_tokens_nor_braces(tiny, monkeypatch):
    lm = tiny()
    favoured = [lm.start_id, *lm.tokenizer.convert_tokens_to_ids(["{", "}", "a", "b"])]
    told = lm.logits

    def logits(hidden):
        raised = told(hidden).clone()
        raised[favoured] += 1e3
        return raised

    monkeypatch.setattr(lm, "logits", logits)
    contexts = sample_contexts(lm, 5, 20, seed=0)
    assert all(lm.start_id not in lm.encode(text)[0][1:] for text in contexts)
    assert not any(sign in text for text in contexts for sign in "{}") and any("a" in text for text in contexts)
