"""What this manager is called and which release it is. A packaged build writes REVISION."""

NAME = "lighter"
VERSION = "0.1.0"
REVISION = "unknown"
