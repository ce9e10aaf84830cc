import json
import math

import numpy as np
import pytest
import torch

from qatviz.checkpoints import load_tree, read_plain, save_tree

SHARED = torch.arange(6.0)
TREE = {
    "epoch": 3,
    "loss": 0.1 + 0.2,
    "nothing": None,
    "flag": True,
    "text": "ünïcode",
    "numbers": [1, 2.5, -math.inf, 1e-300],
    "betas": (0.9, (0.999,)),
    "state": {0: {"momentum": torch.randn(3, 2)}, 17: {"step": torch.tensor(4.0)}},
    "shared": [SHARED, SHARED, SHARED[2:]],
    "transposed": torch.arange(6).view(2, 3).t(),
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "empty": torch.zeros(0, 3),
    "mask": torch.tensor([True, False]),
    "half": torch.randn(3).bfloat16(),
    "bytes": torch.get_rng_state(),
    "array": np.array([[1.5, np.nan]]),
    "0-d": np.array(2.5),
    "tensor": {"tensor": 1},
    "pairs": {},
    "a/b": {"c": torch.tensor(1)},
    "a": {"b/c": torch.tensor(2)},
}


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    else:
        assert a == b


def test_what_is_saved_is_loaded(tmp_path):
    save_tree(TREE, tmp_path / "deep" / "tree.safetensors")
    assert_same(load_tree(tmp_path / "deep" / "tree.safetensors"), TREE)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["tree.safetensors"]


def test_numpy_s_own_numbers_become_python_s(tmp_path):
    save_tree([np.bool_(True), np.float32(0.1), np.int64(3)], tmp_path / "tree")
    assert_same(load_tree(tmp_path / "tree"), [True, float(np.float32(0.1)), 3])


@pytest.mark.parametrize("tree", [3, None, [], {}, (), "x", torch.tensor(2)])
def test_any_tree_will_do(tree, tmp_path):
    save_tree(tree, tmp_path / "tree")
    assert_same(load_tree(tmp_path / "tree"), tree)


def test_nan_survives(tmp_path):
    save_tree([math.nan], tmp_path / "tree")
    assert math.isnan(load_tree(tmp_path / "tree")[0])


def test_an_optimizer_s_state_comes_back(tmp_path):
    weight = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.Adam([weight], betas=(0.8, 0.9))
    weight.sum().backward()
    optimizer.step()
    save_tree(optimizer.state_dict(), tmp_path / "tree")
    assert_same(load_tree(tmp_path / "tree"), optimizer.state_dict())


def test_plain_reads_everything_but_tensors(tmp_path):
    save_tree(TREE, tmp_path / "tree")
    plain = read_plain(tmp_path / "tree")
    assert plain["epoch"] == 3
    assert plain["betas"] == (0.9, (0.999,))
    assert plain["state"] == {0: {"momentum": None}, 17: {"step": None}}
    assert plain["array"] is None


def test_the_file_is_safetensors_with_json_in_its_header(tmp_path):
    save_tree({"w": torch.ones(2), "n": 1}, tmp_path / "tree")
    content = (tmp_path / "tree").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert json.loads(header["__metadata__"]["qatviz"])["pairs"][1] == ["n", 1]
    assert b"pickle" not in content


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_part_of_a_file_is_refused(share, tmp_path):
    save_tree(TREE, tmp_path / "tree")
    content = (tmp_path / "tree").read_bytes()
    (tmp_path / "tree").write_bytes(content[: int(share * len(content))])
    for read in (load_tree, read_plain):
        with pytest.raises(ValueError, match="is not a whole checkpoint"):
            read(tmp_path / "tree")


def test_another_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "weights")
    with pytest.raises(ValueError, match=r"not a whole checkpoint: KeyError\('qatviz'\)"):
        load_tree(tmp_path / "weights")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [1, {2}]}, "cannot save a set (at /a/1)"),
        (object(), "cannot save a object (at the top)"),
        ({"f": len}, "cannot save a builtin_function_or_method (at /f)"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(tree, message, tmp_path):
    (tmp_path / "tree").write_bytes(b"before")
    with pytest.raises(TypeError) as raised:
        save_tree(tree, tmp_path / "tree")
    assert str(raised.value) == message
    assert (tmp_path / "tree").read_bytes() == b"before"


def test_keys_that_are_neither_text_nor_whole_numbers_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"key \(1, 2\) \(at /a\)"):
        save_tree({"a": {(1, 2): 3}}, tmp_path / "tree")
