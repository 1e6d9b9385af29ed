"""What the guest's pytest is told of the host's, so that tests run there as they would here.

The host makes a Setting of its own pytest's configuration, as JSON; the guest's pytest
gets command line arguments and a plugin from it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bridge.testing.repository import Repository

# Options of pytest and of this plugin that choose tests, show results or say where to
# run: the host's business. All others, those of a conftest.py too, hold in the guest.
_HOSTS = {
    "assertmode", "basetemp", "cacheclear", "cacheshow", "capture", "collectonly", "color",
    "confcutdir", "debug", "deselect", "durations", "durations_min", "fail_on_skip",
    "failedfirst", "file_or_dir", "guests", "help", "ignore", "ignore_glob", "importmode",
    "inifilename", "junitprefix", "kernel", "keyword", "last_failed_no_failures", "lf",
    "log_file", "markers", "markexpr", "maxfail", "native", "newfirst", "override_ini",
    "pastebin", "plugins", "pyargs", "pythonwarnings", "reportchars", "rootdir", "setuponly",
    "setupplan", "setupshow", "show_fixtures_per_test", "showfixtures", "stepwise",
    "stepwise_reset", "stepwise_skip", "strict", "strict_config", "strict_markers", "trace",
    "usepdb", "usepdb_cls", "version", "xmlpath",
}  # fmt: skip
_ARGUMENTS = (
    "-p", "bridge.testing.plugin",
    "-p", "no:cacheprovider",
    "--basetemp=/tmp/pytest",
    # The host has looked at the ini file, which may name plugins that only it has.
    "-o", "addopts=",
    "-o", "required_plugins=",
    "-W", "ignore::pytest.PytestConfigWarning",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setting:
    """The guest's directories and the host's configuration; paths are the guest's.

    ``options`` are values by the names that the tests know, ``markers`` what the host's
    plugins have registered.
    """

    rootdir: str
    directory: str
    inifile: str | None
    import_paths: list[str]
    arguments: list[str]
    plugins: list[str]
    options: dict[str, Any]
    markers: list[str]

    @classmethod
    def of(cls, config: pytest.Config, repository: Repository) -> Setting:
        """Return the setting of this pytest in a repository.

        Raises pytest.UsageError where the ini file is not in the repository.
        """
        inifile = repository.in_guest(config.inipath) if config.inipath else None
        if config.inipath and inifile is None:
            raise pytest.UsageError(
                f"{config.inipath} is not below the rootdir {repository.root}, so the lab"
                " does not have it: leave out --rootdir or -c"
            )
        option = vars(config.option)
        arguments = [
            f"--import-mode={option['importmode']}",
            f"--assert={option['assertmode']}",
        ]
        arguments += [f"-W{filter_}" for filter_ in option.get("pythonwarnings") or ()]
        arguments += [f"--override-ini={entry}" for entry in option.get("override_ini") or ()]
        return cls(
            rootdir=repository.guest_root,
            directory=repository.in_guest(config.invocation_params.dir)
            or repository.guest_root,
            inifile=inifile,
            import_paths=repository.import_paths(),
            arguments=arguments,
            plugins=list(option.get("plugins") or ()),
            options={
                name: value
                for name, value in option.items()
                if name not in _HOSTS and _is_plain(value)
            },
            markers=list(config.getini("markers")),
        )

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self)

    def command_line(self, nodeids: list[str]) -> list[str]:
        """Return the guest's arguments for pytest; import paths have to be in place."""
        line = [*self.arguments, *_ARGUMENTS, f"--rootdir={self.rootdir}"]
        if self.inifile:
            line += ["-c", self.inifile]
        for plugin in filter(_is_here, self.plugins):
            line += ["-p", plugin]
        return [*line, *(f"{self.rootdir}/{nodeid}" for nodeid in nodeids)]


class Options:
    """The plugin that gives the guest's pytest the host's options and markers."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Overwrite what the guest's own command line said."""
        vars(config.option).update(self._setting.options)
        for line in self._setting.markers:
            config.addinivalue_line("markers", line)


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_here(plugin: str) -> bool:
    """Return whether a plugin of the host's exists here too."""
    if plugin.startswith("no:"):
        return True
    try:
        return find_spec(plugin) is not None
    except ImportError:
        return False
