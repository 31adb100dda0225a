"""Questions to whoever sits at the terminal, on standard error; no answer ends the command."""

import click


def confirm(question: str) -> bool:
    """Whether the answer is yes. Raises KeyboardInterrupt."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        raise KeyboardInterrupt from None


def ask(what: str) -> str:
    """Ask for one word or more. Raises KeyboardInterrupt."""
    try:
        return str(click.prompt(what, err=True))
    except click.Abort:
        raise KeyboardInterrupt from None
