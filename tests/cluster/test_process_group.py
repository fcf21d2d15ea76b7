"""Which network gloo is led to; that it works between hosts is in test_hosts."""

import os

import psutil
import pytest
import ray

from cluster.process_group import interface_of, lead_gloo


def test_the_interface_of_an_address() -> None:
    (loopback,) = [
        name
        for name, held in psutil.net_if_addrs().items()
        if "127.0.0.1" in [one.address for one in held]
    ]
    assert interface_of("127.0.0.1") == loopback
    assert interface_of("203.0.113.1") is None  # kept for documentation, no machine's


def test_gloo_is_led_to_the_address_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # to be put back as it was
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    lead_gloo()
    named = os.environ["GLOO_SOCKET_IFNAME"]
    address = ray.util.get_node_ip_address()
    assert address in [one.address for one in psutil.net_if_addrs()[named]]


def test_what_the_user_says_of_gloo_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    lead_gloo()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"
