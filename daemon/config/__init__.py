"""The configuration: what may be said in it, its files, its text, and where a complaint points."""
