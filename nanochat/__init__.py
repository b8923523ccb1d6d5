"""Train a small chat model from raw text: the library under the Snakemake workflow."""

__version__ = "0.1.0"
