"""POLAR (arXiv 2507.05197): a reward model that tells how much a candidate looks like the reference's policy."""
