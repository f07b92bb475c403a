"""Targets, scores and second moments as the public code computes them, one edit or one layer at a time."""

import torch
from torch import Tensor

from editkit.language.forward.prefix import pad
from editkit.language.keys import locate
from editkit.models.hooks import capture, edit_output


def target(lm, fact, spec, contexts) -> tuple[Tensor, list[float]]:
    """Optimise v* of one edit as ``compute_z`` of MEMIT, EMMET, AlphaEdit and EasyEdit does. Returns its losses too.

    All prompts of one edit are padded to one batch; every layer runs on every token at every step, and
    every position is projected to the vocabulary twice: by the model, and again for the loss. With
    ``most_probable_steps`` it stops as ENCORE's does, which looks at the sampled contexts alone; with
    ``prompts_per_step`` the loss of a step is that of some prompts.
    """
    tokens = lm.encode_continuation(fact.text, fact.target_new)
    rows = [locate(lm, fact.prompt, fact.subject, context) for context in ["", *contexts]]
    essence = locate(lm, "{} is a", fact.subject)
    where = torch.tensor([row.subject_last for row in [*rows, essence]])
    ids, mask = pad([row.ids + tokens[:-1] for row in rows] + [essence.ids], lm.start_id, lm.device)
    labels = torch.full_like(ids[:-1], -100)  # (prompts, T): the token each position should predict
    for i, row in enumerate(rows):
        labels[i, len(row.ids) - 1 : len(row.ids) - 1 + len(tokens)] = torch.tensor(tokens)
    wanted = labels != -100
    h0, delta, reference, losses = None, None, None, []

    def add(hidden: Tensor) -> Tensor:
        nonlocal h0, delta
        hidden = hidden.clone()
        if h0 is None:
            h0 = hidden[0, where[0]].detach().clone()
            delta = torch.zeros_like(h0, requires_grad=True)
        hidden[torch.arange(len(hidden)), where] += delta
        return hidden

    optimiser, ahead = None, 0
    for step in range(spec.v_num_grad_steps):
        with edit_output({lm.target_module(spec.layers[-1]): add}):
            output = lm.model(ids, attention_mask=mask, output_hidden_states=True)
        optimiser = optimiser or torch.optim.Adam([delta], lr=spec.v_lr)
        now = output.logits[-1, where[-1]].log_softmax(-1)
        reference = now.detach() if reference is None else reference
        kl = torch.nn.functional.kl_div(reference, now, log_target=True, reduction="sum")
        table = lm.logits(output.hidden_states[-1][:-1]).log_softmax(-1)  # (prompts, T, vocabulary)
        picked = table.gather(2, labels.clamp_min(0)[..., None])[..., 0]
        each = -(picked * wanted).sum(1) / len(tokens)  # (prompts,)
        looked_at = spec.prompts_per_step or len(rows)
        nll = each[[(step * looked_at + i) % len(rows) for i in range(looked_at)]].mean()
        loss = nll + spec.kl_factor * kl + spec.v_weight_decay * delta.norm() / h0.norm() ** 2
        losses.append(loss.item())
        if spec.most_probable_steps:
            ahead += int((table.argmax(-1) == labels)[1:][wanted[1:]].all())
            if ahead == spec.most_probable_steps:
                break
        if loss < spec.early_stop_loss or step == spec.v_num_grad_steps - 1:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        limit = spec.clamp_norm_factor * h0.norm()
        if delta.norm() > limit:
            with torch.no_grad():
                delta *= limit / delta.norm()
    return (h0 + delta).detach(), losses


@torch.no_grad()
def key(lm, fact, layer: int, contexts) -> Tensor:
    """Read one edit's key (d_k,) as ``compute_ks`` of MEMIT does: the mean over types of context of a type's mean.

    The two types are the bare prompt and the sampled contexts; each prompt is run whole, one at a time.
    """
    means = []
    for kind in filter(None, ([""], list(contexts))):
        found = []
        for context in kind:
            row = locate(lm, fact.prompt, fact.subject, context)
            with capture({"k": lm.mlp_out(layer)}, side="input") as seen:
                lm.model(torch.tensor([row.ids], device=lm.device))
            found.append(seen["k"][0, row.subject_last])
        means.append(torch.stack(found).mean(0))
    return torch.stack(means).mean(0)


@torch.no_grad()
def memit_updates(lm, facts, spec, contexts, V: Tensor, costs: dict[int, Tensor]) -> dict[int, Tensor]:
    """Compute ΔW (d_v, d_k) of each layer as ``execute_memit`` does, from targets V (d, n) and ``C`` of each layer.

    Layers are written in ascending order, each with what is left divided by the layers left; the weights are put
    back at the end.
    """
    updates, before = {}, {layer: lm.weight(layer).clone() for layer in spec.layers}
    try:
        for index, layer in enumerate(spec.layers):
            K = torch.stack([key(lm, fact, layer, contexts) for fact in facts], dim=1).double()
            now = []
            for fact in facts:
                row = locate(lm, fact.prompt, fact.subject)
                with capture({"h": lm.layers[spec.layers[-1]]}) as seen:
                    lm.model(torch.tensor([row.ids], device=lm.device))
                now.append(seen["h"][0, row.subject_last])
            R = (V - torch.stack(now, dim=1)).double() / (len(spec.layers) - index)
            updates[layer] = R @ torch.linalg.solve(spec.mom2_update_weight * costs[layer].double() + K @ K.T, K).T
            lm.weight(layer).add_(updates[layer])
    finally:
        for layer, weight in before.items():
            lm.weight(layer).copy_(weight)
    return updates


@torch.no_grad()
def scores(lm, items) -> list[float]:
    """Score continuations as ``test_batch_prediction`` of ROME and its descendants does, one record at a time.

    All (prompt, continuation) pairs of a record are padded to one batch of full sequences, with the vocabulary at
    every position. Returns the mean log-probability of each continuation.
    """
    rows, spans = [], []
    for prompt, continuations in items:
        head = lm.encode(prompt)[0]
        for text in continuations:
            tail = lm.encode_continuation(prompt, text)
            rows.append(head + tail)
            spans.append((len(head), tail))
    ids, mask = pad(rows, lm.start_id, lm.device)
    logits = lm.model(ids, attention_mask=mask).logits
    means = []
    for row, (begin, tail) in enumerate(spans):
        values = [logits[row, begin - 1 + j].log_softmax(-1)[token].item() for j, token in enumerate(tail)]
        means.append(sum(values) / len(values))
    return means


@torch.no_grad()
def second_moment(lm, layer: int, chunks: list[list[int]], batch_tokens: int) -> Tensor:
    """Compute ``C`` (d_k, d_k) of one layer's keys as ``layer_stats`` of ROME and MEMIT does.

    Each layer takes a pass that stops there, over padded batches from 100 texts sorted by length, in float32.
    """
    total, count = torch.zeros(()), 0
    for begin in range(0, len(chunks), 100):
        group = sorted(chunks[begin : begin + 100], key=len)
        while group:
            size = max(1, batch_tokens // len(group[-1]))
            batch, group = group[-size:], group[:-size]
            ids, mask = pad(batch, lm.start_id, lm.device)
            with capture({"k": lm.mlp_out(layer)}, side="input", stop=True) as seen:
                lm.model(ids, attention_mask=mask)
            mask[:, 0] = False
            keys = seen["k"][mask]
            total = total + keys.T @ keys
            count += len(keys)
    return total.double() / count
