"""Hydra's search path leads here: ``pkg://dpvla_devkit.config``."""
