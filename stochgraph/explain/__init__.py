"""Everything that is shown: the ledger, the formula, the picture."""
