"""What a WebUI loads. In this version: the core, and one line in the log; there is no panel yet.

Hosts put the extension's folder on ``sys.path`` only while they load this file, so everything that
will ever be needed is imported here and now.
"""

from __future__ import annotations

import logging

import crdiff_ext
from crdiff_ext import amplify, anneal, blocks, decide, families, patch, presets, pruning, weights

CORE = (amplify, anneal, blocks, decide, families, patch, presets, pruning, weights)

logging.getLogger("crdiff").warning(
    "CR-Diff %s is loaded, but this version has no WebUI panel yet: generations are not changed.",
    crdiff_ext.__version__,
)
