"""The pre-training corpus of a policy discriminator (arXiv 2507.05197, appendix D.1.1): sampled, cleaned, matched."""
