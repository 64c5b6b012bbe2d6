"""CR-Diff: block-wise magnitude pruning and pruned output amplification for diffusion UNets.

The package outside ``webui`` imports torch, safetensors and the standard library only.
"""

from __future__ import annotations

__version__ = "0.1.0"
