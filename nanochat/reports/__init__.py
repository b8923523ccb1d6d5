"""The report of a run, from manifests, records and metrics alone."""
