"""What holds of every analysis: it leaves the model and the global generators as they were."""

from contextlib import contextmanager

import numpy as np
import torch

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _plain(value):
    # Lists are not: a network made for a test may note in one what it saw.
    if isinstance(value, tuple):
        return all(_plain(v) for v in value)
    words = str | int | float | torch.dtype | torch.device
    return value is None or isinstance(value, words)


def generators():
    """The states of torch's and NumPy's; not Python's, which beartype draws from in these tests."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_initialized()
        else [],
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002
    }


def _seen(model):
    """Everything of a model that an analysis might forget to put back."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    modules = dict(model.named_modules())
    return {
        "values": {k: v.detach().clone() for k, v in tensors.items()},
        "identities": {k: (id(v), v.data_ptr(), v.stride()) for k, v in tensors.items()},
        "gradients": {
            k: None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()
        },
        "requires_grad": {k: v.requires_grad for k, v in tensors.items()},
        "modes": {k: m.training for k, m in modules.items()},
        "classes": {k: type(m) for k, m in modules.items()},
        "hooks": {k: [len(getattr(m, name)) for name in HOOKS] for k, m in modules.items()},
        "attributes": {
            k: {name: repr(v) if _plain(v) else "" for name, v in vars(m).items()}
            for k, m in modules.items()
        },
        "generators": generators(),
    }


def _same(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a.nan_to_num(), b.nan_to_num())
    return a == b


@contextmanager
def unchanged(model):
    """Compare a model before and after, also where an exception passes through."""
    before = _seen(model)
    try:
        yield
    finally:
        after = _seen(model)
        for what, old in before.items():
            assert old.keys() == after[what].keys(), what
            different = [k for k in old if not _same(old[k], after[what][k])]
            assert not different, (what, different)
