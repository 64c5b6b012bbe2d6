"""OBS-Diff's unstructured pruning of one layer: remove weights, and let the rest make up for them.

Optimal Brain Surgeon, column by column as in SparseGPT (Frantar & Alistarh 2023, Algorithm 1), on
the timestep-weighted Hessian of OBS-Diff (Zhu et al. 2025, arXiv 2510.06751): for a layer's inputs
X_t [in, tokens] at step t, ``H = sum_t alpha_t X_t X_t^T``.
"""

from __future__ import annotations

import math

import torch

from crdiff_ext.errors import CRDiffError

DAMPING = 0.01
"""Share of the Hessian's mean diagonal that is added to its diagonal, as in both references."""
BLOCK = 128
"""Columns whose mask is chosen together, as in both references."""
WEIGHTS = (0.8, 1.2)
"""alpha_t of the last and of the first step, as in OBS-Diff's scripts."""
PACKAGES = 4
"""Groups of layers pruned one after the other, each calibrated with those before it pruned."""


def timestep_weight(step: int, steps: int) -> float:
    """alpha_t, falling logarithmically from the first step (0) to the last (``steps`` - 1).

    >>> [round(timestep_weight(step, 4), 3) for step in range(4)]
    [1.2, 1.117, 1.0, 0.8]
    """
    low, high = WEIGHTS
    if steps == 1:
        return high
    return low + (high - low) * math.log(steps - step) / math.log(steps)


def inverse_factor(hessian: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    """Upper U [in, in] with ``U^T U = (H + damping mean(diag H) I)^-1``, fp32.

    Then ``U[i, i] U[i, i:]`` is the first row of the inverse of ``H[i:, i:]``: all that
    column-wise OBS needs, from one factorisation. Inputs that were always 0 get a diagonal of 1.
    Raises CRDiffError when H is not a number or not positive definite.
    """
    # fp64: the inverse of a nearly singular matrix. Apple's GPU has none.
    device = torch.device("cpu") if hessian.device.type == "mps" else hessian.device
    work = hessian.to(device, torch.float64, copy=True)
    diagonal = work.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(work)
    if not failed:
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if failed or not torch.isfinite(upper).all():
        raise CRDiffError(
            "the Hessian of a layer's inputs has no inverse (inputs that are not numbers, or far "
            "too large): try --dtype fp32 or bf16"
        )
    return upper.to(hessian.device, torch.float32)


def obs_prune(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    count: int,
    damping: float = DAMPING,
    block: int = BLOCK,
) -> torch.Tensor:
    """A new weight [out, in] with ``count`` zeros more, the others adapted; the weight's dtype.

    From left to right, in blocks of columns: the weights with the smallest ``w^2 / U_ii^2`` of a
    block go (each block gets its share of ``count``), and after each column the columns to the
    right take over its error.
    """
    columns = weight.shape[1]
    upper = inverse_factor(hessian, damping).to(weight.device)
    work = weight.detach().to(torch.float32, copy=True)
    unused = (hessian.diagonal() == 0).to(weight.device)  # inputs that were always 0: go first
    for start in range(0, columns, block):
        end = min(start + block, columns)
        part, factor = work[:, start:end], upper[start:end, start:end]
        number = count * end // columns - count * start // columns
        scores = part.square() / factor.diagonal().square()
        gone = _smallest(scores.masked_fill(unused[start:end], 0), number)
        errors = torch.zeros_like(part)
        for i in range(end - start):
            error = torch.where(gone[:, i], part[:, i], 0) / factor[i, i]
            part[:, i:] -= torch.outer(error, factor[i, i:])
            part[:, i].masked_fill_(gone[:, i], 0)  # exactly, not to rounding
            errors[:, i] = error
        work[:, end:] -= errors @ upper[start:end, end:]
    return work.to(weight.dtype)


def _smallest(scores: torch.Tensor, number: int) -> torch.Tensor:
    """True at the ``number`` smallest scores; of equal ones the first."""
    gone = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    gone[torch.argsort(scores.flatten(), stable=True)[:number]] = True
    return gone.view_as(scores)
