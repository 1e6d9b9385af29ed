"""Loading and unloading the module, its parameters, its privileges."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from bridge.errors import LuaError, ModuleError, UsageError
from bridge.lunatik import Lunatik
from bridge.netlink import Command, Connection, NetlinkError

pytestmark = pytest.mark.kernel


def test_the_memory_limit_is_that_of_the_module_parameter():
    source = "local t = {} for i = 1, 4000 do t[i] = {} end"
    with Lunatik.load(memory_limit=64 * 1024) as lunatik:
        with pytest.raises(LuaError, match="not enough memory"):
            lunatik.runtime("greedy", source=source)
        lunatik.runtime("modest", source="local t = {} for i = 1, 100 do t[i] = i end").stop()
    with (
        Lunatik.load(memory_limit=4 * 1024) as lunatik,
        pytest.raises(LuaError, match="not enough memory for a Lua state"),
    ):
        lunatik.runtime("none", source="")


def test_info_tells_versions_root_and_runtimes(lunatik):
    info = lunatik.info()
    version = Path(__file__).parents[2].joinpath("kmod/VERSION").read_text().strip()
    assert info.version == version
    assert info.lua_version == "Lua 5.4.7"
    assert Path(info.lua_root, "dns_block.lua").exists()
    assert info.runtimes == 0


def test_unloading_in_use_is_refused_and_succeeds_after_stop(lunatik):
    runtime = lunatik.runtime("echo")
    with pytest.raises(ModuleError, match="in use by 1 runtime") as caught:
        lunatik.unload()
    assert caught.value.errno == errno.EBUSY
    done = subprocess.run(["rmmod", "lunatik"], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "in use" in done.stderr
    runtime.stop()
    lunatik.unload()
    assert not Path("/sys/module/lunatik").exists()


def test_without_the_module_the_client_says_so_and_what_to_do():
    with pytest.raises(ModuleError, match="is not loaded"):
        Lunatik.connect()


def test_loading_a_missing_file_and_a_file_that_is_no_module(tmp_path):
    with pytest.raises(ModuleError, match="does not exist"):
        Lunatik.load(tmp_path / "none.ko")
    (tmp_path / "junk.ko").write_bytes(b"junk" * 100)
    with pytest.raises(ModuleError, match=r"(?i)invalid module format|exec format"):
        Lunatik.load(tmp_path / "junk.ko")


def test_parameters_of_a_loaded_module_cannot_be_chosen(lunatik):
    with pytest.raises(UsageError, match="loaded already"):
        Lunatik.load(budget=5)


UNPRIVILEGED = """
import os, sys
from bridge.netlink import Command, Connection, NetlinkError
{become}
connection = Connection()
print(connection.request(Command.INFO_GET, [])[0].get_attr("LUNATIK_A_VERSION"))
requests = [
    (Command.CREATE, [("LUNATIK_A_NAME", "echo")], False),
    (Command.RUNTIME_GET, [("LUNATIK_A_ID", 1)], False),
    (Command.RUNTIME_GET, [], True),
    (Command.RESUME, [("LUNATIK_A_ID", 1)], False),
    (Command.STOP, [("LUNATIK_A_ID", 1)], False),
    (Command.REPLACE, [("LUNATIK_A_ID", 1), ("LUNATIK_A_NAME", "echo")], False),
]
for command, attrs, dump in requests:
    try:
        connection.request(command, attrs, dump=dump)
        print(command.name, "allowed")
    except NetlinkError as error:
        print(command.name, error.code, error.args[1])
"""


@pytest.mark.parametrize(
    "become",
    [
        pytest.param("os.setgid(65534); os.setuid(65534)", id="user"),
        pytest.param("os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)", id="container"),
    ],
)
def test_without_cap_sys_admin_only_info_is_answered(lunatik, become):
    lunatik.runtime("echo")
    if "unshare" in become:  # Python 3.12 has it, and so has the libc of any
        become = "import ctypes; assert ctypes.CDLL(None).unshare(0x50000000) == 0"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", UNPRIVILEGED.format(become=become)],
        capture_output=True,
        text=True,
        check=True,
    )
    version, *lines = done.stdout.splitlines()
    assert version == lunatik.info().version
    commands = ["CREATE", "RUNTIME_GET", "RUNTIME_GET", "RESUME", "STOP", "REPLACE"]
    needs = "needs CAP_SYS_ADMIN in the initial user namespace"
    assert lines == [f"{name} {errno.EPERM} {needs}" for name in commands]
    assert len(lunatik.runtimes()) == 1


@pytest.mark.parametrize(
    ("command", "attrs", "code"),
    [
        (Command.CREATE, [], errno.EINVAL),
        (Command.CREATE, [("LUNATIK_A_NAME", "x" * 64)], errno.EINVAL),
        (Command.CREATE, [("LUNATIK_A_NAME", "x"), ("LUNATIK_A_SLEEP", 2)], errno.ERANGE),
        (Command.CREATE, [("LUNATIK_A_NAME", "x"), ("LUNATIK_A_NETNS_FD", 999)], errno.EBADF),
        (Command.CREATE, [("LUNATIK_A_NAME", "x"), ("LUNATIK_A_NETNS_FD", 1)], errno.EINVAL),
        (Command.CREATE, [("LUNATIK_A_NAME", "x"), ("LUNATIK_A_HOOKS", 1)], errno.EINVAL),
        (Command.RESUME, [], errno.EINVAL),
        (Command.RESUME, [("LUNATIK_A_ID", 0)], errno.ERANGE),
        (Command.RESUME, [("LUNATIK_A_ID", 77)], errno.ESRCH),
        (Command.STOP, [("LUNATIK_A_ID", 77)], errno.ESRCH),
        (Command.RUNTIME_GET, [("LUNATIK_A_ID", 77)], errno.ESRCH),
        (Command.INFO_GET, [("LUNATIK_A_ID", 1)], errno.EINVAL),
        (Command(5), [("LUNATIK_A_ID", 2**32 - 1)], errno.ESRCH),
    ],
)
def test_a_malformed_request_is_refused(lunatik, command, attrs, code):
    connection = Connection()
    try:
        with pytest.raises(NetlinkError) as caught:
            connection.request(command, attrs)
    finally:
        connection.close()
    assert caught.value.code == code
    assert lunatik.info().runtimes == 0


def test_a_value_of_no_type_and_one_of_a_wrong_attribute_are_refused(lunatik):
    with lunatik.runtime("echo") as runtime:
        for values in (
            {"attrs": [("LUNATIK_A_VALUE", {"attrs": []})]},
            {"attrs": [("LUNATIK_A_VALUE", {"attrs": [("LUNATIK_V_BOOLEAN", 2)]})]},
        ):
            with pytest.raises(ModuleError):
                lunatik.request(
                    Command.RESUME,
                    [("LUNATIK_A_ID", runtime.id), ("LUNATIK_A_VALUES", values)],
                )
        assert runtime.resume("still here") == b"still here"


def test_a_long_list_of_runtimes_comes_back_whole_and_in_order(lunatik):
    created = [lunatik.runtime("echo").id for _ in range(100)]
    assert [info.id for info in lunatik.runtimes()] == created
    for number in created:
        lunatik.stop(number)


def test_a_long_error_arrives_whole(lunatik):
    with pytest.raises(LuaError) as caught:
        lunatik.runtime("long", source="error(('x'):rep(5000), 0)")
    assert caught.value.message == "x" * 5000
