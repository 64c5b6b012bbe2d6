"""The search for ratios: an Optuna study, its samplers, what a state is worth, what comes out."""
