"""What this manager is called and which build it is. A packaged build writes REVISION."""

NAME = "lighter"
REVISION = "unknown"
