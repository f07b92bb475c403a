"""Training on text, rounding and merging: against transformers' Trainer, torch's quantisation and printed formulas."""

import copy

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from editkit.editing.weights import RawWeights
from editkit.language.domain import EditSession
from editkit.language.use import merged, restored, round_weights, rounded, train_on
from tests.conftest import TEXTS, agree


def quantised(weight: torch.Tensor, bits: int, channel: int = 0) -> torch.Tensor:
    """What torch's own quantisation to steps of max |w| / (2^(bits − 1) − 1) a channel makes of a matrix."""
    scales = weight.double().abs().amax(1 - channel) / (2 ** (bits - 1) - 1)
    zeros = torch.zeros(len(scales), dtype=torch.long)
    return torch.quantize_per_channel(weight.cpu(), scales.cpu(), zeros, channel, torch.qint8).dequantize()


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_is_torchs_quantisation_a_channel(bits):
    torch.manual_seed(0)
    weight = torch.randn(32, 48) * torch.logspace(-3, 1, 32)[:, None]
    for channel, matrix in ((0, weight), (1, weight.T)):
        agree(rounded(matrix, bits, channel), quantised(matrix, bits, channel), 1e-6)
    levels = {len(row.unique()) for row in rounded(weight, bits)}
    assert max(levels) <= 2**bits - 1 and not torch.equal(rounded(weight, bits), weight)
    assert torch.equal(rounded(torch.zeros(2, 3), bits), torch.zeros(2, 3))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_linear_layers_are_rounded_by_output_channel_and_nothing_else_is(tiny, family):
    lm = tiny(family)
    before = copy.deepcopy(lm.model.state_dict())
    number = round_weights(lm, 8)
    changed = [name for name, weight in lm.model.state_dict().items() if not torch.equal(weight, before[name])]
    assert len(changed) == number == lm.n_layers * {"llama": 7, "gpt2": 4}[family]
    for name in changed:  # GPT-2's matrices lie with their outputs in columns
        agree(lm.model.state_dict()[name], quantised(before[name], 8, int(family == "gpt2")).to(lm.device), 1e-6)


def test_training_takes_the_steps_of_transformers_trainer(tiny, tmp_path):
    ours, theirs = tiny(), tiny()
    rows = torch.randint(1, 300, (6, 9), generator=torch.Generator().manual_seed(1))
    rows[:, 0] = ours.start_id
    how = dict(learning_rate=0.01, num_train_epochs=1, per_device_train_batch_size=2, optim="adamw_torch")
    how |= dict(report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=ours.device.type == "cpu")
    data = [{"input_ids": row, "labels": row} for row in rows]
    theirs.model.requires_grad_()
    trainer = Trainer(theirs.model, TrainingArguments(str(tmp_path), **how), train_dataset=data)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
    trainer.train()
    start = ours.fingerprint()
    losses = train_on(ours, rows.split(2), lr=0.01)
    assert ours.fingerprint() != start and len(losses) == 3
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        agree(one.double(), other.detach().double(), 1e-4)
        assert not one.requires_grad and one.grad is None


def test_what_is_done_in_a_block_is_undone_bit_for_bit_and_the_edits_still_are(tiny, facts, full_spec, store):
    lm = tiny()
    untouched = lm.fingerprint()
    session = EditSession(lm, full_spec(), texts=TEXTS, contexts=[], store=store, progress=False)
    session.edit(facts[:2])
    edited = lm.fingerprint()
    ids = torch.tensor([lm.encode(TEXTS[0])[0][:20]])
    for use in (lambda: train_on(lm, [ids], 0.01), lambda: round_weights(lm, 4)):
        with restored(lm) as same:
            use()
            assert same is lm and lm.fingerprint() != edited
        assert lm.fingerprint() == edited
    with pytest.raises(KeyboardInterrupt), restored(lm):
        train_on(lm, [ids], 0.01)
        raise KeyboardInterrupt
    assert lm.fingerprint() == edited and not any(weight.requires_grad for weight in lm.model.parameters())
    session.undo()
    assert lm.fingerprint() == untouched


def test_training_that_diverges_says_so(tiny):
    lm = tiny()
    lm.weight(2).fill_(float("nan"))
    ids = torch.tensor([lm.encode(TEXTS[0])[0][:20]])
    with pytest.raises(FloatingPointError, match=r"diverged at step 0: lower the learning rate \(0.5\)"):
        train_on(lm, [ids], 0.5)
    assert not any(weight.requires_grad or weight.grad is not None for weight in lm.model.parameters())


def test_weights_that_cannot_be_put_back_are_refused(tiny):
    lm = tiny()
    lm.mlp_out(1).weight = nn.Parameter(lm.mlp_out(1).weight.to("meta"), requires_grad=False)
    with pytest.raises(ValueError, match=r"down_proj\.weight is quantised or moved out"), restored(lm):
        pass


def test_merging_adds_task_vectors_and_averages_models(tiny):
    base, one, other = (tiny(seed=seed) for seed in (0, 1, 2))
    states = [RawWeights(lm, [1, 2]).read() for lm in (base, one, other)]
    W, W1, W2 = (state["weight.2"].double() for state in states)
    added = merged(states[0], states[1:], 1.0)
    assert torch.equal(added["weight.2"], (W + (W1 - W) + (W2 - W)).float()) and added.keys() == states[0].keys()
    halfway = torch.optim.swa_utils.AveragedModel(base.model)  # torch's running mean of models
    for lm in (base, one):
        halfway.update_parameters(lm.model)
    found = merged(states[0], states[1:2], 0.5)
    for layer in (1, 2):
        agree(found[f"weight.{layer}"], halfway.module.get_submodule(base.mlp_out_name(layer)).weight, 1e-6)
