from __future__ import annotations

import doctest

import pytest

from netns import chain, plan


@pytest.mark.parametrize("count", [2, 3, 4])
def test_no_address_or_mac_occurs_twice(count: int) -> None:
    links = chain(*"abcd"[:count]).links
    ends = [end for link in links for end in (link.left, link.right)]
    values = [value for end in ends for value in (end.mac, end.ipv4, end.ipv6)]
    assert len(values) == len(set(values)) == 6 * (count - 1)


@pytest.mark.parametrize("hosts", [("a",), ("a", "b", "c", "d", "e"), ("a", "a")])
def test_impossible_chains_are_refused(hosts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="2 to 4 hosts"):
        chain(*hosts)


def test_a_path_crosses_each_link_once_and_back_is_its_mirror() -> None:
    three = chain("client", "router", "server")
    there = three.path("client", "server")
    assert [(hop.sender, hop.receiver) for hop in there] == [
        ("client", "router"),
        ("router", "server"),
    ]
    back = three.path("server", "client")
    assert [(hop.out, hop.into) for hop in back] == [
        (hop.into, hop.out) for hop in reversed(there)
    ]


def test_there_is_no_path_from_a_host_to_itself() -> None:
    with pytest.raises(ValueError, match="itself"):
        chain("a", "b").path("a", "a")


def test_only_hosts_in_the_middle_are_routers() -> None:
    three = chain("a", "b", "c")
    assert [three.is_router(host) for host in three.hosts] == [False, True, False]


def test_the_peer_of_each_end_is_the_other_end() -> None:
    (link,) = chain("a", "b").links
    pair = chain("a", "b")
    assert pair.peer(link.left) == link.right
    assert pair.peer(link.right) == link.left
    with pytest.raises(ValueError, match="not part"):
        pair.peer(chain("a", "b", "c").links[1].left)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_drawing_names_every_host_and_address_and_its_boxes_line_up(count: int) -> None:
    planned = chain(*("client", "r1", "r2")[: count - 1], "server")
    picture = plan.drawing(planned)
    for host in planned.hosts:
        assert f"| {host} |" in picture
        for end in planned.interfaces(host):
            assert end.ipv4 in picture
            assert end.ipv6 in picture
    top, *_, bottom, _ = picture.splitlines()
    corners = [at for at, sign in enumerate(top) if sign == "+"]
    assert corners == [at for at, sign in enumerate(bottom) if sign == "+"]


def test_the_drawing_in_the_documentation_is_what_is_drawn() -> None:
    assert doctest.testmod(plan).attempted > 0
    assert doctest.testmod(plan).failed == 0
