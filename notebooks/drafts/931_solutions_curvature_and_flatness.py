# %% [markdown]
# # Solutions: is a quantized network's minimum flatter?
#
# The exercises of `31_curvature_and_flatness`, each with its answer and the reason.

# %%
import numpy as np
import torch

from qatviz import analysis
from qatviz.analysis.surface import Surface
from qatviz.datasets import load
from qatviz.exercises.curvature_and_flatness import (
    check_hutchinson,
    check_rescaled,
    check_surrogate,
)
from qatviz.models import small_resnet
from qatviz.notebook import DATA, at_scale, versions
from qatviz.runs import load_weights

print(versions())

# %% [markdown]
# **1.** Three weights, 0.3, 0.9 and −0.2, are rounded with 2 bits and a step of 0.5. What is the largest
# eigenvalue of the straight-through surrogate over the latent weights?
#
# The levels are −1, −0.5, 0 and 0.5, so the second weight is clipped, and $M = \mathrm{diag}(1, 0, 1)$.
# $M \nabla^2\ell\, M$ has a row and a column of zeros. What is left, 4 and 4 on the diagonal and 2 beside
# it, has the eigenvalues 4 ± 2. (The full matrix has 6.56: clipping alone made it "flatter".)

# %% tags=["exercise"]
M = np.diag([1, 0, 1])
largest = np.linalg.eigvalsh(M @ np.array([[4, 1, 2], [1, 3, 1], [2, 1, 4]]) @ M).max()

# %% tags=["nbval-check-output"]
check_surrogate(largest)

# %% [markdown]
# **2.** Only the weights of `layer3.0.conv1` move. Then they are multiplied by 3. What is λ₁ now?
#
# $L(3w) = L(w)$ for all $w$. Differentiated once: $3\,\nabla L(3w) = \nabla L(w)$; twice: $9\,\nabla^2
# L(3w) = \nabla^2 L(w)$. A ninth of what it was.

# %%
model = small_resnet().eval()
model.load_state_dict(load_weights(DATA / "runs" / "float_small_resnet.safetensors"))
images = load("fashion-mini").train.subset(at_scale(laptop=200, fast=16))
surface = Surface(model, layers=["layer3.0.conv1"])
record = analysis.eigenvalues(surface, images, 1, tolerance=1e-3, progress=False)
before = record.values[0]
print(f"λ₁ before: {before:.4g}")

# %% tags=["exercise"]
after = before / 9

# %%
check_rescaled(after, before)

# %% [markdown]
# **3.** Write Hutchinson's estimator of a trace.
#
# $\mathbb E[z^\top H z] = \sum_{ij} H_{ij}\,\mathbb E[z_i z_j] = \sum_i H_{ii}$, because signs are
# independent and $z_i^2 = 1$. Since $z_i^2$ is *exactly* 1, the diagonal adds no noise, as it would with
# normal numbers.

# %% tags=["exercise"]
def hutchinson(product, size, draws, generator):
    found = []
    for _ in range(draws):
        z = torch.randint(2, (size,), generator=generator).double() * 2 - 1
        found.append((z @ product(z)).item())
    return np.mean(found), np.std(found, ddof=1) / draws**0.5

# %%
check_hutchinson(hutchinson)
