"""Names of the same weights in diffusers' folders and in the original single-file (LDM) layout."""
