# %% [markdown]
# # What does a staircase look like from above?
#
# You have seen the pictures: a bowl, or a range of mountains, in shades of green and yellow, "the loss
# landscape". The real one has as many dimensions as the network has weights, 77,000 here. A picture is
# a slice through it, two directions thin, and most of what it shows was decided by whoever chose the
# two directions and their lengths. This notebook makes the slices: first of two weights, where the
# picture is the whole truth, then of real networks, where it is not. And rounded weights pose a
# question of their own: a staircase is flat on every step. What is there to see?

# %%
import copy
import tempfile
import warnings
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn

from qatviz import analysis, plots
from qatviz.analysis.hessian import Hessian
from qatviz.analysis.surface import Surface
from qatviz.datasets import load
from qatviz.exercises.curvature_and_flatness import valley
from qatviz.exercises.loss_landscape import (
    check_barrier,
    check_levels,
    check_normalised,
    interrupted_after,
)
from qatviz.models import small_resnet
from qatviz.notebook import DATA, at_scale, show_source, versions
from qatviz.plots.style import colours_of
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from qatviz.runs import load_weights
from qatviz.studies import read_study, student
from qatviz.widgets import landscape_explorer

plots.use_style()
print(versions())

# %% [markdown]
# The networks: the float one of the earlier notebooks, and what the study of notebook 30 made of it,
# trained for 6 epochs at 2 bits (first and last layer at 8): with LSQ, and with dampening, both for
# several seeds. The images are the first of the training set, without augmentation, in equal
# shares of all classes.

# %%
data = load("fashion-mini")
images = data.train.subset(at_scale(laptop=200, fast=20))
model = small_resnet().eval()
model.load_state_dict(load_weights(DATA / "runs" / "float_small_resnet.safetensors"))

experiments = read_study(DATA.parent / "studies" / "seeing_laptop.toml")
cells = {(e.label, e.seed): e for e in experiments}
lsq, other, dampened = (
    student(cells[key]) for key in [("LSQ W2A2", 0), ("LSQ W2A2", 1), ("dampened W2A2", 0)]
)
quiet = {"progress": False}

# %% [markdown]
# ## 1. Two weights: the whole truth
#
# A linear layer with two weights, and a loss that is a quadratic: curvature 10 in one direction, 1
# across it, the minimum at (0.35, 0.2). Then the weights are rounded to 2 bits, with a step of 0.5: the
# levels are −1, −0.5, 0 and 0.5.
#
# > **Predict**: sketch the contours of the loss over the plane of the two weights: without rounding,
# > and with it. How many different heights are there in the second picture?

# %%
two, loss = valley((10.0, 1.0), 30, (0.35, 0.2))
toy = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False)).eval()
toy[1].weight.data = torch.tensor([[0.3, 0.3]])
rounded = quantize(toy, partial(LSQ, 2, signed=True), None).eval()
rounded[1].weight_quantizer.step.data.fill_(0.5)

axes = [analysis.Direction(vector, f"weight {i}", "steps") for i, vector in
        enumerate(torch.tensor([[0.5, 0.0], [0.0, 0.5]]), 1)]
options = {"reach": 4, "points": at_scale(laptop=81, fast=21), "loss": loss, **quiet}
planes = {"not rounded again": analysis.plane(Surface(rounded, "dequantized"), two, axes, **options),
          "rounded": analysis.plane(Surface(rounded, "latent"), two, axes, **options)}

# %%
figure, panels = plt.subplots(1, 2, figsize=(10, 4.2))
plots.loss_contours(panels, planes, log=True, limits=(0.02, 40))
figure.axes[-1].set_ylabel("loss (squared error)");

# %% [markdown]
# Both planes have the network in the middle; on the left that are its *rounded* weights, on the right
# the *latent* ones, which is why the pictures are shifted against each other. Beyond the last level,
# everything is clipped, and the outer terraces have no end.

# %% tags=["nbval-check-output"]
heights = np.unique(planes["rounded"].loss.round(5))
print(f"different losses: {len(heights)}, the lowest {heights[0]:.3f}")

# %%
figure = plt.figure(figsize=(10, 4))
for place, (label, plane) in enumerate(planes.items(), 1):
    ax = figure.add_subplot(1, 2, place, projection="3d")
    plots.loss_relief(ax, plane, limits=(0, 20)).set(title=label, zlabel="loss")
    ax.collections[0].set_antialiased(False)

# %% [markdown]
# So there are two surfaces, and a picture must say which it shows:
#
# - **latent**: the weights that training moves; they are rounded at every point. This is the function
#   that the network computes. Flat on each terrace, no slope, nothing that says where down is.
# - **dequantized**: the rounded weights $\hat w$ themselves are moved, off their levels and without
#   being rounded again. Smooth, and comparable with a float network; but except at single points it is
#   a function that the network never computes.
#
# The two agree where the weights stand now. How the loss *between* the levels looks is what the
# straight-through gradient (notebook 10) feels on its way from one terrace to another.
#
# ## 2. One weight of 77,000
#
# In the trained 2-bit network, one weight of `layer2.0.conv1` is moved from one end of its grid to the
# other, and all others stay.
#
# > **Predict**: how many steps has the loss? And how high are they, when the loss itself is about a
# > quarter of a nat?

# %%
spaces = {name: Surface(lsq, name) for name in ("dequantized", "latent")}
chosen = torch.zeros(spaces["latent"].size)
step = lsq.get_submodule("layer2.0.conv1").weight_quantizer.step.item()
spaces["latent"].split(chosen)["layer2.0.conv1.weight"].view(-1)[0] = step
one = analysis.Direction(chosen, "the first weight of layer2.0.conv1", "steps")
options = {"reach": 3, "points": at_scale(laptop=61, fast=13), **quiet}
names = {"dequantized": "ŵ moves", "latent": "w moves"}
lines = {names[n]: analysis.line(space, images, one, **options) for n, space in spaces.items()}

# %%
figure, ax = plt.subplots(figsize=(6.5, 3.4))
plots.loss_line(ax, lines).legend(loc="lower left", bbox_to_anchor=(0, 1))
heights = np.unique(lines["w moves"].loss)
print(f"{len(heights)} heights, {1e3 * np.ptp(heights):.2g} thousandths of a nat from the lowest "
      f"to the highest; the loss is {lines['w moves'].centre:.3f}")

# %% [markdown]
# A staircase with at most three steps, in thousandths of a nat. Look closely at the other line, too:
# **it is not quite smooth either**. The weight moves freely, but the *inputs* of the layers behind it
# are still rounded, and each time one of them passes a threshold, the loss jumps. Only with the
# activation quantizers off would it be smooth.
#
# Now all weights at once, in a random direction. (What 1 on this axis means is the next section.)
#
# > **Predict**: the latent line. A staircase with larger steps, with more steps, or none to be seen?

# %%
along = analysis.random_directions(spaces["latent"], 1)[0]
reaches = {"from afar": 0.5, "from nearby": 0.01}
figure, panels = plt.subplots(1, 2, figsize=(11, 3.8))
for ax, (words, reach) in zip(panels, reaches.items(), strict=True):
    options = {"reach": reach, "points": at_scale(laptop=41, fast=9), **quiet}
    lines = {names[n]: analysis.line(space, images, along, **options) for n, space in spaces.items()}
    plots.loss_line(ax, lines).legend(loc="lower left", bbox_to_anchor=(0, 1), title=words)
    ax.locator_params(nbins=5)

# %% [markdown]
# With 77,000 weights, each of which crosses its thresholds at a place of its own, the steps of the
# latent line lie so close together that from afar it looks like a curve, with some noise. From nearby
# every move is a jump.
#
# And the other line jumps too, where we called it smooth: by the *activations*. To the right, at a
# thousandth of the length of the weights, the loss doubles. Fashion images have a black background, the
# same everywhere; where a sum over it lies close to a threshold, a tiny step carries the whole
# background of all images over it at once. (That is our guess at the reason; the jump is measured.)
#
# ## 3. How long is 1?
#
# A random direction is 77,000 normal numbers. But how long should it be, compared with the weights?
# Before a BatchNorm the size of the weights means nothing: here is the same float network once more,
# all its convolutions multiplied by 3. It computes the same.

# %%
tripled = copy.deepcopy(model)
for module in tripled.modules():
    if isinstance(module, nn.Conv2d):
        module.weight.data *= 3
    if isinstance(module, nn.BatchNorm2d):  # what it remembers of its inputs
        module.running_mean *= 3
        module.running_var *= 9
photos = images.normalise(images.images)
with torch.no_grad():
    apart = (model(photos) - tripled(photos)).abs().max().item()
print(f"logits differ by at most {apart:.1g}")

# %% [markdown]
# Hence **filter normalisation** (Li et al. 2018, arXiv 1712.09913, section 4): each filter of the
# direction gets the norm of the same filter of the weights, and biases and BatchNorm stay,
#
# $$d_f \leftarrow d_f \cdot \frac{\lVert w_f \rVert}{\lVert d_f \rVert}$$

# %%
show_source(analysis.landscape._draw)

# %% [markdown]
# > **Predict**: two lines through either network, with the same random numbers. Left: as they were
# > drawn. Right: normalised. Which network looks flatter?

# %%
networks, lines = {"float": model, "the same, weights × 3": tripled}, {}
for kind, reach in {"none": 0.05, "filter": 1.0}.items():
    for label, network in networks.items():
        (along,) = analysis.random_directions(network, 1, normalise=kind)
        options = {"reach": reach, "points": at_scale(laptop=21, fast=9), **quiet}
        lines[kind, label] = analysis.line(network, images, along, **options)

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 3.6))
for ax, kind in zip(panels, ("none", "filter"), strict=True):
    plots.loss_line(ax, {label: line for (k, label), line in lines.items() if k == kind}, log=True)
    ax.set_title(f'normalise="{kind}"')
pair = lines["filter", "float"].loss, lines["filter", "the same, weights × 3"].loss
print(f"normalised, the two differ by at most {np.abs(pair[0] / pair[1] - 1).max():.1%}")

# %% [markdown]
# Without normalisation the network with the larger weights looks flat, and it is the same network.
# A training that lets weights grow (less weight decay, a longer schedule, other quantizers) would pass
# for "flat minima". With normalisation the lines lie on each other. (The script of the paper's authors
# does *not* normalise unless it is told to.)
#
# ## 4. Three networks on one axis
#
# > **Predict**: float, LSQ and dampened, along the same random numbers, each with its own filter
# > norms. Which valley is the narrowest? (And how sure would you be, from one direction?)

# %%
three = {"float": model, "LSQ W2A2": lsq, "dampened W2A2": dampened}
options = {"reach": 0.5, "points": at_scale(laptop=31, fast=9), **quiet}
lines = {seed: {label: analysis.line(network, images, seed=seed, **options)
                for label, network in three.items()} for seed in (0, 1)}

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
for ax, (seed, found) in zip(panels, lines.items(), strict=True):
    plots.loss_line(ax, found, log=True)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), title=f"direction {seed}")

# %%
at = [-0.25, 0.25]
rows = {(label, seed): [np.interp(x, line.x, line.loss) - line.centre for x in at]
        for seed, found in lines.items() for label, line in found.items()}
table = pd.DataFrame(rows, index=[f"rise at {x} (nats)" for x in at]).T
table.sort_index().rename_axis(["network", "direction"]).round(2)

# %% [markdown]
# Compare the rows of one network with each other before you compare networks: one direction, and even
# one side of it, is one draw of a random number. What can be seen is that the two quantized networks
# are rough, and the float one is not.
#
# ## 5. From above
#
# Two directions make a plane. It costs as many passes over the images as it has points, so it must be
# possible to stop, and to go on. Here somebody presses Ctrl+C (a copy of the network does it, after
# some passes); the points are taken from the middle outward, and kept in a file:

# %%
cache = Path(tempfile.mkdtemp()) / "plane.npz"
options = {"points": 5, "samples": 20, "cache": cache, **quiet}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    part = analysis.plane(interrupted_after(lsq, 15), images, **options)
print(said[0].message, "– complete:", part.complete)

# %%
whole = analysis.plane(lsq, images, **options)
print("complete:", whole.complete)
same = np.array_equal(part.loss[part.computed], whole.loss[part.computed])
print("the points that were there are the same, to the bit:", same)
try:
    analysis.plane(dampened, images, **options)
except ValueError as error:
    print(str(error).replace(str(cache), "the file"))

# %% [markdown]
# A file that belongs to another network is refused. Now the planes of the three, the same random
# numbers again, on one scale of colours:
#
# > **Predict**: if the titles were missing, could you tell which is which?

# %%
options = {"points": at_scale(laptop=25, fast=5), "samples": at_scale(laptop=100, fast=10), **quiet}
planes = {label: analysis.plane(network, images, **options) for label, network in three.items()}

# %%
figure, panels = plt.subplots(1, 3, figsize=(12, 3.9))
plots.loss_contours(panels, planes, log=True);

# %%
explorer = landscape_explorer(planes)
explorer

# %% [markdown]
# Drag the cut, and change the network. The float network is the smooth one; towards the corners it is
# also the highest, because nothing clips its activations, and 2-bit activations can only do so much
# harm. Which of the other two was dampened the picture does not say. (Nor would it be a result if it did:
# one seed, two directions of 77,000, 100 images.)
#
# ## 6. Not any two directions
#
# Random directions are what nobody chose. The eigenvectors of the Hessian (notebook 31) are the
# opposite: the direction in which the loss bends most. Here 1 on an axis is $1/\sqrt\lambda$, so that
# near the network
#
# $$L(x, y) \approx L_0 + \text{slope} + \tfrac12 x^2 + \tfrac12 y^2$$
#
# and the contours of a quadratic would be circles.
#
# > **Predict**: how far does the quadratic hold: for a rise of 0.01 nats, of 0.5, for ever? And with
# 2 bits?

# %%
trio = {"float": model, "LSQ W2A2, seed 0": lsq, "LSQ W2A2, seed 1": other}
tops, bent = {}, {}
options = {"points": at_scale(laptop=41, fast=13), "reach": 2.0, **quiet}
for label, network in trio.items():
    tops[label] = analysis.eigenvalues(network, images, 2, tolerance=1e-3, **quiet)
    steepest = analysis.eigenvector_directions(network, tops[label], 1)[0]
    bent[label] = analysis.line(network, images, steepest, **options)
    print(tops[label])

# %%
figure, ax = plt.subplots(figsize=(7, 3.6))
for label, line in bent.items():
    rise = (line.loss + line.loss[::-1]) / 2 - line.centre  # of both sides: the slope cancels
    right = line.x > 0
    ax.loglog(line.x[right], rise[right], "o-", ms=3, color=colours_of(bent)[label], label=label)
ax.loglog(line.x[right], line.x[right] ** 2 / 2, "--", color="0.3", label="½λα²")
ax.set(xlabel="α (1/√λ)", ylabel="rise of the loss (nats)")
ax.legend();

# %%
rows = {}
for label, line in bent.items():
    rise, right = (line.loss + line.loss[::-1]) / 2 - line.centre, line.x > 0
    off = np.abs(rise - line.x**2 / 2) / (line.centre + line.x**2 / 2)
    good = line.x[right][np.logical_and.accumulate(off[right] < 0.05)]
    far = max(good, default=0)
    share = far * line.length / line.conditions.norm
    rows[label] = {"trusted to α (1/√λ)": far, "in % of ‖w‖": 100 * share}
pd.DataFrame(rows).T.round(2)

# %%
options = {"points": at_scale(laptop=13, fast=5), "reach": 2.0, **quiet}
figure, panels = plt.subplots(1, 3, figsize=(14, 3.8))
for ax, (label, network) in zip(panels, trio.items(), strict=True):
    both = analysis.eigenvector_directions(network, tops[label])
    steep = analysis.plane(network, images, both, **options)
    plots.loss_contour(ax, steep, log=True, limits=(0.19, 20)).set_title(label)

# %% [markdown]
# The **trust region** is where ½λα² is right (here: to within 5 % of the loss). In float the contours
# begin as circles, and λ tells the truth for a step of less than a hundredth of the weights; networks
# are much farther apart from each other than that. At 2 bits there is no such region at the distances
# drawn here: the Hessian was taken *straight through* the rounding of activations, and the loss goes by
# its jumps. In one of the two seeds there is a cliff right beside the network, of which its eigenvalues
# know nothing (notebook 31 met it as sharpness).
#
# ## 7. From one network to another
#
# A straight line in the space of all numbers (BatchNorm and biases included), from the float network
# to what LSQ made of it, and from one seed to another. The **barrier** is how far the loss rises above
# the chord between its two ends:
#
# $$B = \max_{0 \le t \le 1}\; L(w_t) - (1-t)\,L(w_0) - t\,L(w_1), \qquad w_t = (1-t)\,w_0 + t\,w_1$$
#
# > **Predict**: all these networks have the same float network as their start. Is there a barrier?
# > And BatchNorm's statistics, interpolated like everything else: are they right half way?

# %%
pairs = {
    "float to LSQ": (Surface(model), Surface(lsq, activation_quantizers=False)),
    "LSQ, seed 0 to 1, ŵ": (Surface(lsq), Surface(other)),
    "LSQ, seed 0 to 1, latent": (Surface(lsq, "latent"), Surface(other, "latent")),
}
batches, ways = at_scale(laptop=5, fast=1), {}
for label, ends in pairs.items():
    for words, n in {"as they are": 0, "re-estimated": batches}.items():
        options = {"reestimate": n, "training": data.train, "points": at_scale(laptop=17, fast=3), "beyond": 0}
        ways[label, words] = analysis.between(*ends, images, **options, **quiet)

# %%
figure, panels = plt.subplots(1, 3, figsize=(13, 3.8))
for ax, label in zip(panels, pairs, strict=True):
    plots.loss_path(ax, {words: way for (name, words), way in ways.items() if name == label})
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), title=label)
    ax.set(title="", yscale="log" if label == "float to LSQ" else "linear")

# %%
rows = {}
for key, way in ways.items():
    first, last = way.loss[way.t == 0][0], way.loss[way.t == 1][0]
    rows[key] = {"loss at the ends (nats)": f"{first:.3f}, {last:.3f}",
                 "barrier (nats)": f"{way.barrier:.3f}", "‖w₁ − w₀‖": f"{way.distance:.2f}"}
pd.DataFrame(rows).T.rename_axis(["from, to", "BatchNorm's statistics"])

# %% [markdown]
# - **From float to LSQ** there is no barrier. But look at the right end: with the averages as they are,
#   its loss is not LSQ's. A float network has no activation quantizers, so they are off all the way, and
#   LSQ's network without them is another network, whose averages are wrong.
# - **From seed to seed** there is a barrier, a small one. Much of it is BatchNorm: half way, the
#   interpolated averages belong to no network. Where they are taken anew, the barrier shrinks.
# - The latent line has the higher barrier of the two: half way between two codes that differ, a latent
#   weight sits near a threshold and goes to one side or the other, at random as far as the loss knows;
#   the dequantized weight may stay half way between its levels.
#
# (One pair of seeds, both from one float network; 5 batches for the averages. That networks from
# *different* starts are connected does not follow.)
#
# ## 8. What a random slice cannot show
#
# A picture with a bowl in it looks like a minimum. Is it one? A random direction meets the *average* of
# all curvatures: $d^\top H d/\lVert d\rVert^2$ has the mean $\mathrm{tr}(H)/P$, and with $P$ = 77,000 it
# hardly leaves it. A few directions that bend downward are never met.
#
# > **Predict**: the curvature along ten random directions, beside the largest and the smallest
# > eigenvalue. Does one of the ten bend downward?

# %%
few, bottoms = images.subset(at_scale(laptop=100, fast=16)), {}
for label, network in {"float": model, "LSQ W2A2": lsq}.items():
    options = {"which": "smallest", "tolerance": 1e-3, **quiet}
    bottoms[label] = analysis.eigenvalues(network, few, 1, **options)
    surface, seen = Surface(network), []
    product = Hessian(surface, few)
    for direction in analysis.random_directions(surface, 10, normalise="none"):
        unit = direction.vector / direction.vector.norm()
        seen.append((unit @ product(unit)).item())
    print(f"{label}: ten random directions {min(seen):.4f} to {max(seen):.4f}; "
          f"smallest λ {bottoms[label].values[0]:.2f}, largest magnitude {bottoms[label].largest:.0f}")

# %% [markdown]
# None of ten, and none of ten thousand would. So eigenvalues belong beside every such picture. And what
# does one see along the direction that bends downward most? In float, where the Hessian is one:

# %%
downward = analysis.eigenvector_directions(model, bottoms["float"], 1, unit="norm")[0]
(random,) = analysis.random_directions(model, 1, normalise="layer")
random = analysis.Direction(random.vector, "a random direction", "‖w‖")
options = {"reach": 0.01, "points": at_scale(laptop=21, fast=7), **quiet}
lines = {"eigenvector of the smallest λ": analysis.line(model, few, downward, **options),
         "a random direction": analysis.line(model, few, random, **options)}
figure, ax = plt.subplots(figsize=(6.5, 3.4))
plots.loss_line(ax, lines);

# %% [markdown]
# TEXT8
#
# ## What to remember
#
# - A picture of a landscape is a choice of directions, of their lengths, of a space and of images. All
#   four belong in its caption.
# - **Latent** weights are a staircase, which is what the network does; **dequantized** ones show the
#   surface between the levels. With quantized activations neither is smooth.
# - Without filter normalisation large weights look flat.
# - The eigenvectors' plane shows how far λ can be trusted: in float less than a hundredth of the weights,
#   at 2 bits not at all at the distances that one can draw.
# - A barrier may be BatchNorm's. Take its averages anew before you believe in mountains.
# - Here the two kinds of quantized network could not be told apart by looking at them. Pictures raise
#   questions; notebook 31 has the numbers, and the error bars that a picture lacks.
#
# Notebook 33 leaves the loss and looks at the codes: how much do they say?
#
# ## Exercises
#
# **1.** Two weights are rounded with 2 bits each. How many different losses can there be at most in the
# plane of the two latent weights?

# %% tags=["exercise"]
losses = None

# %%
check_levels(losses)

# %% [markdown]
# **2.** Write filter normalisation: given a random `direction` and a `weight`, both `[filters, channels, 3,
# 3]`, return the direction with the norm of each filter of the weight. One filter of the weight is zero.

# %% tags=["exercise"]
def normalise(direction, weight):
    ...

# %%
check_normalised(normalise)

# %% [markdown]
# **3.** Write the barrier: `t` is an array from 0 to 1, `loss` the losses there.

# %% tags=["exercise"]
def barrier(t, loss):
    ...

# %%
check_barrier(barrier)

# %% [markdown]
# Solutions are in `932_solutions_loss_landscape.ipynb`.
