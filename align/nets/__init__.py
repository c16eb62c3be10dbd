"""Networks that only learning needs."""
