"""Small problems whose every quantity can be computed exactly, on which XPO's theorem can be watched at work."""
