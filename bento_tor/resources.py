"""The only reader of packaged files: torrc templates, the functions that ship, the sandbox's driver."""

from __future__ import annotations

from importlib import resources

from bento_tor.errors import ConfigError


def read_text(package: str, name: str) -> str:
    """The text of file `name` in `package` (`torrc_templates`, `functions`, `sandbox`).

    Raises ConfigError where there is no such file: a broken installation, or a wrong name."""
    try:
        return resources.files(f"bento_tor.{package}").joinpath(name).read_text(encoding="utf-8")
    except (FileNotFoundError, ModuleNotFoundError) as why:
        raise ConfigError(f"bento-tor has no file {name!r} in {package}", hint="reinstall bento-tor") from why


def shipped_functions() -> list[str]:
    """The names of the functions that ship, without `.py`, sorted."""
    files = resources.files("bento_tor.functions").iterdir()
    return sorted(f.name[:-3] for f in files if f.name.endswith(".py") and not f.name.startswith("_"))
