"""Texts that no editor has seen."""

from editkit.studies.endings import seeded
from editkit.studies.probed import prose, text_probes


def test_each_kind_of_text_that_there_is_has_a_probe_of_the_model_as_it_stands(setting, facts):
    one = setting({1: (facts[:2], facts[2:])}, mom2_n_tokens=100, trust_heldout_samples=2)
    probes = text_probes(one, seeded(one, 1, one.spec("memit")))
    assert list(probes) == ["text", "prose", "subjects"]
    assert all(probe.measure(one.lm) == (probe.perplexity, 0.0) for probe in probes.values())
    alone = setting({1: (facts, [])}, mom2_n_tokens=100, trust_heldout_samples=2)
    assert prose(alone, seeded(alone, 1, alone.spec("memit"))) == prose(one, seeded(one, 1, one.spec("memit")))
    before = one.lm.weight(2).clone()
    one.lm.weight(2).mul_(2.0)
    assert all(probe.measure(one.lm)[1] > 1e-4 for probe in probes.values())
    one.lm.weight(2).copy_(before)
