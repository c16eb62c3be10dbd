"""Networks that act, and what carries them: encoders, the Gaussian actor, and the policy that an environment sees."""
