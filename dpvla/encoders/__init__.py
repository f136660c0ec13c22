"""Scene encoders: cameras and command to tokens, one file each behind the contract of ``encoder``."""
