"""Generate daemon/grpc/pb from daemon/grpc/protos, or into another directory that is named.

The generated modules import each other as lighter.daemon.grpc.pb: protoc derives that from the
path by which a .proto file is imported, so it is told that the folder stands there.
"""

import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parents[1] / "daemon/grpc/protos"
PLACE = "lighter/daemon/grpc/pb"


def generate(into: Path) -> None:
    """Write one module and its types per .proto file; others of an earlier run are removed."""
    names = sorted(path.name for path in PROTOS.glob("*.proto"))
    google = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        failed = protoc.main(
            [
                "protoc",
                f"-I{PLACE}={PROTOS}",
                f"-I{google}",
                f"--python_out={scratch}",
                f"--pyi_out={scratch}",
                *(f"{PLACE}/{name}" for name in names),
            ]
        )
        if failed:
            sys.exit(f"protoc failed with {failed}")
        into.mkdir(exist_ok=True)
        for old in (*into.glob("*_pb2.py"), *into.glob("*_pb2.pyi")):
            old.unlink()
        for made in sorted((Path(scratch) / PLACE).iterdir()):
            shutil.copyfile(made, into / made.name)
    (into / "__init__.py").write_text('"""Generated from ../protos by `make protos`."""\n')


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS.parent / "pb")
