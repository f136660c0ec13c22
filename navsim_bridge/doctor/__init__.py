"""Checks of an installation, of data and of scores."""
