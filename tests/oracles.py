"""Plain, slow, independent implementations that the package is compared with."""

import torch
from torch import Tensor

from editkit.language.keys import locate


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


def plain_target(lm, fact, spec, contexts) -> tuple[Tensor, list[float]]:
    """v* of one edit by the published algorithm: full sequences, whole model, one edit at a time."""
    model, layer = lm.model, lm.layers[spec.layers[-1]]
    target = lm.encode_continuation(fact.text, fact.target_new)
    rows = [locate(lm, fact.prompt, fact.subject, context) for context in ["", *contexts]]
    essence = locate(lm, "{} is a", fact.subject)
    delta, h0, reference, losses = None, None, None, []

    def run(ids, position):
        nonlocal h0

        def add(module, args, output):
            nonlocal h0
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            if h0 is None:
                h0 = hidden[0, position].detach().clone()
            if delta is not None:
                hidden[0, position] = hidden[0, position] + delta
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = layer.register_forward_hook(add)
        try:
            return model(torch.tensor([ids])).logits[0].log_softmax(-1)
        finally:
            handle.remove()

    with torch.no_grad():
        run(rows[0].ids, rows[0].subject_last)
    delta = torch.zeros_like(h0, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=spec.v_lr)
    for step in range(spec.v_num_grad_steps):
        nll = 0
        for row in rows:
            table = run(row.ids + target[:-1], row.subject_last)
            predicted = table[len(row.ids) - 1 :]
            nll = nll - predicted[range(len(target)), target].mean() / len(rows)
        now = run(essence.ids, essence.subject_last)[essence.subject_last]
        reference = now.detach() if reference is None else reference
        kl = torch.nn.functional.kl_div(now, reference, log_target=True, reduction="sum")
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
