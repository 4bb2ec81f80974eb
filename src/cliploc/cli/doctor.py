"""`cliploc doctor`: a line for each check of this installation."""

from cliploc._terminal import Terminal, printable, styled
from cliploc.cli.options import WithThreads, command
from cliploc.cli.output import DONE, SOME_FAILED
from cliploc.config import Options


@command(only=("model", "pretrained", "device", "precision"))
def doctor(asked: WithThreads, options: Options) -> int:
    """Check the installation and a model.

    Are the weights there, do they fit the model, and does it recognise pictures?"""
    from cliploc.doctor import checks

    terminal = Terminal()
    failed = 0
    for check in checks(str(options.model), options.pretrained, options.device, options.precision, asked.threads):
        failed += not check.good
        mark = styled("ok", "green") if check.good else styled("FAILED", "bold red")
        terminal.data(styled().append(mark).append(" " * (8 - len(mark)) + f"{check.name:24}{printable(check.detail)}"))
    verdict = f"{failed} check{'s' if failed > 1 else ''} failed" if failed else "everything is as it should be"
    terminal.data(verdict)
    return SOME_FAILED if failed else DONE
