"""Fetch the files of the catalogue: resumed, retried, checked, whole or not at all. Nothing else reaches the network."""
