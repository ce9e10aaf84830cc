# %% [markdown]
# # Is a quantized network's minimum flatter, and what would that even mean?
#
# "Flat minima generalise", "quantization finds flat minima", "quantization needs flat minima": papers
# say each of these, and measure it by the curvature of the loss, the eigenvalues of its Hessian. This
# notebook measures it too: first where the answer is known, then for real networks of 2 to 8 bits. On
# the way it meets four reasons why a number called "the largest eigenvalue" may mean nothing: rounding
# has no second derivative, BatchNorm has two modes, weights before it have no size, and a few hundred
# images are a sample.

# %%
import copy
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn

from qatviz import analysis, plots
from qatviz.analysis.hessian import Hessian
from qatviz.analysis.krylov import Krylov
from qatviz.analysis.moved import Moved
from qatviz.analysis.surface import Surface
from qatviz.calibration import calibrate
from qatviz.checkpoints import load_tree
from qatviz.datasets import load
from qatviz.exercises.curvature_and_flatness import (
    check_hutchinson,
    check_rescaled,
    check_surrogate,
    valley,
)
from qatviz.models import small_resnet
from qatviz.notebook import DATA, at_scale, show_source, versions
from qatviz.quantize import quantize
from qatviz.quantizers import EWGS, LSQ
from qatviz.plots.style import colours_of
from qatviz.records import Eigenvalues, Setting, SpectralDensity, Trace
from qatviz.runs import load_weights
from qatviz.studies import read_study, student
from qatviz.studies.statistics import paired_difference
from qatviz.widgets import spectrum_explorer

plots.use_style()
print(versions())

# %% [markdown]
# ## 1. Two weights: what λ says
#
# The Hessian $H = \nabla^2 L$ is the matrix of second derivatives of the loss, one row and one column
# for each weight. Along one of its eigenvectors $v$ (of length 1), with the eigenvalue $\lambda$ and the
# gradient $g$, the loss is close to the network
#
# $$L(w + \alpha v) \approx L(w) + \alpha\, g^\top v + \tfrac12 \lambda \alpha^2$$
#
# A large λ is a narrow valley. Here is a loss of two weights with λ₁ = 10 and λ₂ = 1, turned by 30°.
#
# > **Predict**: how far can the weights go along either eigenvector until the loss has risen by 0.05?

# %%
two, loss = valley((10.0, 1.0), 30, (0.35, 0.8))
toy = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False)).eval()
toy[1].weight.data = torch.tensor([[0.3, 0.9]])
quiet = {"progress": False}
found = analysis.eigenvalues(toy, two, 2, loss=loss, **quiet)
print("eigenvalues:", found.values.round(4), " residuals:", found.errors.round(6))
print("0.05 higher after:", np.sqrt(2 * 0.05 / found.values).round(3))

# %%
axes = [analysis.Direction(vector, f"weight {i}", "from where it is")
        for i, vector in enumerate(torch.eye(2), 1)]
options = {"points": at_scale(laptop=41, fast=21), "loss": loss, **quiet}
seen = analysis.plane(toy, two, axes, reach=0.6, **options)
figure, ax = plt.subplots(figsize=(5.4, 4.2))
plots.loss_contour(ax, seen, levels=15)
for value, vector in zip(found.values, found.vectors, strict=True):
    reach = vector * np.sqrt(2 * 0.05 / value)
    ax.plot(*np.stack([-reach, reach], axis=1), color="white", lw=2)
ax.set_aspect("equal")
figure.axes[-1].set_ylabel("loss (squared error)");

# %% [markdown]
# The white lines end where the eigenvalues say that the loss has risen by 0.05 (but for the slope: the
# weights are not quite at the minimum).
#
# How were they found? With 77,000 weights the matrix would have 6 billion entries, and it is never
# written down. All that is needed are products $Hv$, and each is the derivative of a derivative:
# $Hv = \nabla\,(g^\top v)$, which costs about as much as four gradients.

# %%
show_source(Hessian.__call__)

# %% [markdown]
# **Lanczos** (1950): multiply, make what comes out orthogonal to all vectors before it, and so on. After
# $m$ products the Hessian, as far as these vectors see it, is a small matrix, and its outermost
# eigenvalues are soon those of the large one. What is left over in the last step is an error bar that
# costs nothing: the **residual**.

# %%
show_source(Krylov.step)

# %% [markdown]
# ## 2. Rounded weights have no curvature
#
# Now the two weights are rounded to 2 bits: levels −1, −0.5, 0 and 0.5. The first weight, 0.3, goes to
# 0.5. The second, 0.9, lies beyond the last level, and is clipped to 0.5.
#
# > **Predict**: the loss, when the first weight moves; and its second derivative.

# %%
rounded = quantize(toy, partial(LSQ, 2, signed=True), None).eval()
rounded[1].weight_quantizer.step.data.fill_(0.5)
options = {"reach": 1.5, "points": at_scale(laptop=301, fast=51), "loss": loss, **quiet}
figure, ax = plt.subplots(figsize=(7, 3.4))
looks = {"float": ("w, not rounded", "--", "float"), "latent": ("w, rounded", "-", "quantized"),
         "dequantized": ("ŵ, moved off its level", "-", "levels")}
for space, (label, style, name) in looks.items():
    surface = Surface(rounded, space)
    cut = analysis.line(surface, two, axes[0], **options)
    ax.plot(cut.x + surface.point[0].item(), cut.loss, style, color=plots.COLOURS[name], label=label)
ax.set(xlabel="first weight", ylabel="loss (squared error)", xlim=(-1.2, 1.8), ylim=(0, 9))
ax.legend();

# %% [markdown]
# The loss of a rounded weight is a staircase. On a step its slope is 0 and its second derivative is 0;
# on an edge there is neither. **The Hessian of a quantized network is zero almost everywhere**, and so
# whatever a paper calls by that name is the Hessian of something else. There are three candidates:
#
# | space | what is differentiated | in qatviz |
# |---|---|---|
# | A | the loss at the rounded weights $\hat w$, as if they could move freely | `Surface(model, "dequantized")`, the default |
# | B | the loss of the latent weights, with rounding differentiated straight through: $M\,\nabla^2\ell(\hat w)\,M$, where $M$ is 0 for clipped weights and 1 for others | `Surface(model, "latent")` |
# | C | the loss of the latent weights, with no quantizer at all | `Surface(model, "float")` |
#
# A compares networks of any bits, float ones included. B is what training sees. C is a network that
# training never evaluated.
#
# > **Predict**: the 2×2 Hessian of the toy in each of the three.

# %% tags=["nbval-check-output"]
for space in ("dequantized", "latent", "float"):
    surface = Surface(rounded, space)
    product = Hessian(surface, analysis.subject.subject(toy, two), loss)
    matrix = torch.stack([product(unit) for unit in torch.eye(2)])
    print(f"{space:12} at {surface.point.numpy().round(2)}: loss {product.loss:.3f},",
          "H =", str(matrix.numpy().round(2)).replace("\n", ""))

# %% [markdown]
# A and C have the same Hessian here only because a quadratic has the same everywhere; their losses
# differ. B lost a row and a column with the clipped weight: it hears nothing any more, so it adds no
# curvature. "Flatter" in space B may just mean "more weights are clipped".
#
# ### Could one not simply measure?
#
# Without any theory: take the gradient a little to either side, $\frac{g(w+\varepsilon v) -
# g(w-\varepsilon v)}{2\varepsilon}$. This is done, and where nothing is rounded it works.

# %% tags=["nbval-check-output"]
point, v, rows = Surface(rounded, "latent").point, torch.tensor([1.0, 0.0]), {}
for space in ("latent", "float"):
    gradient = Moved(Surface(rounded, space), two, loss=loss).gradient
    for e in (0.001, 0.01, 0.05, 0.2, 1.0):
        ahead, behind = gradient(point + e * v)[1], gradient(point - e * v)[1]
        rows[space, e] = ((ahead - behind) / (2 * e))[0].item()
table = pd.Series(rows).unstack(0).rename_axis("ε").rename_axis(columns="second derivative for w₁")
table[["float", "latent"]].round(2)

# %% [markdown]
# Without rounding it is 7.75 for every ε, as it should be. Through rounding it is 0 (no threshold was
# crossed), and then anything: one threshold was, and its jump is divided by 2ε. There is no ε that is
# right. **Never take finite differences through a quantizer.**
#
# ## 3. A real network
#
# The float network of the earlier notebooks; its 2-bit students by LSQ and by LSQ with dampening
# (notebook 30; 6 epochs, first and last layer at 8 bits). Images are the first of the training set,
# as many of each class, without augmentation; the loss is cross-entropy, without weight decay; the
# weights of all convolutions and of the last layer move, BatchNorm, biases and steps do not.

# %%
data = load("fashion-mini")
images = data.train.subset(at_scale(laptop=200, fast=16))
model = small_resnet().eval()
model.load_state_dict(load_weights(DATA / "runs" / "float_small_resnet.safetensors"))
cells = {(e.label, e.seed): e for e in read_study(DATA.parent / "studies" / "seeing_laptop.toml")}
lsq, eight = student(cells["LSQ W2A2", 0]), student(cells["LSQ W8A8", 0])
top = partial(analysis.eigenvalues, k=1, tolerance=1e-3, **quiet)
print(top(lsq, images))

# %% [markdown]
# The record says what it is of: without space, images and loss the number means little. Now in all
# spaces, and, of the first, with the quantizers of the *activations* off:
#
# > **Predict**: which differ, and which are the same?

# %%
surfaces = {"A": Surface(lsq),
            "A, activations not rounded": Surface(lsq, activation_quantizers=False),
            "B": Surface(lsq, "latent"), "C": Surface(lsq, "float")}
records = {name: top(surface, images) for name, surface in surfaces.items()}
rows = {name: {"loss (nats)": r.setting.loss, "λ₁": r.values[0], "± residual": r.errors[0]}
        for name, r in records.items()}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# Without the quantizers of its activations, which also *clip*, this network is another one and a bad
# one; so is C. Their curvature describes nothing that we want to know. B is somewhat less than A. From
# here on, everything is in space A with activation quantizers on.
#
# Even that is a surrogate: the derivative goes straight through the rounding of activations, and it
# takes no notice of kinks (ReLU has some, too). How much is left out? Finite differences along the
# first eigenvector, divided by λ₁, should all be 1:

# %%
rows = {}
for name, surface in {"float": Surface(model), "LSQ W8A8, A": Surface(eight), **surfaces}.items():
    if name in ("float", "LSQ W8A8, A", "A", "B"):
        record, moved = top(surface, images), Moved(surface, images)
        v = torch.as_tensor(record.vectors[0])
        for e in (0.001, 0.01, 0.1, 1.0):
            ahead, behind = (moved.gradient(surface.point + s * e * v)[1] for s in (1, -1))
            rows[name, e] = ((ahead - behind) @ v).item() / (2 * e) / record.values[0]
pd.Series(rows).unstack().rename_axis("finite difference ÷ λ₁").rename_axis(columns="ε").round(2)

# %% [markdown]
# The float network: λ₁ is right, to within what the kinks of its ReLUs add at larger ε. With 8-bit
# activations it is right if ε is not too small. With 2-bit activations (A) a small move of the weights
# makes some activations jump, and what is measured may be far from λ₁; through rounded weights (B) it
# has nothing to do with it.
# So λ₁ of a 2-bit network is the curvature of a *smoothed* loss, not of the one you can walk on.
#
# ### Where there is no Hessian at all
#
# A Hessian is symmetric: it does not matter by which weight one differentiates first. The backward
# pass of **EWGS** (notebook 13) multiplies each gradient by $1 + \delta\,\mathrm{sign}(g)(x - \hat x)$.
# That is a rule, but not the derivative of any function.
#
# > **Predict**: what does its "Hessian" lack, and in which part of the network?

# %%
two_bits, eight_bits, ends = partial(EWGS, 2), partial(EWGS, 8), ("conv1", "fc")
ewgs = quantize(quantize(model, two_bits, two_bits, keep=ends), eight_bits, eight_bits, only=ends)
calibrate(ewgs, data.train.batches(64, limit=64))
ewgs.eval()
for surface in (Surface(ewgs), Surface(ewgs, activation_quantizers=False)):
    try:
        print(top(surface, images).values)
    except ValueError as error:
        print(error)

# %% [markdown]
# Other tools return a number here, and it would look like any other. Symmetry is cheap to test:
# $u^\top H v = v^\top H u$ for random $u$ and $v$, and every analysis here does so first.
#
# ## 4. Which BatchNorm?
#
# When a network is evaluated, BatchNorm uses the averages of training, when it is trained those of the
# batch. The convention is the former (in the latter, images are coupled, and the Hessian depends on
# how they were put together). Several public scripts forget to say which.
#
# > **Predict**: the same network, the same images: how much does λ₁ differ?

# %%
rows = {}
for label, network in {"float": model, "LSQ W2A2": lsq}.items():
    for mode in ("running", "batch"):
        record = top(Surface(network, batchnorm=mode), images)
        rows[label, mode] = {"loss (nats)": record.setting.loss, "λ₁": record.values[0]}
table = pd.DataFrame(rows).T.rename_axis(["network", "BatchNorm"])
ratios = table["λ₁"].unstack()
print((ratios["running"] / ratios["batch"]).rename("running ÷ batch").round(2).to_dict())
table.round(3)

# %% [markdown]
# ## 5. How large is a weight?
#
# A BatchNorm behind a convolution divides by the size of what arrives. So multiply a convolution by 3:
# the same function. (In evaluation its averages must be multiplied too; in training they follow by
# themselves.) But a step of length 1 is now a third of what it was:
#
# $$L(3w) = L(w) \quad\Rightarrow\quad \nabla^2 L(3w) = \tfrac19\,\nabla^2 L(w)$$
#
# > **Predict**: λ₁ after all convolutions were multiplied by 3; and after only one was.

# %%
kinds = nn.Conv2d, nn.BatchNorm2d
pairs = list(zip(*([n for n, m in model.named_modules() if isinstance(m, kind)] for kind in kinds)))
networks = {}
for name, chosen in {"float": [], "all × 3": pairs, "the first × 3": pairs[:1]}.items():
    networks[name] = copy.deepcopy(model)
    for conv, norm in chosen:
        norm = networks[name].get_submodule(norm)
        networks[name].get_submodule(conv).weight.data *= 3
        norm.running_mean *= 3
        norm.running_var *= 9

# %%
rows, photos = {}, images.normalise(images.images)
for name, network in networks.items():
    plain, relative = top(network, images), top(network, images, relative=True)
    with torch.no_grad():
        apart = (network(photos) - model(photos)).abs().max().item()
    rows[name] = {"logits differ by": f"{apart:.0e}", "λ₁": f"{plain.values[0]:.2f}",
                  "λ₁·‖w‖²": f"{plain.scale_free[0]:.0f}", "relative λ₁": f"{relative.values[0]:.2f}"}
pd.DataFrame(rows).T

# %% [markdown]
# (Not a ninth, with all of them: the last layer was left as it is.) One function, three values of λ₁. Anybody can make a network as "flat" as he likes, and so can a
# training that lets weights grow. λ₁·‖w‖² forgives one factor on all weights, but not on some. The
# **relative** λ₁ measures every direction in norms of the filter that it moves (λ₁ of $D H D$, with the
# norms in the diagonal $D$), and comes out the same. It is what can be compared between networks, and
# even this only as far as the function of a network does not depend on the size of its filters: the
# last layer, which has no BatchNorm behind it, is measured in the same way.
#
# ## 6. How many images?
#
# λ₁ of a sample is not λ₁ of the whole data. Here it is for disjoint sets of 50 and 200 images, and
# for one of 800. This, and what follows, takes minutes per network; a script measured it once
# (`make seeing`), and the file says on which machine.
#
# > **Predict**: is λ₁ of fewer images larger, smaller, or only more uncertain?

# %%
measured = load_tree(DATA / "runs" / "seeing_curvature.safetensors")
networks, machine = measured["networks"], measured["machine"]
print(f"{len(networks)} networks, {measured['images']} images; {machine['processor']}, "
      f"{machine['threads']} thread, torch {machine['torch']}")
sizes = {n["label"]: n["sizes"] for n in networks if "sizes" in n}
figure, ax = plt.subplots(figsize=(6, 3.2))
for (label, found), colour in zip(sizes.items(), colours_of(sizes).values(), strict=True):
    dots = np.array([(int(n), value) for n, values in found.items() for value in values])
    ax.plot(*dots.T, "o", mfc="white", color=colour)
    ax.plot(np.unique(dots[:, 0]), [np.mean(v) for v in found.values()], color=colour, label=label)
ax.set(xscale="log", xlabel="images", ylabel="λ₁ (nats per weight²)", ylim=(0, None))
ax.set_xticks(np.unique(dots[:, 0]), np.unique(dots[:, 0]).astype(int))
ax.minorticks_off()
ax.legend(loc="lower right");

# %% [markdown]
# Dots are sets of images. Few images spread widely: at 50, the two networks overlap. And on average λ₁
# of few images is *larger*: the sharpest direction is chosen on the sample that it is measured on, like
# the best epoch in notebook 14. (That holds always: λ₁ is convex in the matrix, so the mean λ₁ of samples
# is at least the λ₁ of their mean.) So compare networks on the same images only, and give their number.
#
# ## 7. Three networks
#
# > **Predict**: float, LSQ and dampened (2 bits, seed 0): whose eigenvalues are larger? And how are all
# > 77,000 of them spread?

# %%
kinds = {"largest": Eigenvalues, "smallest": Eigenvalues, "relative": Eigenvalues, "trace": Trace,
         "density": SpectralDensity}
kept = {name: {(n["label"], n["seed"]): kind(**(n[name] | {"setting": Setting(**n[name]["setting"])}))
               for n in networks if name in n} for name, kind in kinds.items()}
three = {label: {name: kept[name][label, 0] for name in kinds}
         for label in ("float", "LSQ W2A2", "dampened W2A2")}

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(3, 2))
plots.eigenvalues(left, {label: records["largest"] for label, records in three.items()})
plots.traces(right, {label: records["trace"] for label, records in three.items()});

# %%
figure, ax = plt.subplots(figsize=(9, 3.6))
plots.density(ax, {label: records["density"] for label, records in three.items()});

# %%
rows = {}
for label, records in three.items():
    outer, whole = records["largest"], records["trace"]
    rows[label] = {
        "loss (nats)": f"{outer.setting.loss:.3f}", "λ₁": f"{outer.values[0]:.1f}",
        "λ₁ ÷ λ₅": f"{outer.values[0] / outer.values[4]:.1f}",
        "smallest λ": f"{records['smallest'].values[0]:.2f}",
        "relative λ₁": f"{records['relative'].values[0]:.0f}",
        "trace": f"{whole.value:.0f} ± {whole.standard_error:.0f}",
        "mean λ": f"{whole.value / whole.setting.size:.4f}",
        "‖w‖²": f"{outer.setting.squared_norm:.0f}"}
pd.DataFrame(rows)

# %% [markdown]
# All three look alike: a dozen large eigenvalues or so, and the rest of 77,000 in a narrow bulk around
# zero, some of them below it. So none of the three is a minimum in the strict sense, and "the flatness of
# the minimum" is a phrase. (The density shows where eigenvalues are, not how many: three random vectors
# and 30 steps tell the outer ones apart, and each bell in the bulk stands for thousands. The trace is
# from 30 random vectors, with its standard error.)
#
# From this one seed, the float network has the largest λ₁. It also has the smallest loss, and weights
# of another size.
#
# ## 8. Bits, seeds, dampening
#
# The same for 2, 3, 4 and 8 bits, three seeds each. (There is one float network; all students start
# from it and train 6 epochs more. So the students with 8 bits are the fair comparison, not the float one.)
#
# > **Predict**: from 8 bits to 2: does λ₁ rise or fall? More than seeds differ?

# %%
arms = {2: "LSQ W2A2", 3: "LSQ W3A3", 4: "LSQ W4A4", 8: "LSQ W8A8", "float": "float"}
seeds = {label: [s for kept_label, s in kept["trace"] if kept_label == label]
         for label in [*arms.values(), "dampened W2A2"]}
units = {"largest": "λ₁ (nats per weight²)", "relative": "relative λ₁ (nats per filter norm²)",
         "trace": "trace (nats per weight²)"}
figure, panels = plt.subplots(1, 3, figsize=(13, 3.6))
for ax, (name, unit) in zip(panels, units.items(), strict=True):
    found = {b: [kept[name][arm, s] for s in seeds[arm]] for b, arm in arms.items()}
    plots.against_bits(ax, found, label="LSQ")
    damped = [kept[name]["dampened W2A2", s] for s in seeds["dampened W2A2"]]
    damped = [d.value if name == "trace" else d.values[0] for d in damped]
    look = {"mfc": "white", "color": plots.COLOURS["gradient"], "label": "dampened"}
    ax.plot([0.2] * len(damped), damped, "D", **look)
    ax.set(yscale="linear", ylim=(0, None), ylabel=unit)
    ax.legend(loc="lower right")

# %% [markdown]
# Circles are seeds, squares their means with one standard deviation (of the float network, which there
# is one of, the error of the measurement). And now the question itself, as a
# ratio, seed by seed, with its 95 % t-interval (of logarithms; three seeds, so $t = 4.30$):

# %%
values = {"loss": {key: r.setting.loss for key, r in kept["largest"].items()},
          "λ₁": {key: r.values[0] for key, r in kept["largest"].items()},
          "relative λ₁": {key: r.values[0] for key, r in kept["relative"].items()},
          "trace": {key: r.value for key, r in kept["trace"].items()}}

# %%
rows = {}
for ours, theirs in [*((arms[b], "LSQ W8A8") for b in (2, 3, 4)), ("dampened W2A2", "LSQ W2A2")]:
    for name, found in values.items():
        a, b = ({s: np.log(v) for (arm, s), v in found.items() if arm == label}
                for label in (ours, theirs))
        ratio = paired_difference(a, b)  # of logarithms
        low, middle, high = np.exp([ratio.low, ratio.mean, ratio.high])
        words = "lower" if high < 1 else "higher" if low > 1 else "not told apart"
        rows[f"{ours} ÷ {theirs}", name] = f"{middle:.2f} ({low:.2f} to {high:.2f}): {words}"
pd.Series(rows).unstack()[list(values)].loc[list(dict.fromkeys(k for k, _ in rows))]

# %% [markdown]
# Drag the bits, then change the seed and drag again. Does what you saw happen a second time? (In grey,
# the float network.)

# %%
by_seed = {f"LSQ, seed {s}": {b: kept["largest"][arm, s] for b, arm in arms.items() if b != "float"}
           for s in seeds["LSQ W2A2"]}
spectrum_explorer(by_seed, reference=kept["largest"]["float", 0])

# %% [markdown]
# **Is the minimum of a quantized network flatter?** For this network, 200 training images, six epochs
# and three seeds:
#
# - In the mean, λ₁, relative λ₁ and trace all fall with the bits; so the dots say "flatter".
# - The intervals do not say it. A single one of those of the curvature leaves 1 out, and barely; of
#   twelve intervals at 95 % one may well miss by chance. And as wide as they are, a network that is a
#   third flatter would not have been noticed: "not told apart" is not "equal".
# - What is told apart is the **loss**: at 2 and 3 bits it is higher. Curvature depends on the loss (that
#   of cross-entropy vanishes as the loss does), and on the size of the weights. "Flatter at a higher
#   loss" is another sentence than "flatter", and an experiment at equal loss we do not have.
# - **Dampening** is not told apart from LSQ in any of the four.
#
# And had it come out clearly? "Flat" would be a *description* of where training ended. That a network
# generalises *because* it is flat does not follow: over many networks sharpness goes along with
# generalisation only weakly, and sometimes the other way (Andriushchenko et al. 2023, arXiv 2302.07011).

# %% [markdown]
# ## 9. Another tool
#
# PyHessian is the package that papers cite. It finds eigenvalues by power iteration (multiply again and
# again; then remove what was found, and start over), and stops where the value changes little.
#
# > **Predict**: will the eigenvalues agree? Which method needs more products?

# %%
few, rows = images.subset(at_scale(laptop=50, fast=16)), {}
for backend in ("qatviz", "pyhessian"):
    record = analysis.eigenvalues(lsq, few, 3, tolerance=1e-3, backend=backend, **quiet)
    rows[backend] = {"λ": record.values.round(2), "‖Hv − λv‖": record.errors.round(2),
                     "products": record.products}
pd.DataFrame(rows).T

# %%
rows = {}
for backend in ("qatviz", "pyhessian"):
    record = analysis.trace(lsq, few, products=100, backend=backend, **quiet)
    rows[backend] = {"trace": record.value, "standard error": record.standard_error,
                     "products": record.products}
pd.DataFrame(rows).T.round(1)

# %% [markdown]
# The same eigenvalues to within a few per cent, but perhaps not in the same order. Lanczos remembers all
# vectors, so it needs fewer products; power iteration forgets, and where two eigenvalues are close it
# stops between them: its *values* are good long before its *vectors* are, and the residual (which we
# measured; it does not) tells. The traces agree within their errors. PyHessian's stops when the
# running mean happens to stand still: an accident, after a number of draws that nobody chose.
#
# ## 10. Sharpness: a step instead of a derivative
#
# λ₁ speaks of infinitely small steps. **Sharpness** takes real ones: the largest rise of the loss in a
# box (Keskar et al. 2017) or ball (SAM, Foret et al. 2021) around the weights, or the mean rise under
# noise; the *adaptive* ones in proportion to each weight (ASAM, Kwon et al. 2021). A maximum is
# searched for, so it is a lower bound.
#
# > **Predict**: the order of the three networks. In all measures the same?

# %%
damp = student(cells["dampened W2A2", 0])
few, sharp = images.subset(at_scale(laptop=100, fast=16)), {}
for label, network in {"float": model, "LSQ W2A2": lsq, "dampened W2A2": damp}.items():
    draws = at_scale(laptop=8, fast=2)
    sharp[label] = analysis.sharpness_measures(network, few, draws=draws, **quiet)

# %%
names = "box 0.001", "ball", "adaptive ball", "adaptive noise"
figure, panels = plt.subplots(2, 2, figsize=(11, 5))
shown = {label: {name: found[name] for name in names} for label, found in sharp.items()}
plots.sharpness_panels(panels, shown);

# %% [markdown]
# And the ball for all seeds, in nats:

# %%
rows = {}
for label in ("LSQ W8A8", "LSQ W2A2", "dampened W2A2"):
    for seed in (0, 1, 2):
        network, steps = student(cells[label, seed]), at_scale(laptop=20, fast=2)
        ball = analysis.worst_sharpness(network, few, steps=steps, **quiet)
        rows[label, f"seed {seed}"] = ball.value
pd.Series(rows).unstack().round(3).rename_axis(f"rise in a {ball.region} (nats)")

# %% [markdown]
# One seed in one arm stands out by far, and it is the one of the figure above. Near this network there
# is a cliff: an activation threshold that a small step crosses for many images at once. A maximum over
# steps finds it, if it happens to walk there; λ₁ of the same network, from derivatives that pass
# straight through the rounding, did not see it. The other seeds are no higher than those of 8 bits. Whoever had
# trained only seed 0 would have learnt that 2 bits are sharp, and that dampening makes them flat.
#
# For small noise the mean rise should be $\tfrac12 \sigma^2\, \mathrm{tr}(H)$, so the trace and the
# measurement can be held against each other:

# %%
rows, draws = {}, at_scale(laptop=20, fast=2)
for (label, found), network in zip(sharp.items(), (model, lsq, damp), strict=True):
    whole = analysis.trace(network, few, products=draws, **quiet)
    expected = found["noise"].radius ** 2 / 2 * whole.value
    rows[label] = {"½σ²·trace": expected, "measured": found["noise"].value,
                   "± standard error": found["noise"].standard_error}
pd.DataFrame(rows).T.round(4)

# %% [markdown]
# In float the two are of one size: what is left is ReLU's kinks, and noise that is not small. At 2 bits
# the ratio is anything from below one to three, because of jumps again: the derivative describes a
# smoothed loss, the noise the real one.
#
# ## What to remember
#
# - The Hessian of a rounded network is zero. What is reported is that of a surrogate; ask of which one:
#   at $\hat w$ (A), straight through (B, where clipped weights drop out), or without quantizers (C).
# - With 2-bit activations even the surrogate at $\hat w$ is not what finite steps feel: there are cliffs.
#   Report a sharpness with real steps beside λ₁.
# - Beside every λ₁ belong: the space, BatchNorm's mode, the images, the loss, ‖w‖ or the relative λ₁, the
#   residual, and the seeds. Each of them moves it by more than what is claimed between methods.
# - EWGS has no Hessian. A tool that returns one anyway is no proof.
# - Here, fewer bits look flatter in the mean, and three seeds cannot tell. Flatness is a description.
#
# Notebook 32 draws what λ₁ summarises: the loss around these networks.
#
# ## Exercises
#
# **1.** Three weights, 0.3, 0.9 and −0.2, are rounded with 2 bits and a step of 0.5 (levels −1, −0.5, 0,
# 0.5). At the rounded weights
#
# $$\nabla^2 \ell(\hat w) = \begin{pmatrix} 4 & 1 & 2 \\ 1 & 3 & 1 \\ 2 & 1 & 4 \end{pmatrix}$$
#
# What is the largest eigenvalue of the straight-through surrogate over the latent weights (space B)?

# %% tags=["exercise"]
largest = None

# %%
check_surrogate(largest)

# %% [markdown]
# **2.** Only the weights of `layer3.0.conv1` move. Then they are multiplied by 3, and the averages of the
# BatchNorm behind them with them. What is λ₁ now?

# %%
before = top(Surface(model, layers=["layer3.0.conv1"]), images).values[0]
print(f"λ₁ before: {before:.4g}")

# %% tags=["exercise"]
after = None

# %%
check_rescaled(after, before)

# %% [markdown]
# **3.** Write Hutchinson's estimator of a trace: `draws` vectors of random signs from the torch
# `generator`, each of `size` numbers; the mean of $z^\top H z$, and its standard error. `product(z)` is $Hz$.

# %% tags=["exercise"]
def hutchinson(product, size, draws, generator):
    ...

# %%
check_hutchinson(hutchinson)

# %% [markdown]
# Solutions are in `931_solutions_curvature_and_flatness.ipynb`.
