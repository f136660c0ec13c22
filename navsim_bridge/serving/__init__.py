"""A policy served to the official devkit's workers: what they ask over a socket, planned together."""
