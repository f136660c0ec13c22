"""Layers that encoders and the action head are made of."""
