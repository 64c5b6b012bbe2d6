"""Noise-schedule buffers that original single-file checkpoints carry beside their weights."""

from __future__ import annotations

import torch

# A1111's value for the last step of a zero-terminal-SNR schedule (modules/sd_models.py): exactly
# zero would make its largest sigma infinite.
_LAST_ALPHA = 4.8973451890853435e-08


def schedule_buffers(alphas_cumprod: torch.Tensor) -> dict[str, torch.Tensor]:
    """Float32 buffers [T] from a scheduler's cumulative alphas [T].

    They make a host sample with the schedule that the model was trained on even where its yaml
    cannot express it (zero terminal SNR), because loading a checkpoint overwrites the buffers.
    """
    bar = alphas_cumprod.double().clamp(min=_LAST_ALPHA)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    buffers = {
        "betas": 1 - bar / previous,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
    }
    return {name: value.float() for name, value in buffers.items()}
