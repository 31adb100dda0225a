"""What a build makes from the installed programs: manual pages, completions, licences.

    generate.py SITE TARGET

Options and commands of the manual pages are those that click knows, at the marks `@OPTIONS@` and
`@COMMANDS@` of man/<page>.in. Completions are click's scripts: they call the program itself, so
they need no renewal when a command is added. TARGET/licenses has a directory for each bundled
distribution; one without a licence fails the build.
"""

import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

HERE = Path(__file__).resolve().parent
LICENSE_NAMES = ("LICEN*", "COPYING*", "NOTICE*", "AUTHORS*")


def roff(text: str) -> str:
    """`text` with nothing that roff would take for a command of its own."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in (".", "'") else line for line in text.splitlines())


def paragraphs(help_text: str) -> Iterator[str]:
    """A command's help: paragraphs are filled, those after click's \\b are kept as they are."""
    for paragraph in inspect.cleandoc(help_text).split("\n\n"):
        if paragraph.startswith("\b"):
            kept = roff(textwrap.dedent(paragraph.removeprefix("\b\n")))
            yield f".PP\n.nf\n{kept}\n.fi"
        elif paragraph.strip():
            yield f".PP\n{roff(' '.join(paragraph.split()))}"


def options(context: "click.Context") -> Iterator[str]:
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record:
            names, text = record
            yield f".TP\n\\fB{roff(names)}\\fR\n\\&{roff(text)}"


def commands(context: "click.Context") -> Iterator[str]:
    """All commands below a group's, each with its usage, help and options."""
    import click

    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        if command.hidden:
            continue
        below = click.Context(command, info_name=name, parent=context)
        words = " ".join([below.command_path, *command.collect_usage_pieces(below)])
        yield f".SS {roff(below.command_path.partition(' ')[2])}\n.B {roff(words)}"
        yield from paragraphs(command.help or "")
        yield from options(below)
        if isinstance(command, click.Group):
            yield from commands(below)


def manual_page(command: "click.Command", source: Path, version: str) -> str:
    import click

    context = click.Context(command, info_name=command.name, max_content_width=72)
    text = source.read_text().replace("@VERSION@", version)
    text = text.replace("@OPTIONS@", "\n".join(options(context)))
    return text.replace("@COMMANDS@", "\n".join(commands(context)))


def completions(command: "click.Command", name: str, target: Path) -> None:
    from click.shell_completion import BashComplete, FishComplete, ZshComplete

    variable = f"_{name.upper()}_COMPLETE"
    for kind in (BashComplete, ZshComplete, FishComplete):
        # Not `source()`, which for bash asks the build host's bash for its version.
        made = kind(command, {}, name, variable)
        text = made.source_template % made.source_vars()
        (target / f"{name}.{kind.name}").write_text(text.strip() + "\n")


def licenses(site: Path, target: Path) -> None:
    """A directory for each distribution in `site`: what its wheel has, and our own `licenses`.

    Ours are those that a wheel should have and has not: lockfile's, and that of the ISA-L in isal.
    """
    for info in sorted(site.glob("*.dist-info")):
        name = info.name.partition("-")[0]
        into = target / name
        for pattern in LICENSE_NAMES:
            for file in sorted(info.rglob(pattern)):
                if file.is_file():
                    into.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, into / file.name)
        if (HERE / "licenses" / name).is_dir():
            shutil.copytree(HERE / "licenses" / name, into, dirs_exist_ok=True)
        assert into.is_dir(), f"find the licence of {name}: put it into packaging/rpm/licenses"


def main(site: str, target: str) -> None:
    sys.path.insert(0, site)
    from lighter.ctl.cli import ctl  # type: ignore[import-untyped, unused-ignore]
    from lighter.ctl.clicked import clicked  # type: ignore[import-untyped, unused-ignore]
    from lighter.daemon.entry.clicked import cli  # type: ignore[import-untyped, unused-ignore]
    from lighter.proto.version import VERSION  # type: ignore[import-untyped, unused-ignore]

    out = Path(target)
    out.mkdir(parents=True, exist_ok=True)
    cli.name = "lighterd"
    for command, page in ((clicked(ctl), "ctl.1"), (cli, "lighterd.8")):
        text = manual_page(command, HERE / "man" / f"{page}.in", VERSION)
        (out / page).write_text(text)
        completions(command, page[:-2], out)
    licenses(Path(site), out / "licenses")


if __name__ == "__main__":
    main(*sys.argv[1:])
