"""The roofline: small loads whose seconds can be worked out by hand."""

import numpy as np
import pytest

from streamjax.fit.hlo import Collective
from streamjax.fit.roofline import HOP, Load, grown, link_bandwidth, predict, seconds_of
from streamjax.fit.topology import topology

V5E = topology("v5e:4x4")
MESH = {"data": 1, "fsdp": 4, "tensor": 4, "context": 1}


def coords(sides):
    """Chips row by row, as a mesh over the whole torus has them."""
    return np.stack(np.unravel_index(np.arange(np.prod(sides)), sides), axis=-1)


def test_the_slowest_of_the_three_is_the_step():
    chip = V5E.chip
    sent = Collective("all-gather", ("fsdp",), 4, 90e9, 2.0)
    load = Load(2 * chip.flops, chip.flops, 3 * chip.bandwidth, (sent,))
    found = predict(load, V5E, {("fsdp",): 45e9})
    assert (found.compute, found.memory) == (2, 3)
    assert found.links["fsdp"] == pytest.approx(4 + 2 * 3 * HOP)
    assert found.step == pytest.approx(4, rel=1e-5) and found.bound == "links"
    assert found.unlapped == pytest.approx(3 + 4, rel=1e-5)
    assert found.mfu == pytest.approx(1 / 4, rel=1e-5)


def test_loads_add_and_repeat():
    one = Load(1.0, 2.0, 3.0, (Collective("all-reduce", ("data",), 2, 10.0, 1.0),))
    both = one.times(3.0) + one
    assert (both.flops, both.useful, both.traffic) == (4, 8, 12)
    assert [c.times for c in both.collectives] == [3, 1]


def test_links_of_a_torus():
    # 16 chips in 4 x 4, fsdp along one side and tensor along the other; v5e closes at 16.
    places = coords((4, 4))
    assert link_bandwidth(("fsdp",), MESH, places, V5E) == 45e9
    assert link_bandwidth(("tensor",), MESH, places, V5E) == 45e9
    assert link_bandwidth(("fsdp", "tensor"), MESH, places, V5E) == 90e9
    # v5p closes every side of 4: both ways round.
    v5p = topology("v5p:4x4x4")
    mesh = {"data": 1, "fsdp": 16, "tensor": 4, "context": 1}
    places = coords((4, 4, 4))
    assert link_bandwidth(("tensor",), mesh, places, v5p) == 2 * 90e9
    assert link_bandwidth(("fsdp",), mesh, places, v5p) == 4 * 90e9


def test_a_path_around_corners_is_no_torus():
    # Four chips of a 4 x 4 that lie in an L.
    places = np.array([[0, 0], [0, 1], [1, 1], [2, 1]])
    mesh = {"data": 4}
    assert link_bandwidth(("data",), mesh, places, V5E) == 45e9


def test_gpus_speak_over_their_switch_or_the_network():
    mesh = {"data": 2, "fsdp": 8, "tensor": 1, "context": 1}
    where = topology("h100:16")
    assert link_bandwidth(("fsdp",), mesh, None, where) == where.chip.link
    assert link_bandwidth(("data",), mesh, None, where) == where.chip.network


def test_one_device_says_nothing():
    assert seconds_of(Collective("all-reduce", (), 1, 1e9, 1.0), 1.0) == 0.0


def test_a_grown_axis_sends_the_rest_of_the_array():
    gather = Collective("all-gather", ("fsdp",), 4, 75.0, 1.0)  # 3/4 of 100
    reduce = Collective("all-reduce", ("tensor",), 4, 150.0, 1.0)
    more = grown(Load(1.0, 1.0, 1.0, (gather, reduce)), MESH, "fsdp", 64)
    assert more.collectives[0].bytes == pytest.approx(100 * 63 / 64)
    assert more.collectives[0].group == 64
    assert more.collectives[1] == reduce
