"""Engines read what was exported, by the definitions that the guide gives for them."""
