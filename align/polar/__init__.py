"""Training of policy discriminators (POLAR, arXiv 2507.05197)."""
