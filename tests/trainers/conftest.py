"""These tests need two trainers that can't be installed beside melora's dependencies, for they pin older ones.

`make test-trainers`, part of `make test`, puts them on the path without their dependencies; elsewhere nothing here is
collected.
"""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("axolotl") and find_spec("llamafactory") else ["test_*.py"]
