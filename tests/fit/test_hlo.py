"""Reading compiled programs: small texts written by hand, and a real one of this machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from streamjax.fit import hlo
from streamjax.sharding import make_mesh

MESH = {"data": 2, "fsdp": 2, "tensor": 2}

LOOP = """
HloModule jit_step, is_scheduled=true, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%write (p0: f32[4,8,16], p1: f32[8,16], p2: s32[]) -> f32[4,8,16] {
  %p0 = f32[4,8,16]{2,1,0} parameter(0)
  %p1 = f32[8,16]{1,0} parameter(1)
  %one = f32[1,8,16]{2,1,0} bitcast(%p1)
  %p2 = s32[] parameter(2)
  ROOT %dus = f32[4,8,16]{2,1,0} dynamic-update-slice(%p0, %one, %p2)
}

%take (q0: bf16[4,8,16], q1: s32[]) -> bf16[8,16] {
  %q0 = bf16[4,8,16]{2,1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %row = bf16[1,8,16]{2,1,0} dynamic-slice(%q0, %q1), dynamic_slice_sizes={1,8,16}
  ROOT %flat = bf16[8,16]{1,0} bitcast(%row)
}

%body (state: (s32[], f32[4,8,16], bf16[4,8,16])) -> (s32[], f32[4,8,16], bf16[4,8,16]) {
  %state = (s32[], f32[4,8,16]{2,1,0}, bf16[4,8,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %kept = f32[4,8,16]{2,1,0} get-tuple-element(%state), index=1
  %stack = bf16[4,8,16]{2,1,0} get-tuple-element(%state), index=2
  %weight = bf16[8,16]{1,0} fusion(%stack, %i), kind=kLoop, calls=%take
  %whole = bf16[16,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%weight), channel_id=1, replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}, use_global_device_ids=true
  %made = f32[8,16]{1,0} convert(%weight)
  %new = f32[4,8,16]{2,1,0} fusion(%kept, %made, %i), kind=kLoop, calls=%write
  ROOT %next = (s32[], f32[4,8,16]{2,1,0}, bf16[4,8,16]{2,1,0}) tuple(%i, %new, %stack)
}

%condition (state.1: (s32[], f32[4,8,16], bf16[4,8,16])) -> pred[] {
  %state.1 = (s32[], f32[4,8,16]{2,1,0}, bf16[4,8,16]{2,1,0}) parameter(0)
  %at = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(4)
  ROOT %less = pred[] compare(%at, %limit), direction=LT
}

ENTRY %main (x: bf16[4,8,16], g: f32[32]) -> f32[32] {
  %x = bf16[4,8,16]{2,1,0} parameter(0)
  %g = f32[32]{0} parameter(1)
  %zero = s32[] constant(0)
  %empty = f32[4,8,16]{2,1,0} broadcast(%zero), dimensions={}
  %start = (s32[], f32[4,8,16]{2,1,0}, bf16[4,8,16]{2,1,0}) tuple(%zero, %empty, %x)
  %loop = (s32[], f32[4,8,16]{2,1,0}, bf16[4,8,16]{2,1,0}) while(%start), condition=%condition, body=%body
  %pair = (f32[32]{0}, f32[32]{0}) all-reduce-start(%g), channel_id=2, replica_groups=mesh['a'=2,'b'=4] {'a'}, use_global_device_ids=true, to_apply=%sum
  ROOT %done = f32[32]{0} all-reduce-done(%pair)
}
"""


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        (
            "replica_groups=mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}, x",
            [[0, 1], [2, 3]],
        ),
        ("replica_groups=mesh['a'=8] {'a':(2)2}, x", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
        ("replica_groups={}, x", None),
    ],
)
def test_groups_of_devices_in_every_way_they_are_written(text, wanted):
    found = hlo.groups_of(text)
    assert (None if found is None else found.tolist()) == wanted


def test_unknown_groups_are_an_error():
    with pytest.raises(ValueError, match="not known"):
        hlo.groups_of("replica_groups=v9[4]")


def test_groups_are_told_as_mesh_axes():
    assert hlo.axes_of(np.array([[0, 1], [2, 3]]), MESH) == ("tensor",)
    assert hlo.axes_of(np.array([[0, 2, 4, 6], [1, 3, 5, 7]]), MESH) == ("data", "fsdp")
    assert hlo.axes_of(None, MESH) == ("data", "fsdp", "tensor")


def test_collectives_count_as_often_as_their_loop_turns():
    found = hlo.read(LOOP, MESH)
    gather, reduce = found.collectives
    # Every device gathers 2 x 256 bytes, half of which come from another, 4 times.
    assert (gather.kind, gather.axes, gather.group) == ("all-gather", ("fsdp",), 2)
    assert (gather.bytes, gather.times) == (256, 4)
    # 'a' is the first half of 8 devices against the second: the outermost mesh axis.
    assert (reduce.kind, reduce.axes, reduce.bytes, reduce.times) == (
        "all-reduce", ("data",), 128, 1,
    )  # fmt: skip
    assert found.unknown_loops == 0


def test_what_a_loop_stacks_up_is_found_and_slices_are_read_as_slices():
    found = hlo.read(LOOP, MESH)
    assert found.stacked == 4 * 8 * 16 * 4
    # A turn reads and writes one row of bf16, converts it, and writes one row of the stack; what it
    # gathers lands in memory on the chip.
    turn = (256 + 256) + 2 * 256 + (256 + 512) + (512 + 512)
    outside = (4 * 8 * 16 * 4 + 4) + 2 * 128
    assert found.traffic == pytest.approx(4 * turn + outside, rel=0.02)


def test_attributes_over_several_lines_end_no_computation():
    kernel = (
        "  %kernel = f32[8,16]{1,0} custom-call(%weight), metadata={\n"
        '"settings":"{}"\n'
        "}}, backend_config={}\n"
    )
    text = LOOP.replace("  %whole = ", kernel + "  %whole = ")
    assert len(hlo.read(text, MESH).collectives) == 2


def test_a_fusion_of_several_results_stacks_one_of_them():
    text = LOOP.replace(
        "ROOT %dus = f32[4,8,16]{2,1,0} dynamic-update-slice(%p0, %one, %p2)",
        "%dus = f32[4,8,16]{2,1,0} dynamic-update-slice(%p0, %one, %p2)\n"
        "  ROOT %both = (f32[4,8,16]{2,1,0}, f32[8,16]{1,0}) tuple(%dus, %p1)",
    ).replace(
        "%new = f32[4,8,16]{2,1,0} fusion(%kept",
        "%new = (f32[4,8,16]{2,1,0}, f32[8,16]{1,0}) fusion(%kept",
    )
    found, plain = hlo.read(text, MESH), hlo.read(LOOP, MESH)
    assert found.stacked == plain.stacked
    assert found.traffic == plain.traffic + 4 * 512  # the second result is written too


def test_the_larger_branch_of_a_conditional_counts():
    text = """
%small (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%a)
}

%large (b: f32[8]) -> f32[8] {
  %b = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%b), replica_groups={{0,1},{2,3},{4,5},{6,7}}
}

ENTRY %main (p: s32[], x: f32[8]) -> f32[8] {
  %p = s32[] parameter(0)
  %x = f32[8]{0} parameter(1)
  ROOT %c = f32[8]{0} conditional(%p, %x, %x), branch_computations={%small, %large}
}
"""
    (only,) = hlo.read(text, MESH).collectives
    assert only.axes == ("tensor",) and only.times == 1


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    text = LOOP.replace(
        "%limit = s32[] constant(4)", "%limit = s32[] get-tuple-element(%state.1), index=0"
    )
    found = hlo.read(text, MESH)
    assert found.unknown_loops == 1
    assert found.collectives[0].times == 1


def test_a_text_without_a_program_is_an_error():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.read("HloModule nothing", MESH)


@pytest.mark.devices
def test_a_real_program_of_this_machine():
    """A product over two axes in a scan: the weights are gathered, the result is summed."""
    mesh = make_mesh(fsdp=4, tensor=2)

    def loop(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    x = jax.ShapeDtypeStruct(
        (64, 256), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp"))
    )
    w = jax.ShapeDtypeStruct((5, 256, 256), jnp.float32,
                             sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor")))  # fmt: skip
    text = jax.jit(loop).lower(x, w).compile().as_text()
    assert text is not None
    found = hlo.read(text, dict(mesh.shape))
    assert found.unknown_loops == 0
    by_axes: dict[tuple[str, ...], float] = {}
    for c in found.collectives:
        by_axes[c.axes] = by_axes.get(c.axes, 0) + c.bytes * c.times
    # 5 x 256 x 128 floats of weights, of which 3/4 come from others.
    assert by_axes[("fsdp",)] == pytest.approx(5 * 256 * 128 * 4 * 3 / 4, rel=0.05)
    assert ("tensor",) in by_axes
