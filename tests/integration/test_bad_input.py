"""Wrong input through the real ctl and manager: one clear line, the right code, nothing left.

Every refusal is checked for its form ("ctl: verb object: cause"), its words and its exit code
(design: 2 usage, 125 the manager refused, 126 and 127 the program, 1 all else), and the census
after each test sees that nothing stayed behind.
"""

import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lighter.proto import errors
from tests import lives
from tests.harness import Lighterd, await_that
from tests.images import busybox_archive
from tests.unit.images.build import Layout, tar
from tests.variants import tar_of, variant

USAGE, REFUSED, NOT_EXECUTABLE, NOT_FOUND, FAILURE = 2, 125, 126, 127, 1


def refused(lighterd: Lighterd, code: int, words: str, *args: str) -> None:
    """`ctl args` fails with `code`, and says `words` in one line; a usage error shows the usage."""
    done = lighterd.ctl(*args)
    text = done.stderr.decode()
    what = f"ctl {args}: exit {done.returncode}: {text!r}"
    assert done.returncode == code, what
    assert words in text, what
    assert "Traceback" not in text, what
    assert done.stdout == b"", what
    if code == USAGE:
        assert "Error: " in text, what
    else:
        assert text.startswith("ctl: ") and text.count("\n") == 1 and ": " in text[5:], what


def nothing_is_there(lighterd: Lighterd) -> None:
    with lighterd.client() as client:
        assert client.call("containers", "list", cursor="", limit=10)["containers"] == []
        assert client.call("tasks", "list")["tasks"] == []
        snapshots = client.call("snapshots", "list", snapshotter="", cursor="", limit=10)
    # The image's own layers, no container's.
    assert {row["kind"] for row in snapshots["snapshots"]} <= {"committed"}, snapshots


BAD_IDS = ("a/b", "..", ".", ".x", "-x", "_x", "a b", "ü", "a\nb", "a" * 77, "../../etc", "x:y")


def test_ids_that_are_no_ids(lighterd: Lighterd, busybox: str) -> None:
    for bad in BAD_IDS:
        words = "at most 76" if len(bad) > 76 else "only letters, digits"
        refused(lighterd, REFUSED, words, "run", "--rm", "--name", bad, busybox, "true")
        refused(lighterd, FAILURE, words, "containers", "create", "--", busybox, bad)
        refused(lighterd, FAILURE, words, "-n", bad, "containers", "ls")
    refused(lighterd, REFUSED, "it is empty", "run", "--rm", "--name", "", busybox, "true")
    refused(lighterd, REFUSED, "it is empty", "run", "--rm", busybox, "", "true")
    nothing_is_there(lighterd)
    longest = "a" * 76
    done = lighterd.ctl("-n", longest, "namespaces", "create", longest)
    assert done.returncode == 0, done.stderr
    assert lighterd.ctl("namespaces", "rm", longest).returncode == 0


def test_ids_that_are_no_ids_are_refused_by_each_method(lighterd: Lighterd) -> None:
    with lighterd.client() as client:
        for method in (
            *("containers.get", "containers.delete", "tasks.create", "tasks.start", "tasks.get"),
            *("tasks.kill", "tasks.stop", "tasks.pause", "tasks.resume", "tasks.exec"),
            *("tasks.attach", "tasks.resize", "tasks.close_stdin", "tasks.wait", "tasks.delete"),
            *("tasks.pids", "logs.read"),
        ):
            for bad in (*BAD_IDS, "", "a\0b", 5):
                with pytest.raises(errors.InvalidArgument):
                    client.call(*method.split("."), id=bad)


def test_a_signal_is_for_one_exec_or_for_all(lighterd: Lighterd) -> None:
    words = ("tasks", "kill", "--all", "--exec-id", "e", "x")
    refused(lighterd, FAILURE, "either exec e or all, not both", *words)


def test_what_is_not_there(lighterd: Lighterd, busybox: str) -> None:
    missing = "there is no such image in namespace default"
    never = ("run", "--rm", "--pull", "never")
    refused(lighterd, REFUSED, missing, *never, "nope:latest", "x", "true")
    refused(lighterd, FAILURE, "there is no such image", "images", "rm", "nope")
    refused(lighterd, FAILURE, "namespace nope", "namespaces", "rm", "nope")
    refused(
        lighterd,
        REFUSED,
        "has btrfs, erofs, native, overlayfs",
        "run",
        "--snapshotter",
        "zfs",
        busybox,
        "x",
    )
    for runtime, words in (
        ("io.containerd.kata.v2", "expected io.containerd.runc.v2"),
        ("io.containerd.../..", "expected io.containerd.runc.v2"),
        ("/nope", "no such program"),
        ("/etc/passwd", "no executable file"),
    ):
        refused(lighterd, REFUSED, words, "run", "--runtime", runtime, busybox, "x", "true")
    for args in (
        *(("tasks", "start", "x"), ("tasks", "kill", "x"), ("tasks", "delete", "x")),
        *(("containers", "rm", "x"), ("containers", "info", "x"), ("logs", "x"), ("stop", "x")),
        *(("pause", "x"), ("resume", "x"), ("rm", "x"), ("inspect", "x"), ("attach", "x")),
    ):
        done = lighterd.ctl(*args)
        assert done.returncode in (FAILURE, REFUSED), args
        assert b" x: " in done.stderr, (args, done.stderr)
    nothing_is_there(lighterd)


def test_programs_that_cannot_be_run(lighterd: Lighterd, busybox: str) -> None:
    for program, code in (
        ("/no/such/program", NOT_FOUND),
        ("nosuch", NOT_FOUND),
        ("/etc/passwd", NOT_EXECUTABLE),
        ("/etc", NOT_EXECUTABLE),
        ("/", NOT_EXECUTABLE),
        ("/etc/passwd/x", NOT_EXECUTABLE),
    ):
        done = lighterd.ctl("run", "--rm", busybox, "x", program)
        # A path through a file is ENOTDIR, which runtimes report either way.
        wanted = {code, NOT_FOUND} if program == "/etc/passwd/x" else {code}
        assert done.returncode in wanted | ({REFUSED} if len(wanted) > 1 else set()), program
        assert program.encode() in done.stderr and done.stderr.count(b"\n") == 1, done.stderr
    nothing_is_there(lighterd)
    lighterd.ctl("run", "-d", busybox, "live", "sleep", "1000", check=True)
    for program, code in (("nosuch", NOT_FOUND), ("/etc/passwd", NOT_EXECUTABLE)):
        refused(lighterd, code, program, "exec", "live", program)
    refused(lighterd, REFUSED, "no such user", "exec", "-u", "bad", "live", "id")
    refused(lighterd, REFUSED, "absolute path", "exec", "--cwd", "rel", "live", "id")
    refused(lighterd, REFUSED, "only letters", "tasks", "exec", "--exec-id", "a/b", "live", "id")
    assert lighterd.ctl("exec", "live", "true").returncode == 0


def test_f77_a_spec_of_16_mib_and_words_that_no_program_can_get(
    lighterd: Lighterd, busybox: str
) -> None:
    """execve(2): 128 KiB for one word, a quarter of the stack for all. A message has 16 MiB. The
    runtime's init hears of it, and says so where the container's output goes.
    """
    word = "x" * (100 << 10)
    tried: dict[str, dict[str, Any]] = {
        "word": {"args": ["true", word * 2]},
        "words": {"args": ["true", *[word] * 100]},
        "spec": {"args": ["true"], "env": [f"A{n}={word}" for n in range(155)]},  # 15.5 MiB
    }
    with lighterd.client() as client:
        for name, options in tried.items():
            client.call("containers", "create", id=name, image=busybox, **options)
            client.call("tasks", "create", id=name, timeout_s=60, **lives.NO_STDIO)
            client.call("tasks", "start", id=name, timeout_s=60)
            assert client.call("tasks", "wait", id=name, exec_id="")["exit_status"] in (1, 255)
            said = lighterd.ctl("logs", name, check=True).stderr.decode().lower()
            assert said == "exec /bin/true: argument list too long\n", name
            client.call("containers", "delete", id=name, force=True)
        with pytest.raises(errors.ResourceExhausted, match="at most 16777216 fit"):
            client.call("containers", "create", id="x", image=busybox, args=[word] * 170)
    nothing_is_there(lighterd)


def test_a_file_that_is_no_program_of_this_machine(lighterd: Lighterd) -> None:
    script = io.BytesIO()
    with tarfile.open(fileobj=script, mode="w") as archive:
        for name, data in (("noformat", b"\0\1\2\3" * 64), ("nointerp", b"#!/no/such\n")):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    image = imported(lighterd, variant(layer=script.getvalue()))
    # runc learns of both from execve(2) when it starts the container: its init says it, and ends.
    for program, words in (("/noformat", "exec format error"), ("/nointerp", "no such file")):
        done = lighterd.ctl("run", "--rm", image, "x", program)
        assert done.returncode in (1, 255), done
        assert f"exec {program}: {words}" in done.stderr.decode(), done.stderr


def test_options_that_make_no_sense(lighterd: Lighterd, busybox: str) -> None:
    bind = "type=bind,src={},dst={}".format
    for code, words, *flags in (
        (REFUSED, "absolute path", "--mount", bind("/tmp", "rel")),
        (REFUSED, "No such file", "--mount", bind("/no/such", "/x")),
        (REFUSED, "'..' is not allowed", "--mount", bind("/tmp", "/a/../../b")),
        (REFUSED, "nothing may be mounted below /proc", "--mount", bind("/tmp", "/proc/sys")),
        (REFUSED, "the container's root", "--mount", bind("/tmp", "/")),
        (USAGE, "foo", "--mount", "foo"),
        (USAGE, "name is empty", "--env", "=x"),
        (USAGE, "key=value", "--label", "=x"),
        (REFUSED, "at most 4096", "--label", "a=" + "x" * 5000),
        (REFUSED, "absolute path", "--cwd", "rel"),
        (REFUSED, "open file of a process", "--cwd", "/proc/self/fd/7"),
        (REFUSED, "check hostname", "--hostname", "a b"),
        (REFUSED, "no capability", "--cap-add", "FOO"),
        (REFUSED, "there is no such kind", "--with-ns", "foo:/proc/1/ns/net"),
        (REFUSED, "No such file", "--with-ns", "pid:/proc/1/ns/nope"),
        (REFUSED, "no such user", "-u", "nobodyx"),
        (REFUSED, "over 2147483647", "-u", "4294967296"),
        (REFUSED, "over 2147483647", "-u", "1000:4294967296"),
        (REFUSED, "neither a number", "-u", "0_0"),
        (REFUSED, "neither a number", "-u", " 0"),
        (REFUSED, "neither a number", "-u", "+0"),
        (REFUSED, "neither a number", "-u", "٠"),
    ):
        refused(lighterd, code, words, "run", "--rm", *flags, busybox, "x", "true")
    refused(lighterd, USAGE, "as docker", "run", busybox)
    refused(lighterd, USAGE, "no signal", "tasks", "kill", "-s", "FOO", "x")
    refused(lighterd, USAGE, "no signal", "kill", "-s", "65", "x")
    refused(lighterd, USAGE, "No such command", "frobnicate")
    refused(lighterd, USAGE, "No such option", "run", "--frobnicate", busybox, "x")
    nothing_is_there(lighterd)


def test_fields_that_only_a_broken_client_sends(lighterd: Lighterd, busybox: str) -> None:
    with lighterd.client() as client:
        for field in (
            *({"args": "true"}, {"args": ["a\0b"]}, {"args": [1]}, {"env": {"A": "b"}}),
            *({"env": ["A=\0"]}, {"mounts": ["x"]}, {"mounts": [{"destination": 5}]}),
            *({"log": {"max_size": "big"}}, {"log": {"max_file": -1}}, {"log": {"driver": []}}),
            *({"log": {"max_size": -1}}, {"log": {"max_size": True}}, {"labels": {"a": 1}}),
            *({"stop_signal": "SIGFOO"}, {"stop_signal": "0"}, {"stop_signal": "9" * 5000}),
            *({"seccomp": "{"}, {"image": ""}),
            *({"terminal": 1}, {"with_ns": []}, {"user": 0}, {"id": 5}, {"labels": {"": "x"}}),
        ):
            body = {"id": "x", "image": busybox, **field}
            with pytest.raises(errors.InvalidArgument):
                client.call("containers", "create", **body)
                raise AssertionError(f"taken: {field}")
        client.call("containers", "create", id="x", image=busybox, args=["true"])
        foreign = f"/proc/{lighterd.pid}/fd/2"
        for stdio in (
            *({"stdout": foreign}, {"stdout": f"//proc/{lighterd.pid}/fd/2"}, {"stdin": "x"}),
            *({"stderr": f"file://{foreign}"}, {"stdout": "binary:///bin/true"}, {"rows": -1}),
            *({"stdout": f"/proc/{os.getpid()}/fd/../../1/fd/1"}, {"cols": 1 << 16}),
            *({"stdout": "/proc/self/fd/1"}, {"stdout": "/./proc/1/fd/1"}),
        ):
            with pytest.raises(errors.InvalidArgument):
                client.call("tasks", "create", id="x", **stdio)
        for body in ({"signal": 0}, {"signal": 65}, {"signal": "TERM"}, {"signal": 1 << 70}):
            with pytest.raises((errors.InvalidArgument, OverflowError)):
                client.call("tasks", "kill", id="x", **body)
        client.call("containers", "delete", id="x", force=False)
    nothing_is_there(lighterd)


# -- archives


def imported(lighterd: Lighterd, archive: bytes) -> str:
    path = lighterd.base / "archive.tar"
    path.write_bytes(archive)
    lighterd.ctl("images", "import", str(path), check=True)
    with lighterd.client() as client:
        names = [row["name"] for row in client.call("images", "list")["images"]]
    return str(names[-1])


def evil_layers() -> dict[str, bytes]:
    def entry(name: str, kind: bytes, link: str = "", **fields: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = kind, link, 0o777
        for field, value in fields.items():
            setattr(info, field, value)
        return info

    return {
        "leads out": tar_of(entry("../../../../tmp/lighter-escaped", tarfile.DIRTYPE)),
        "hard link out": tar_of(entry("x", tarfile.LNKTYPE, "../../../../etc/passwd")),
    }


def bad_archives() -> dict[str, bytes]:
    good = busybox_archive().read_bytes()
    wrong = Layout()
    wrong.list(wrong.image([{"a": b"1"}]), name="docker.io/library/w:1")
    first = next(iter(wrong.blobs))
    wrong.blobs[first] += b"more"
    traversal = Layout()
    described = traversal.image([{"a": b"1"}])
    traversal.list({**described, "digest": "sha256:../../../etc/passwd"}, name="docker.io/t:1")
    link = tarfile.TarInfo("index.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("index.json")
    device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5
    return {
        **{f"cut at {size}": good[:size] for size in (0, 1, 511, 512, 600, 5000, len(good) // 2)},
        "text": b"hello world\n" * 1000,
        "noise": os.urandom(20_000),
        "gzip of text": gzip.compress(b"x" * 100_000),
        "cut gzip": gzip.compress(good, 1)[:50_000],
        "another tar": tar({"x": b"y"}),
        "wrong digest": wrong.archive(),
        "digest with a path": traversal.archive(),
        "link as index": tar_of(link),
        "device as index": tar_of(device),
        "index that is no JSON": tar({"oci-layout": b"{}", "index.json": b"{"}),
        "index that is a list": tar({"oci-layout": b"{}", "index.json": b"[]"}),
    }


def test_archives_that_are_none(lighterd: Lighterd) -> None:
    path = lighterd.base / "archive.tar"
    for name, data in bad_archives().items():
        path.write_bytes(data)
        done = lighterd.ctl("images", "import", str(path))
        text = done.stderr.decode()
        assert done.returncode == FAILURE, f"{name}: {done}"
        assert text.startswith("ctl: ") and text.count("\n") == 1, f"{name}: {text!r}"
    refused(lighterd, FAILURE, "it is no OCI layout", "images", "import", str(lighterd.base))
    refused(lighterd, FAILURE, "No such file", "images", "import", "/no/such")
    refused(lighterd, FAILURE, "neither a file nor a pipe", "images", "import", "/dev/zero")
    with lighterd.client() as client:
        assert client.call("images", "list")["images"] == []


def test_layers_that_lead_out_of_their_root(lighterd: Lighterd) -> None:
    escaped = Path("/tmp/lighter-escaped")
    links = os.stat("/etc/passwd").st_nlink
    path = lighterd.base / "archive.tar"
    for name, layer in evil_layers().items():
        path.write_bytes(variant(layer=layer))
        lighterd.ctl("images", "import", str(path))
        assert not escaped.exists(), name
        assert os.stat("/etc/passwd").st_nlink == links, name


@pytest.fixture
def small(make_lighterd: Callable[..., Lighterd]) -> Iterator[Lighterd]:
    """An instance whose root is a file system of 64 MiB."""
    lighterd = make_lighterd()
    lighterd.root.mkdir(mode=0o700)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "lighter-test", str(lighterd.root)],
        check=True,
    )
    try:
        yield lighterd.start()
    finally:
        lighterd.stop()
        subprocess.run(["umount", str(lighterd.root)], check=True)


def bomb(size_bytes: int) -> bytes:
    """A compressed image archive of a thousandth of that size, with one blob of so many zeros."""
    piece = bytes(64 << 20)
    begin = io.BytesIO()
    with tarfile.open(fileobj=begin, mode="w") as opened:
        for name, data in (("oci-layout", b"{}"), ("index.json", b'{"schemaVersion":2}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
        blob = tarfile.TarInfo(f"blobs/sha256/{'0' * 64}")
        blob.size = size_bytes
        header = blob.tobuf(tarfile.GNU_FORMAT)
        length = opened.offset
    members = gzip.compress(piece, 9) * (size_bytes // len(piece))
    return gzip.compress(begin.getvalue()[:length] + header) + members + gzip.compress(bytes(1024))


def test_a_bomb_meets_the_disk_reserve_not_the_disk(small: Lighterd) -> None:
    """A blob that the disk has no room for is refused before its first byte is written."""
    path = small.base / "bomb.tar.gz"
    path.write_bytes(bomb(4 << 30))
    assert path.stat().st_size < 8 << 20
    before = rss_kib(small.pid)
    with pytest.raises(errors.ResourceExhausted, match=r"bytes or more, \d+ are allowed"):
        small.import_archive(path)
    assert rss_kib(small.pid) - before < 64 << 10
    assert os.listdir(small.root / "content/ingest") == []
    # What has room is taken as before.
    assert small.import_busybox()


def rss_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


# -- the runtime

RUNTIMES = {
    "fails with a reason": (
        'echo \'{"level":"error","msg":"the moon is wrong"}\' >"$log"; exit 3',
        "the moon is wrong",
    ),
    "fails in silence": ("exit 3", "exit status 3"),
    "succeeds in silence": ("exit 0", "wrote no pid file"),
    "dies": ("kill -SEGV $$", "signal 11"),
    "prints megabytes": (
        "yes 0123456789abcdef | head -c 8000000; yes x | head -c 8000000 >&2; exit 9",
        "exit status 9",
    ),
    "logs megabytes": (
        """yes '{"level":"error","msg":"last words"}' | head -n 99999 >"$log"; exit 1""",
        "last words",
    ),
}
# The runtime's --log option, as runc takes it, before the verb.
SCRIPT = """#!/bin/sh
log=/dev/null
for word; do [ "$previous" = --log ] && log=$word; previous=$word; done
for word; do case $word in create) break;; delete|kill|state) exec runc "$@";; esac; done
"""


def with_runtime(make_lighterd: Callable[..., Lighterd], directory: Path) -> tuple[Lighterd, Path]:
    """An instance whose runc is a script that the test writes."""
    path = directory / "runc"
    config = f'version = 3\n[plugins."io.lighter.v1".runtimes.runc]\npath = "{path}"\n'
    return make_lighterd(config=config).start(), path


def write_script(path: Path, body: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(SCRIPT + body + "\n")
    path.chmod(0o755)


def test_runtimes_that_misbehave(make_lighterd: Callable[..., Lighterd], tmp_path: Path) -> None:
    lighterd, runc = with_runtime(make_lighterd, tmp_path)
    busybox = lighterd.import_busybox()
    for name, (body, words) in RUNTIMES.items():
        write_script(runc, body)
        done = lighterd.ctl("run", "-d", "--rm", busybox, "x", "true")
        text = done.stderr.decode()
        assert done.returncode == REFUSED, (name, done)
        assert words in text and text.count("\n") == 1 and len(text) < 5000, (name, text[:500])
        nothing_is_there(lighterd)
    await_that(lambda: not lighterd.shims(), 15, "no shim stays")
    write_script(runc, 'exec runc "$@"')
    assert lighterd.ctl("run", "--rm", busybox, "x", "true").returncode == 0


def test_runtimes_that_are_no_programs(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    lighterd, runc = with_runtime(make_lighterd, tmp_path)
    busybox = lighterd.import_busybox()
    args = ("run", "--rm", busybox, "x", "true")
    refused(lighterd, REFUSED, "no such program", *args)
    runc.write_text("#!/bin/sh\n")
    refused(lighterd, REFUSED, "no executable file", *args)
    runc.chmod(0o777)
    refused(lighterd, REFUSED, "others than root may write", *args)
    runc.write_bytes(b"\x7fELF" + b"\xff" * 100)  # of no architecture
    runc.chmod(0o755)
    done = lighterd.ctl(*args)
    assert done.returncode in (REFUSED, NOT_EXECUTABLE), done
    assert b"Exec format error" in done.stderr, done.stderr
    nothing_is_there(lighterd)


def test_a_manager_that_ends_amid_an_exec_leaves_it_to_the_next(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    lighterd, runc = with_runtime(make_lighterd, tmp_path)
    busybox = lighterd.import_busybox()
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    wait = f"{{ touch {begun}; until [ -e {gate} ]; do sleep 0.1; done; }}"
    write_script(runc, f'for word; do [ "$word" != exec ] || {wait}; done; exec runc "$@"')
    lives.begin(lighterd, busybox, "x", "sleep", "1000")
    argv = lighterd.ctl_argv("exec", "x", "sh", "-c", "exit 7")
    with subprocess.Popen(argv, stderr=subprocess.PIPE):
        await_that(begun.exists, 30, "the runtime is asked")
        lighterd.stop()
        assert "unhandled" not in lighterd.log_end(1 << 20)
        lighterd.start()
        gate.touch()

        def exits() -> list[int]:
            told = [e["event"] for e in lighterd.events() if e["topic"] == "/tasks/exit"]
            return [event["exit_status"] for event in told]

        await_that(lambda: exits() == [7], 30, "the next manager hears of its end")


def test_a_runtime_that_hangs_holds_nobody_up(
    make_lighterd: Callable[..., Lighterd], tmp_path: Path
) -> None:
    lighterd, runc = with_runtime(make_lighterd, tmp_path)
    busybox = lighterd.import_busybox()
    started = tmp_path / "started"
    write_script(runc, f'echo $$ >"{started}"; exec sleep 1000')
    with lighterd.client() as slow:
        slow.call("containers", "create", id="x", image=busybox, args=["true"])
        with pytest.raises(errors.DeadlineExceeded):
            slow.call("tasks", "create", id="x", timeout_s=3)
        await_that(lambda: started.exists() and started.read_text(), 30, "the runtime started")
        with lighterd.client() as other:
            assert other.call("tasks", "list", timeout_s=lives.LISTED_S) is not None
        # The undo of the create gives the shim 30 s to end by itself.
        await_that(lambda: lighterd.ctl("rm", "-f", "x").returncode == 0, 60, "x can be removed")
    pid = int(started.read_text())
    await_that(lambda: not Path(f"/proc/{pid}").exists(), 20, "the runtime is killed")
    nothing_is_there(lighterd)
