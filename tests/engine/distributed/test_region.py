"""Blocks of tensors are cut, put into order and found complete as the tensors themselves would be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.distributed.region import Region, rows_in_model_order, tiles
from automodel_cli.engine.distributed.tensor_parallel import rows_by_rank


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Region]]:
    """A shape, and boxes that fill it: made by cutting boxes in two, again and again."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    boxes = [Region.whole(shape)]
    for _ in range(draw(st.integers(0, 6))):
        number, axis = draw(st.integers(0, len(boxes) - 1)), draw(st.integers(0, len(shape) - 1))
        box = boxes[number]
        if box.sizes[axis] > 1:
            place = draw(st.integers(1, box.sizes[axis] - 1))
            boxes[number] = box.rows(axis, 0, place)
            boxes.append(box.rows(axis, place, box.sizes[axis]))
    return shape, draw(st.permutations(boxes))


@given(tilings(), st.data())
def test_a_tensor_is_complete_only_if_every_element_is_there_once(tiling, data):
    """A box that is missing, doubled or moved by one is always noticed."""
    shape, boxes = tiling
    box = data.draw(st.sampled_from(boxes))
    axis = data.draw(st.integers(0, len(shape) - 1))
    others = [one for one in boxes if one != box]
    moved = Region(tuple(o + (i == axis) for i, o in enumerate(box.offsets)), box.sizes)

    assert tiles(shape, boxes)
    assert not tiles(shape, others)
    assert not tiles(shape, [*boxes, box])
    assert not tiles(shape, [*others, moved])


def test_scalars_and_empty_tensors_are_complete_or_not():
    assert tiles((), [Region((), ())])
    assert not tiles((), [Region((), ()), Region((), ())])
    assert tiles((0, 3), [Region((0, 0), (0, 3))])


def test_blocks_in_absurdly_many_dimensions_are_refused_at_once():
    """Its 2^64 corners are never counted."""
    shape = (2,) * 64

    assert not tiles(shape, [Region((0,) * 64, (1,) * 64)])


@given(st.integers(1, 20), st.integers(1, 6), st.data())
def test_chunks_are_those_of_torch(length, count, data):
    """Also where there are more ranks than rows."""
    index = data.draw(st.integers(0, count - 1))
    expected = torch.arange(length).chunk(count)

    found = Region((0,), (length,)).chunk(0, index, count)

    mine = torch.arange(length)[found.within(Region.whole((length,)))]
    assert mine.tolist() == (expected[index].tolist() if index < len(expected) else [])


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_rows_of_a_rank_are_found_again_in_the_order_of_the_model(ranks, height, data):
    """Whatever part of the rows in the order of the ranks is held, its places in the model hold the same rows."""
    model = torch.arange(3 * ranks * height)
    begin = data.draw(st.integers(0, len(model) - 1))
    end = data.draw(st.integers(begin + 1, len(model)))
    held = rows_by_rank(model, ranks)[begin:end]

    places = rows_in_model_order(Region((begin,), (end - begin,)), len(model), ranks)

    assert torch.cat([model[place.within(Region.whole(model.shape))] for place in places]).tolist() == held.tolist()


@pytest.mark.parametrize(("other", "expected"), [(((2, 0), (2, 2)), ((2, 1), (1, 1))), (((3, 0), (1, 4)), None)])
def test_what_two_regions_share(other, expected):
    found = Region((1, 1), (2, 3)).common(Region(*other))

    assert found == (Region(*expected) if expected else None)
