"""docker build by BuildKit, a part of dockerd: with its own store and with the manager's, where it
unpacks, commits, leases and prunes by the manager's snapshots and content.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import IMAGE, VARIANTS, Engine
from tests.harness import Lighterd, await_that

pytestmark = pytest.mark.timeout(300)
BUILDKIT = {"DOCKER_BUILDKIT": "1"}
BUILD_S = 120
RECIPE = f"""
FROM {IMAGE} AS made
COPY --chown=7:8 given /made/given
RUN --mount=type=cache,target=/cache tr a-z A-Z </made/given >/made/loud && ln /made/loud /made/link
RUN rm /made/given && chown 99 /made/loud
FROM {IMAGE}
ARG word
COPY --from=made /made/ /said/
RUN --mount=type=secret,id=key echo "$word $(cat /run/secrets/key)" >/said/word
USER 99
CMD ["sh", "-c", "cat /said/link /said/word; stat -c %u /said/loud; ls /said"]
"""


class Yard:
    """A directory to build in, and `docker build` there."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self._engine = engine
        self._directory = directory
        self.write("given", "from the host\n")
        self.write("key", "opens")

    def write(self, name: str, text: str) -> None:
        (self._directory / name).write_text(text)

    def words(self, recipe: str, *words: str) -> list[str]:
        self.write("Dockerfile", recipe)
        return ["build", "--progress=plain", *words, str(self._directory)]

    def build(self, recipe: str, *words: str) -> str:
        """What it says of its progress."""
        done = self._engine.docker(
            *self.words(recipe, *words), env=BUILDKIT, timeout=BUILD_S, check=True
        )
        return (done.stdout + done.stderr).decode()


@pytest.fixture
def yard(engine: Engine, tmp_path: Path) -> Iterator[Yard]:
    yield Yard(engine, tmp_path)
    engine.docker("rmi", "-f", "built", check=True)
    engine.docker("builder", "prune", "-af", env=BUILDKIT, check=True)


def await_manager(engine: Engine, box: str) -> None:
    """dockerd has found it again."""
    await_that(lambda: engine.docker("top", box).returncode == 0, 60, "dockerd reaches it")


@pytest.mark.away
@pytest.mark.parametrize("host", VARIANTS, indirect=True)
def test_stages_copies_mounts_and_a_cache_that_outlives_the_manager(
    engine: Engine, lighterd: Lighterd, yard: Yard, tmp_path: Path
) -> None:
    given = ("--build-arg", "word=it", "--secret", f"id=key,src={tmp_path}/key", "-t", "built")
    yard.build(RECIPE, *given)
    said = "FROM THE HOST\nit opens\n99\nlink\nloud\nword"
    assert engine.says("run", "--rm", "built") == said
    engine.run("--name", "box", "built", "sleep", "1000")
    lighterd.restart()
    await_manager(engine, "box")
    progress = yard.build(RECIPE, *given)
    assert len(re.findall(r"^#\d+ CACHED$", progress, re.MULTILINE)) == 5, progress
    yard.write("given", "another one\n")
    yard.build(RECIPE, *given)
    assert engine.says("run", "--rm", "built") == said.replace("FROM THE HOST", "ANOTHER ONE")


def held(lighterd: Lighterd) -> dict[str, set[str]]:
    """What the manager keeps of Docker's: names of snapshots, content, images and leases."""

    def first_words(*words: str) -> set[str]:
        listed = lighterd.ctl("-n", "moby", *words, check=True).stdout.decode()
        return {line.split()[0] for line in listed.splitlines()[1:]}

    return {kind: first_words(kind, "ls") for kind in ("snapshots", "content", "images", "leases")}


@pytest.mark.parametrize("host", ["26-snapshotter"], indirect=True)
def test_what_it_built_is_the_managers_until_it_is_pruned(
    engine: Engine, lighterd: Lighterd, yard: Yard
) -> None:
    engine.says("run", "--rm", IMAGE, "true")  # unpacked from here on
    before = held(lighterd)
    recipe = (
        f"FROM {IMAGE} AS made\nRUN echo more >/more\n"
        f"FROM {IMAGE}\nRUN echo other >/other\nCOPY --link --from=made /more /\n"
        'CMD ["cat", "/more"]\n'
    )
    yard.build(recipe, "-t", "built")
    built = "docker.io/library/built:latest"
    assert built in held(lighterd)["images"]
    ran = lighterd.ctl("-n", "moby", "run", "--rm", built, "ours", check=True)
    assert ran.stdout == b"more\n"
    engine.says("rmi", "built")
    engine.docker("builder", "prune", "-af", env=BUILDKIT, check=True)
    await_that(lambda: held(lighterd) == before, 60, f"nothing is left of it; {before} was there")


@pytest.mark.away
@pytest.mark.parametrize("host", ["26-snapshotter"], indirect=True)
def test_a_manager_killed_amid_a_build(engine: Engine, lighterd: Lighterd, yard: Yard) -> None:
    """The step itself needs no manager; what it wrote is committed by the next one, or the build
    fails and the next build goes on."""
    engine.run("--name", "box", IMAGE, "sleep", "1000")
    recipe = f"FROM {IMAGE}\nRUN echo begun-$((6*7)) && sleep 2 && echo done >/done\n"
    building = engine.popen(*yard.words(recipe, "-t", "built"), env=BUILDKIT)
    try:
        assert building.stderr is not None
        while (line := building.stderr.readline()) and b"begun-42" not in line:
            pass
        assert b"begun-42" in line, engine.log_end()
        lighterd.kill9()
        lighterd.start()
        building.communicate(timeout=BUILD_S)
    finally:
        building.kill()
        building.wait()
    await_manager(engine, "box")
    yard.build(recipe, "-t", "built")
    assert engine.says("run", "--rm", "built", "cat", "/done") == "done"
