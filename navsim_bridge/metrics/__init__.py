"""What plans are scored with: one file each behind the contract of ``metric``."""
