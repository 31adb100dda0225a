"""The product's version: what ctl and lighterd say they are. pyproject.toml has the same.

importlib.metadata knows it too, but costs 30 ms in a command that takes 60.
"""

VERSION = "0.2.0"
