"""The manager process: what workers ask it, and what it does for all of them."""
