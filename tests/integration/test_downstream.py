"""The harness on the real small model and real items."""

import pytest
import torch

from editkit.language.downstream import DownstreamParams, measure_downstream
from editkit.language.downstream_items import POOL, load_items
from tests.conftest import SHARED

pytestmark = [pytest.mark.needs_model, pytest.mark.slow]
FOLDER = SHARED / "downstream"


def test_sst2_on_100_items_is_what_full_passes_say(lm, store):
    if not FOLDER.is_dir():
        pytest.skip("needs the downstream samples in ../shared/data, which are absent here")
    params = DownstreamParams(downstream_tasks=["sst2"], downstream_path=str(FOLDER), number_of_tests=100)
    [row] = measure_downstream(lm, params, store=store, progress=False).itertuples()
    hits = 0
    for item in load_items("sst2", {}, str(FOLDER))[0][POOL : POOL + 100]:
        context = f"{item['sentence']}\nQuestion: Is this sentence positive or negative?\nAnswer:"
        ids, totals = [lm.start_id, *lm.tokens(context)], []
        for answer in (" negative", " positive"):
            more = lm.tokens(context + answer)[len(ids) - 1 :]
            with torch.no_grad():
                table = lm.model(torch.tensor([ids + more])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
            totals.append(table[range(len(more)), more].sum().item())
        hits += (totals[1] > totals[0]) == item["label"]
    assert row.n == 100 and row.value == hits / 100
