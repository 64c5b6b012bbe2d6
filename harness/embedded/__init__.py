"""The embedded model: a small text-to-image diffusion model, trained by us, and what measures it.

Nothing here is Stable Diffusion, ImageReward or Inception: it is a stand-in of the same shape that
a CPU can draw with, so that every part of the harness can be run and tested without a download.
"""
