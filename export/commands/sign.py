"""`salmonrun sign`: its options, and what it does with them."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what it does and what it takes."""
    parser.description = (
        "Check a bundle and sign its manifest, which has the hash of every file, in minisign's format. Who has your "
        "public key can tell that the bundle is yours, by --signed-by of the commands, in Python, or by minisign."
    )
    parser.epilog = "example: %(prog)s bundle/ --key maker.key --new-key"
    parser.add_argument("bundle", metavar="BUNDLE", help="folder made by salmonrun export")
    parser.add_argument(
        "--key", metavar="FILE", required=True, type=Path, help="your secret key, as minisign writes it"
    )
    parser.add_argument(
        "--new-key",
        action="store_true",
        help="make that key first, and its public half in FILE.pub; a password is asked for",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    """Sign, and say by whom."""
    from salmonrun.export.signing import make_key, sign_bundle

    password = _password(f"password of {arguments.key} (empty: none): ")
    if arguments.new_key:
        print(f"{make_key(arguments.key, password)}: the public key of {arguments.key}")
    signed = sign_bundle(arguments.bundle, arguments.key, password)
    print(f"{signed.path}: {signed.public_key}")
    return 0


def _password(prompt: str) -> str:
    """Typed and not shown; where nobody types, the first line of stdin."""
    import sys
    from getpass import getpass

    return getpass(prompt) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
