"""Shared and packed prefixes against plain passes; batches of rows."""

import itertools

import pytest
import torch

from editkit.language.forward.prefix import GROUP_COST, PADDING, TRUNK, Prefix, buckets, common_beginning, pad, run_rows
from tests.conftest import FAMILIES

TABLE = [
    [[0, 5, 6, 7, 8], [0, 9]],
    [[0, 5, 6, 11], [0, 9, 12, 13]],
    [[0, 5, 6], [0, 9]],
]


def plain(lm, ids):
    with torch.no_grad():
        return lm.forward(torch.tensor([ids]))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_suffixes_after_shared_and_packed_prefixes_are_those_of_plain_passes(tiny, family):
    lm = tiny(family)
    suffixes = [[[20, 21], [22]], [[23], [24, 25, 26]], [[27, 28], [29]]]
    packed = Prefix.run_sharing(lm, TABLE).pack(2)
    ids, _ = pad([sum(row, []) for row in suffixes], 0, lm.device)
    segment = torch.full_like(ids, PADDING)
    for row, (first, second) in enumerate(suffixes):
        segment[row, : len(first)] = 0
        segment[row, len(first) : len(first) + len(second)] = 1
    with torch.no_grad():
        hidden = packed.forward(lm, ids, segment)
    for row, number in itertools.product(range(3), range(2)):
        expected = plain(lm, TABLE[row][number] + suffixes[row][number])[-len(suffixes[row][number]) :]
        torch.testing.assert_close(hidden[row][segment[row] == number], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_see_their_trunk_and_not_each_other(tiny, family):
    lm = tiny(family)
    trunk, branches = [0, 5, 6], [[7, 8], [], [9]]
    with torch.no_grad():
        rows, segments = [trunk + [7, 8, 9], [0, 4]], [[TRUNK] * 3 + [0, 0, 2], [TRUNK] * 2]
        hidden = run_rows(lm, rows, segments)
    place = len(trunk)
    for branch in branches:
        expected = plain(lm, trunk + branch)
        torch.testing.assert_close(hidden[0, :3], expected[:3], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(hidden[0, place : place + len(branch)], expected[3:], rtol=1e-4, atol=1e-5)
        place += len(branch)
    torch.testing.assert_close(hidden[1, :2], plain(lm, [0, 4]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "mistral", "gemma3_text"])
def test_suffixes_may_leave_a_prefix_before_its_end(tiny, family):
    lm = tiny(family)
    long = [0, 5, 6, 7, 8, 9, 10, 11, 12]  # longer than a sliding window
    prefix = Prefix.run(lm, [long, long[:4]]).as_trunk()
    ends = [(7, [20, 21, 22]), (2, [23]), (3, [24, 25])]
    ids, segment, after = (
        torch.tensor([sum(parts, [])] * 2, device=lm.device)
        for parts in (
            [suffix for _, suffix in ends],
            [[number] * len(suffix) for number, (_, suffix) in enumerate(ends)],
            [[start] * len(suffix) for start, suffix in ends],
        )
    )
    with torch.no_grad():
        hidden = prefix.forward(lm, ids, segment, after)
    for number, (start, suffix) in enumerate(ends):
        expected = plain(lm, long[:start] + suffix)[start:]
        rows = [0] if start > 4 else [0, 1]  # the second prefix ends before the first one's end starts
        for row in rows:
            torch.testing.assert_close(hidden[row][segment[row] == number], expected, rtol=1e-4, atol=1e-5)


def test_the_models_attention_is_put_back(tiny):
    lm = tiny()
    before = lm.model.config._attn_implementation
    Prefix.run(lm, [[0, 1, 2]])
    with pytest.raises(IndexError):
        Prefix.run(lm, [[0, 10**6]])
    assert lm.model.config._attn_implementation == before


def test_a_model_that_has_one_attention_alone_is_not_asked_for_another(tiny, monkeypatch):
    lm = tiny("gptj")
    monkeypatch.setattr(lm.model, "set_attn_implementation", lambda name: pytest.fail("it warns at every pass"))
    Prefix.run(lm, [[0, 1, 2]])


def test_common_beginning():
    assert common_beginning([[1, 2, 3], [1, 2], [1, 2, 4]]) == [1, 2]
    assert common_beginning([[1, 2]]) == [1, 2]
    assert common_beginning([[3], [1, 2]]) == []


def test_buckets_hold_every_index_once_and_keep_the_budget():
    lengths = [5, 1, 9, 3, 3, 40, 2]
    groups = buckets(lengths, budget=12)
    assert sorted(i for group in groups for i in group) == list(range(7))
    assert all(len(group) * max(lengths[i] for i in group) <= 12 for group in groups if len(group) > 1)
    assert [5] in groups and buckets([], 12) == [] and buckets([0, 0], 12) == [[0, 1]]


def test_buckets_are_the_cheapest_of_all_divisions():
    lengths, budget = [3, 50, 11, 12, 30, 31, 90, 4], 130
    ordered = sorted(lengths)

    def cost(cuts):
        edges = [0, *cuts, len(ordered)]
        groups = [ordered[a:b] for a, b in itertools.pairwise(edges)]
        if any(len(group) > 1 and len(group) * group[-1] > budget for group in groups):
            return float("inf")
        return sum(len(group) * group[-1] + GROUP_COST for group in groups)

    every = (cuts for k in range(len(ordered)) for cuts in itertools.combinations(range(1, len(ordered)), k))
    found = [len(group) * max(lengths[i] for i in group) + GROUP_COST for group in buckets(lengths, budget)]
    assert sum(found) == min(map(cost, every))
