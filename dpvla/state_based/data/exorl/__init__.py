"""ExORL: episode files, their rewards, and collecting a small set of them here."""
