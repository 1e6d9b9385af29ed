"""docs/kernel-module.md, the YNL spec and the client against the module's header.

The header is the contract; everything else that lists its names is compared with it.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from bridge.lifecycle import OUTCOMES, STOP_REASONS
from bridge.module import PROJECT, SOURCES
from bridge.netlink import Command, LunatikMessage, State
from bridge.runtime_events import _KINDS

PAGE = (PROJECT / "docs" / "kernel-module.md").read_text()
HEADER = (SOURCES / "uapi" / "lunatik.h").read_text()
CONTROL = (SOURCES / "control.c").read_text()
SPEC: dict[str, Any] = yaml.safe_load((SOURCES / "uapi" / "lunatik.yaml").read_text())
# Types of the header and the spec, as pyroute2 calls them.
CLIENT_TYPES = {
    "asciiz": {"string"},
    "cdata": {"binary"},
    "flag": {"flag"},
    "int32": {"s32"},
    "int64": {"s64"},
    "none": {"pad", "nest"},
    "uint8": {"u8"},
    "uint32": {"u32"},
    "uint64": {"u64"},
}


def constants(header: str, enum: str) -> list[str]:
    """The public constants of an enum, in their order, from 1 or from 0."""
    found = re.search(rf"^enum {enum} \{{(.*?)^\}};", header, re.M | re.S)
    assert found, f"no enum {enum}"
    body = re.sub(r"/\* private: \*/.*?(/\* public: \*/|\Z)", "", found[1], flags=re.S)
    names = re.findall(r"^\t(\w+),?$", body, re.M)
    assert names
    assert len(names) == len(re.findall(r"[^\s,][^,]*", body)), f"{enum}: values are given"
    return names


def types(header: str, prefix: str) -> dict[str, str]:
    """What the comments of an enum of attributes say of the types."""
    found = re.findall(rf"^ \* @({prefix}\w+): (\w+)", header, re.M)
    return {name: "pad" if type_ == "alignment" else type_ for name, type_ in found}


def spelled(prefix: str, names: list[str]) -> list[str]:
    """Names of the spec as constants of C."""
    return [(prefix + name).upper().replace("-", "_") for name in names]


def attributes(spec: dict[str, Any], set_: str) -> dict[str, str]:
    """Names and types of a set of attributes of the spec."""
    (found,) = (one for one in spec["attribute-sets"] if one["name"] == set_)
    return {one["name"]: one["type"] for one in found["attributes"]}


def taken(source: str) -> dict[str, set[str]]:
    """The attributes that the module's policies let each command take."""
    policies = {
        name: set(re.findall(r"\[LUNATIK_A_(\w+)\] = (?!\{ \.type = NLA_REJECT)", body))
        for name, body in re.findall(
            r"struct nla_policy (\w+)\[\] = \{(.*?)^\};", source, re.M | re.S
        )
    }
    operations = re.findall(r"\.cmd = LUNATIK_CMD_(\w+),.*?\.policy = (\w+),", source, re.S)
    return {command: policies[policy] for command, policy in operations}


def parameters(source: str) -> dict[str, str]:
    """The module parameters of C sources, and their modes."""
    return dict(re.findall(r"^module_param\w*\((\w+), .*?(0\d{3})\);", source, re.M))


def table(head: str) -> list[list[str]]:
    """The rows of a table of the page, without the backquotes."""
    found = re.search(rf"^{re.escape(head)}\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.M)
    assert found, f"the page has no table {head}"
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in found[1].splitlines()
    ]


OPERATIONS = {one["name"]: one for one in SPEC["operations"]["list"]}


def requested(operation: dict[str, Any]) -> list[str]:
    """The attributes that a command takes, as the spec says."""
    way = operation.get("do") or operation.get("dump") or {}
    attributes: list[str] = way.get("request", {}).get("attributes", [])
    return attributes


# ---- the spec ---------------------------------------------------------------


def test_the_spec_names_the_family_and_its_header():
    assert f'#define LUNATIK_GENL_NAME\t"{SPEC["name"]}"' in HEADER
    assert f"#define LUNATIK_GENL_VERSION\t{SPEC.get('version', 1)}\n" in HEADER
    assert SPEC["protocol"] == "genetlink"
    assert SPEC["uapi-header"] == "lunatik.h"


def test_the_spec_has_the_commands_of_the_header():
    assert spelled("lunatik-cmd-", list(OPERATIONS)) == constants(HEADER, "lunatik_cmd")


def test_the_spec_has_the_attributes_and_types_of_the_header():
    for set_, enum in (("main", "lunatik_attr"), ("value", "lunatik_value_attr")):
        prefix = {"main": "lunatik-a-", "value": "lunatik-v-"}[set_]
        found = attributes(SPEC, set_)
        names = constants(HEADER, enum)
        assert spelled(prefix, list(found)) == names
        said = types(HEADER, prefix.upper().replace("-", "_"))
        assert dict(zip(names, found.values(), strict=True)) == {
            name: said[name] for name in names
        }


def test_the_spec_has_the_enumerations_of_the_header():
    prefixes = {"stop-reason": "lunatik-stop-"}
    assert [one["name"] for one in SPEC["definitions"]] == [
        "state", "event", "outcome", "stop-reason",
    ]  # fmt: skip
    for one in SPEC["definitions"]:
        prefix = prefixes.get(one["name"], f"lunatik-{one['name']}-")
        assert one.get("name-prefix", prefix) == prefix
        assert spelled(prefix, one["entries"]) == constants(HEADER, one["enum-name"])


def test_the_spec_has_the_multicast_groups_of_the_header():
    groups = [one["name"] for one in SPEC["mcast-groups"]["list"]]
    assert [f'"{name}"' for name in groups] == re.findall(
        r"^#define LUNATIK_GENL_EVENTS\t(\S+)$", HEADER, re.M
    )
    assert {one["mcgrp"] for one in OPERATIONS.values() if "mcgrp" in one} == set(groups)


def test_the_spec_says_what_each_command_takes():
    said = {
        name.upper().replace("-", "_"): {
            attribute.upper().replace("-", "_") for attribute in requested(one)
        }
        for name, one in OPERATIONS.items()
        if "event" not in one
    }
    assert said == taken(CONTROL)


def test_the_spec_names_only_attributes_that_exist():
    known = set(attributes(SPEC, "main"))
    for name, one in OPERATIONS.items():
        parts = [*one.get("do", {}).values(), *one.get("dump", {}).values()]
        parts += [one["event"]] if "event" in one else []
        assert parts, name
        for part in parts:
            assert set(part["attributes"]) <= known, name


# ---- the client -------------------------------------------------------------


def test_the_client_has_the_names_and_numbers_of_the_header():
    commands = constants(HEADER, "lunatik_cmd")
    assert {f"LUNATIK_CMD_{one.name}": one.value for one in Command} == {
        name: number for number, name in enumerate(commands, 1)
    }
    states = constants(HEADER, "lunatik_state")
    assert {f"LUNATIK_STATE_{one.name}": one.value for one in State} == {
        name: number for number, name in enumerate(states)
    }


def test_the_client_has_names_for_the_numbers_of_the_header():
    for names, enum, prefix in (
        (OUTCOMES, "lunatik_outcome", "lunatik-outcome-"),
        (STOP_REASONS, "lunatik_stop_reason", "lunatik-stop-"),
    ):
        assert spelled(prefix, [name.replace(" ", "-") for name in names]) == constants(
            HEADER, enum
        )


def test_the_client_has_a_class_for_each_event_of_the_header():
    otherwise = {"Failed": "ERROR", "BudgetExceeded": "BUDGET"}
    names = [otherwise.get(kind.__name__, kind.__name__.upper()) for kind, _ in _KINDS]
    assert spelled("lunatik-event-", names) == constants(HEADER, "lunatik_event")


def test_the_client_has_the_attributes_and_types_of_the_header():
    value = LunatikMessage.lua_values.lua_value
    for map_, enum, prefix in (
        (LunatikMessage.nla_map, "lunatik_attr", "LUNATIK_A_"),
        (value.nla_map, "lunatik_value_attr", "LUNATIK_V_"),
    ):
        names = constants(HEADER, enum)
        assert [name for name, _ in map_] == [f"{prefix}UNSPEC", *names]
        said = types(HEADER, prefix)
        for name, type_ in map_[1:]:
            assert said[name] in CLIENT_TYPES.get(type_, {"nest"}), name


# ---- the page ---------------------------------------------------------------


def test_the_page_lists_the_commands_and_what_they_take():
    rows = table("| command | takes | |")
    assert [row[0] for row in rows] == list(OPERATIONS)
    for name, takes, _ in rows:
        assert takes.split() == requested(OPERATIONS[name])


def test_the_page_lists_the_attributes_and_their_types():
    for head, set_ in (("| attribute | type | |", "main"), ("| value | type | |", "value")):
        assert [tuple(row[:2]) for row in table(head)] == list(attributes(SPEC, set_).items())


def test_the_page_lists_the_states():
    names = [row[0] for row in table("| state | |")]
    assert spelled("lunatik-state-", names) == constants(HEADER, "lunatik_state")


def test_the_page_lists_the_parameters_of_the_sources_and_their_modes():
    rows = table("| parameter | default | mode | |")
    code = parameters("".join(path.read_text() for path in SOURCES.glob("*.c")))
    assert [row[0] for row in rows] == sorted(code)
    assert {row[0]: row[2] for row in rows} == code


def test_the_page_lists_the_events_and_their_attributes():
    rows = table("| event | with | |")
    names = [row[0] for row in rows]
    assert spelled("lunatik-event-", names) == constants(HEADER, "lunatik_event")
    common = ["event", "when", "id", "name"]
    listed = dict.fromkeys(common + [one for row in rows for one in row[1].split()])
    assert set(listed) == set(OPERATIONS["event"]["event"]["attributes"])


def test_the_page_lists_the_reasons_of_a_stop():
    names = [row[0] for row in table("| reason | |")]
    assert spelled("lunatik-stop-", names) == constants(HEADER, "lunatik_stop_reason")


# ---- the checks can fail ----------------------------------------------------

SMALL = """
/**
 * enum x_attr - attributes
 * @X_A_ONE: u32, first
 * @X_A_PAD: alignment of u64
 */
enum x_attr {
	/* private: */
	X_A_UNSPEC,
	/* public: */
	X_A_ONE,
	X_A_PAD,
	/* private: */
	__X_A_MAX
};
enum odd {
	ODD_ONE = 7,
	ODD_TWO,
};
"""


def test_constants_and_types_are_read_from_a_header():
    assert constants(SMALL, "x_attr") == ["X_A_ONE", "X_A_PAD"]
    assert types(SMALL, "X_A_") == {"X_A_ONE": "u32", "X_A_PAD": "pad"}
    with pytest.raises(AssertionError, match="values are given"):
        constants(SMALL, "odd")
    with pytest.raises(AssertionError, match="no enum"):
        constants(SMALL, "none")


def test_parameters_are_read_from_the_source():
    source = "module_param(a, uint, 0644);\nmodule_param_cb(b, &b_ops, NULL, 0600);\n"
    assert parameters(source) == {"a": "0644", "b": "0600"}


def test_policies_are_read_from_the_source():
    source = """
static const struct nla_policy info_policy[] = {
	[LUNATIK_A_ID] = { .type = NLA_REJECT },
};
static const struct nla_policy id_policy[] = {
	[LUNATIK_A_ID] = NLA_POLICY_MIN(NLA_U32, 1),
	[LUNATIK_A_SLEEP] = { .type = NLA_U8 },
};
		.cmd = LUNATIK_CMD_INFO_GET,
		.doit = control_info,
		.policy = info_policy,
		.cmd = LUNATIK_CMD_STOP,
		.policy = id_policy,
"""
    assert taken(source) == {"INFO_GET": set(), "STOP": {"ID", "SLEEP"}}
