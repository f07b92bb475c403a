"""Plain, slow, independent implementations that the package is compared with."""

import torch
from torch import Tensor

from editkit.hooks import capture, first
from editkit.language.keys import locate
from editkit.prefix import pad


def kkt_equality(K: Tensor, R: Tensor, A: Tensor) -> Tensor:
    """argmin tr(ΔW A ΔWᵀ) subject to ΔW K = R, from the KKT system [[2A, K], [Kᵀ, 0]] solved directly."""
    d, n = K.shape
    top = torch.cat([2 * A, K], dim=1)
    bottom = torch.cat([K.T, torch.zeros(n, n, dtype=K.dtype)], dim=1)
    right = torch.cat([torch.zeros(d, R.shape[0], dtype=K.dtype), R.T])
    return torch.linalg.solve(torch.cat([top, bottom]), right)[:d].T


def weighted_normal_equations(K: Tensor, R: Tensor, A: Tensor, weights: Tensor) -> Tensor:
    """argmin tr(ΔW A ΔWᵀ) + Σ d_i ‖ΔW k_i − r_i‖², from its d_k × d_k normal equations."""
    D = weights.diag()
    return torch.linalg.solve(A + K @ D @ K.T, (R @ D @ K.T).T).T


def memit_printed(K: Tensor, R: Tensor, C: Tensor, weight: float) -> Tensor:
    """ΔW = R Kᵀ (λC + K Kᵀ)⁻¹, arXiv 2210.07229 eq. 14."""
    return R @ K.T @ torch.linalg.inv(weight * C + K @ K.T)


def alphaedit_printed(K: Tensor, R: Tensor, P: Tensor, past: Tensor, l2: float) -> Tensor:
    """ΔW = R KᵀP (K_pK_pᵀP + KKᵀP + λI)⁻¹, arXiv 2410.02355 eq. 14 with its λ."""
    identity = torch.eye(len(P), dtype=K.dtype)
    return R @ K.T @ P @ torch.linalg.inv(past @ past.T @ P + K @ K.T @ P + l2 * identity)


def alphaedit_public(K: Tensor, R: Tensor, P: Tensor, past: Tensor, l2: float) -> Tensor:
    """The same as the public code solves it: a d_k × d_k system, ``past`` being K_p K_pᵀ."""
    identity = torch.eye(len(P), dtype=K.dtype)
    return torch.linalg.solve(P @ (K @ K.T + past) + l2 * identity, P @ K @ R.T).T


def reference_target(lm, fact, spec, contexts) -> tuple[Tensor, list[float]]:
    """v* of one edit as the public code computes it (``compute_z`` of MEMIT, EMMET, AlphaEdit and EasyEdit).

    All prompts of one edit are padded to one batch; every layer runs on every token at every step, and the
    vocabulary is projected to at every position, twice: by the model, and again for the loss.
    """
    target = lm.encode_continuation(fact.text, fact.target_new)
    rows = [locate(lm, fact.prompt, fact.subject, context) for context in ["", *contexts]]
    essence = locate(lm, "{} is a", fact.subject)
    where = torch.tensor([row.subject_last for row in [*rows, essence]])
    ids, mask = pad([row.ids + target[:-1] for row in rows] + [essence.ids], lm.start_id, lm.device)
    labels = torch.full_like(ids[:-1], -100)  # (prompts, T): the token each position should predict
    for i, row in enumerate(rows):
        labels[i, len(row.ids) - 1 : len(row.ids) - 1 + len(target)] = torch.tensor(target)
    wanted = labels != -100
    h0, delta, reference, losses = None, None, None, []

    def add(module, args, output):
        nonlocal h0, delta
        hidden = first(output).clone()
        if h0 is None:
            h0 = hidden[0, where[0]].detach().clone()
            delta = torch.zeros_like(h0, requires_grad=True)
        hidden[torch.arange(len(hidden)), where] += delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    optimiser = None
    for step in range(spec.v_num_grad_steps):
        handle = lm.layers[spec.layers[-1]].register_forward_hook(add)
        try:
            output = lm.model(ids, attention_mask=mask, output_hidden_states=True)
        finally:
            handle.remove()
        optimiser = optimiser or torch.optim.Adam([delta], lr=spec.v_lr)
        now = output.logits[-1, where[-1]].log_softmax(-1)
        reference = now.detach() if reference is None else reference
        kl = torch.nn.functional.kl_div(now, reference, log_target=True, reduction="sum")
        table = lm.logits(output.hidden_states[-1][:-1]).log_softmax(-1)  # (prompts, T, vocabulary)
        picked = table.gather(2, labels.clamp_min(0)[..., None])[..., 0]
        nll = -((picked * wanted).sum(1) / len(target)).mean()
        loss = nll + spec.kl_factor * kl + spec.v_weight_decay * delta.norm() / h0.norm() ** 2
        losses.append(loss.item())
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
def reference_scores(lm, items) -> list[float]:
    """Mean log-probability of each prompt's continuations, as the public code scores one record at a time.

    All (prompt, continuation) pairs of a record are padded to one batch of full sequences, with the
    vocabulary at every position (``test_batch_prediction`` of ROME and its descendants).
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
    scores = []
    for row, (begin, tail) in enumerate(spans):
        values = [logits[row, begin - 1 + j].log_softmax(-1)[token].item() for j, token in enumerate(tail)]
        scores.append(sum(values) / len(values))
    return scores


@torch.no_grad()
def reference_second_moment(lm, layer: int, chunks: list[list[int]], batch_tokens: int) -> Tensor:
    """``C`` of one layer's keys, as the public code makes it: a pass a layer, stopped there, padded batches
    of 100 texts sorted by length (``layer_stats`` of ROME and MEMIT), float32 products."""
    total, count = torch.zeros(0), 0
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
            total = total + keys.T @ keys if count else keys.T @ keys
            count += len(keys)
    return total.double() / count


def agree(ours: torch.Tensor, oracle: torch.Tensor, tolerance: float = 1e-8) -> None:
    """Assert that two tensors agree relative to the norm of the second."""
    assert (ours - oracle).norm() <= tolerance * oracle.norm().clamp_min(1e-12)
