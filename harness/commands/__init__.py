"""One module for each ``crdiff`` command: ``add_arguments(parser)`` and ``run(args) -> int``."""
