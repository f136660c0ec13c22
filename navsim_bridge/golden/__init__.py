"""Readers of reference results of the official code, and comparisons with them."""
