"""The guest's pytest is configured as the host's is."""

from __future__ import annotations

import json

import pytest

from bridge.testing.repository import Repository
from bridge.testing.setting import Options, Setting

CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--port", type=int)
    parser.addoption("--odd", type=lambda text: {text})  # JSON knows no set
"""


@pytest.fixture
def setting(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LUNABRIDGE_IN_LAB", raising=False)
    pytester.makeconftest(CONFTEST)

    def setting(*arguments: str) -> Setting:
        config = pytester.parseconfig(*arguments)
        made = Setting.of(config, Repository.at(config.rootpath))
        return Setting(**json.loads(json.dumps(made.as_json())))

    return setting


def test_options_of_a_conftest_hold_there_and_the_choice_of_tests_does_not(setting):
    options = setting("--port=53", "--odd=x", "-k", "name", "-x", "-vv", "--lf").options
    assert options["port"] == 53
    assert options["verbose"] == 2
    assert not {"odd", "keyword", "maxfail", "lf", "plugins", "basetemp"} & set(options)


def test_the_ini_file_is_where_the_repository_is(setting, pytester):
    assert setting().inifile is None
    pytester.makeini("[pytest]\naddopts = --port=1\nmarkers = mine: of the user's\n")
    found = setting()
    assert found.inifile == "/repository/tox.ini"
    assert found.options["port"] == 1
    assert "mine: of the user's" in found.markers


def test_an_ini_file_outside_the_rootdir_is_refused(setting, pytester):
    pytester.makeini("[pytest]\n")
    (pytester.path / "sub").mkdir()
    with pytest.raises(pytest.UsageError, match=r"tox.ini is not below the rootdir .*: leave"):
        setting("-c", "tox.ini", "--rootdir=sub")


def test_tests_run_from_the_directory_that_the_host_was_started_in(
    setting, pytester, monkeypatch
):
    pytester.makeini("[pytest]\n")
    (pytester.path / "sub").mkdir()
    monkeypatch.chdir("sub")
    assert setting().directory == "/repository/sub"


def test_the_command_line_has_no_options_of_the_ini_file_nor_plugins_that_are_not_here(setting):
    line = setting("-p", "no:doctest", "--import-mode=append").command_line(["a.py::test[x y]"])
    assert "--import-mode=append" in line
    assert "addopts=" in line
    assert "no:doctest" in line
    assert line[-1] == "/repository/a.py::test[x y]"
    other = Setting("/r", "/r", None, [], [], ["not.there", "bridge.testing.plugin"], {}, [])
    assert "not.there" not in other.command_line([])


def test_the_hosts_options_and_markers_are_put_into_the_guests_configuration(pytester):
    setting = Setting("/r", "/r", None, [], [], [], {"verbose": 3, "port": 7}, ["mine: marker"])
    config = pytester.parseconfig()
    Options(setting).pytest_configure(config)
    assert (config.option.verbose, config.option.port) == (3, 7)
    assert "mine: marker" in config.getini("markers")
