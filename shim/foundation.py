"""All modules of others that the spawner's own import, loaded before any of those.

They come to be shared by every shim and hardly written to, unlike what is ours: see `packing.py`.
A module that is missing here costs memory, nothing else.
"""

# ruff: noqa: F401
import array
import collections
import collections.abc
import contextlib
import ctypes
import errno
import fcntl
import gc
import hashlib
import heapq
import json
import mmap
import resource
import select
import signal
import socket
import stat
import struct
import sys
import termios
import time
import typing

import isal
import isal.igzip_lib
import msgpack
import setproctitle

from lighter.shim import guard

guard.preload()
