"""From a command line to a manager that runs."""
