"""The event log: what is told, under which number, and to whom."""
