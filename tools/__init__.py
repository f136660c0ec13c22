"""The programs. A checkout runs them as files, ``python tools/NAME.py``; an installation has them as ``dpvla NAME``."""
