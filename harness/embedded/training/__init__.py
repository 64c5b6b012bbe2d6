"""The recipe that trained the embedded model: ``crdiff train-embedded`` runs it whole."""
