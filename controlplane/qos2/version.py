"""The version of this package, as clients, metrics and `--version` say it."""

from importlib import metadata


def version() -> str:
    """Of the installed package; "dev" where it runs from a source tree."""
    try:
        return metadata.version("qos2")
    except metadata.PackageNotFoundError:
        return "dev"
