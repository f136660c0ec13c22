"""Sub-scores of the PDM family, each batched over scenes and candidates."""
