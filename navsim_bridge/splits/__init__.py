"""Which scenes a split holds, and what of them is there."""
