"""The manager's side of its spawner: which it is, what it is asked for, and where shims live."""
