"""What this version shares with others: literals, so that they can be read without running it.

An installer's check (`release.py`), lighterd's launcher and the rpm's spec read this file's text.
"""

# Versions of the wire that it speaks: its own, and of those before it the last two, once there are.
PROTOCOLS = (1,)
# The schema that it brings a database to: the number of migrations in daemon/metadata/schema.py.
SCHEMA = 2
# The newest schema that it works with: a release adds to the one before, and changes nothing of it.
SCHEMA_NEWEST = 3
