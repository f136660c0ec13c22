"""DP-VLA: pretraining and DIPOLE fine-tuning of an end-to-end driving diffusion policy."""

__version__ = "0.1.0"
