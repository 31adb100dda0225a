"""Checkpoints of containers as images: written, and containers made of them."""
