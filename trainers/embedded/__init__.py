"""Weights that come with Unfreeze, and the script that made them."""
