"""Runs a command line in this process."""

from batchfree.cli import main


def run(capsys, *args):
    code = main(args)
    out, err = capsys.readouterr()
    return code, out, err
