"""Scoring an agent over a split, and pictures of its scenes."""
