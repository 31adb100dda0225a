"""Tests, and the tools they share: census.py, harness.py, images.py."""
