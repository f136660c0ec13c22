"""Where other road users are during a plan."""
