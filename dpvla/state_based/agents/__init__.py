"""Learners of the state-based track: one file each."""
