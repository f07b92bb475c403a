"""What a model says when nobody forces its tokens."""

import math
from collections import Counter

import pandas as pd
import pytest
import torch
from transformers import GenerationConfig

from editkit.language import generation
from editkit.language.generation import complete, generate, pick_examples, sample
from editkit.language.said import sentence_end
from tests.conftest import WORDS

# 50 prompts of 1 to 45 words, shorter than a window and longer; one comes twice.
PROMPTS = [" ".join((WORDS.split() * 3)[n : n + 1 + (7 * n) % 45]) for n in range(48)] + ["", "a b c"]
PROMPTS[14] = PROMPTS[13]


def plain(lm, prompt, n, ends):
    ids = torch.tensor([lm.encode(prompt)[0]], device=lm.device)
    config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=lm.start_id, max_new_tokens=n)
    with torch.no_grad():
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return tuple(out[0, ids.shape[1] :].tolist())


def test_examples_are_taken_in_turn_from_successes_and_failures():
    frame = pd.DataFrame(
        {
            "kind": ["rewrite"] * 6 + ["neighbourhood"] * 2,
            "accuracy": [True] * 5 + [False, True, False],
            "prompt": range(8),
        }
    )
    chosen = pick_examples(frame, 4)
    assert sorted(zip(chosen.kind, chosen.accuracy, strict=True)) == [
        ("neighbourhood", False), ("neighbourhood", True), ("rewrite", False), ("rewrite", True),
    ]  # fmt: skip


def test_greedy_is_greedy_whatever_the_hub_says(tiny):
    lm = tiny()
    prompts = ["The capital of France is", "a b c"]
    plain = complete(lm, prompts, 12)
    ids = lm.encode(prompts[0])[0]
    for _ in range(12):
        ids.append(lm.logits(lm.forward(torch.tensor([ids], device=lm.device))[0, -1]).argmax().item())
    assert plain[0] == lm.tokenizer.decode(ids[-12:], skip_special_tokens=True)
    told = GenerationConfig(
        repetition_penalty=3.0, no_repeat_ngram_size=1, num_beams=3, do_sample=True, temperature=5.0, min_new_tokens=9,
        suppress_tokens=ids[-3:], eos_token_id=0,
    )  # fmt: skip
    lm.model.generation_config = told
    assert complete(lm, prompts, 12) == plain and lm.model.generation_config is told


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3_text"])
def test_greedy_is_that_of_transformers_token_for_token(tiny, family, monkeypatch):
    lm = tiny(family)
    oracle = [plain(lm, prompt, 12, 0) for prompt in PROMPTS]
    # A token that comes at as many different steps as possible, so that rows end one after another.
    places = {token: {ids.index(token) for ids in oracle[:15] if token in ids} for token in set(sum(oracle, ()))}
    common = max(sorted(places), key=lambda token: len(places[token]))
    early = [plain(lm, prompt, 12, [0, common]) for prompt in PROMPTS[:15]]
    assert len({len(ids) for ids in early}) > 1
    for budget in (generation.BATCH_TOKENS, 1):  # many prompts in a batch, and one
        monkeypatch.setattr(generation, "BATCH_TOKENS", budget)
        lm.model.generation_config.eos_token_id = 0
        assert [one.ids for one in generate(lm, PROMPTS, 12)] == oracle
        lm.model.generation_config.eos_token_id = [0, common]
        found = generate(lm, PROMPTS[:15], 12)
        assert [one.ids for one in found] == early
        assert all((one.ended == "eos") == (one.ids[-1] in (0, common)) for one in found)


def test_a_sentence_ends_a_continuation_as_soon_as_it_shows(tiny):
    lm = tiny("gpt2")
    decode = lm.tokenizer.decode
    # A random model that likes to end lines.
    line = lm.tokens("\n")[0]
    weight = lm.model.get_output_embeddings().weight
    weight.data[line] = weight.data.mean(0) + 0.5 * weight.data[lm.tokens(" Rome")[0]]
    found, whole = generate(lm, PROMPTS, 24, stop="sentence"), generate(lm, PROMPTS, 24)
    for one, all_of_it in zip(found, whole, strict=True):
        assert one.ids == all_of_it.ids[: len(one.ids)]
        assert one.text == all_of_it.text[: sentence_end(all_of_it.text)]
        assert sentence_end(decode(one.ids[:-1], skip_special_tokens=True)) is None
        assert (one.ended == "sentence") == (sentence_end(all_of_it.text) is not None)
    assert {"sentence", "length"} <= {one.ended for one in found}


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_samples_depend_on_seed_and_prompt_alone(tiny, family, monkeypatch):
    lm = tiny(family)
    prompts = [*PROMPTS[:9], PROMPTS[0]]
    texts = sample(lm, prompts, 40)
    assert sample(lm, prompts, 40) == texts != sample(lm, prompts, 40, seed=1)
    assert texts[0] != texts[9]  # one prompt, two draws
    assert sample(lm, prompts[3:], 40)[:-1] == texts[3:-1]
    monkeypatch.setattr(generation, "BATCH_TOKENS", 1)
    assert sample(lm, prompts, 40) == texts
    for prompt, text in zip(prompts, texts, strict=True):
        assert text.startswith(prompt)


def test_the_likeliest_alone_is_greedy_and_nothing_ends_it(tiny):
    lm = tiny()
    lm.model.generation_config.eos_token_id = generate(lm, ["a b"], 1)[0].ids[0]
    ids = lm.encode("a b")[0]
    while len(ids) < 31:
        ids.append(lm.logits(lm.forward(torch.tensor([ids], device=lm.device))[0, -1]).argmax().item())
    assert sample(lm, ["a b"], 30, top_k=1) == [lm.tokenizer.decode(ids, skip_special_tokens=True)]
    assert sample(lm, ["a b c d e f"], 3) == ["a b c d e f"]  # is longer already
    assert generate(lm, [], 3) == [] and sample(lm, [], 3) == []


@pytest.mark.parametrize("top_k", [3, None])
def test_tokens_are_drawn_as_likely_as_they_are(tiny, top_k):
    lm, prompt, n = tiny(), "Rome lies in", 6000
    ids = lm.encode(prompt)[0]
    with torch.no_grad():
        logits = lm.logits(lm.forward(torch.tensor([ids], device=lm.device))[0, -1]).double()
    likely = logits.topk(top_k or len(logits))
    shares = Counter()  # by text: some tokens have one in common
    for chance, token in zip(likely.values.softmax(-1).tolist(), likely.indices.tolist(), strict=True):
        shares[lm.tokenizer.decode([*ids, token], skip_special_tokens=True)] += chance
    drawn = Counter(sample(lm, [prompt] * n, len(ids), top_k=top_k))
    assert drawn.keys() <= shares.keys()
    for text, share in shares.items():
        assert abs(drawn[text] / n - share) < 5 * math.sqrt(share * (1 - share) / n)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda lm: complete(lm, "a b", 3), TypeError, "prompts is the text 'a b'; a list of texts is needed"),
        (lambda lm: sample(lm, "a b", 3), TypeError, "prompts is the text 'a b'"),
        (lambda lm: complete(lm, ["a"], 0), ValueError, "max_new_tokens = 0: a whole number, at least 1"),
        (lambda lm: generate(lm, ["a"], 3, stop="word"), ValueError, "stop = 'word': must be one of eos, sentence"),
        (lambda lm: sample(lm, ["a"], 2.5), ValueError, "max_out_len = 2.5"),
        (lambda lm: sample(lm, ["a"], 5, top_k=0), ValueError, "top_k = 0"),
        (lambda lm: sample(lm, ["a"], 512), ValueError, "512 positions; 513 tokens are too many: 'a'"),
    ],
)
def test_what_cannot_be_written_is_refused(tiny, call, error, told):
    with pytest.raises(error, match=told):
        call(tiny("gpt2"))
