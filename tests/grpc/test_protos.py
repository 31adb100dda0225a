"""What is generated is what the .proto files say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_generated_modules_are_those_of_the_protos(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / ".ci/protos.py", tmp_path / "pb"], check=True)

    made = {path.name: path.read_text() for path in (tmp_path / "pb").iterdir() if path.is_file()}
    kept = {
        path.name: path.read_text()
        for path in (ROOT / "daemon/grpc/pb").iterdir()
        if path.is_file()
    }
    assert made == kept, "run `make protos`"
