# %% [markdown]
# # Solutions: what does a staircase look like from above?
#
# The exercises of `32_loss_landscape`, each with its answer and the reason.

# %%
from qatviz.exercises.loss_landscape import check_barrier, check_levels, check_normalised
from qatviz.notebook import versions

print(versions())

# %% [markdown]
# **1.** Two weights are rounded with 2 bits each. How many different losses can there be at most in the
# plane of the two latent weights?
#
# Each weight has four levels, and the loss depends on nothing but the two levels: 4 × 4 terraces. (With
# 77,000 weights of 2 bits it is $4^{77000}$ terraces, which is why a line over them looks smooth from afar.)

# %% tags=["exercise"]
losses = 4 * 4

# %% tags=["nbval-check-output"]
check_levels(losses)

# %% [markdown]
# **2.** Write filter normalisation.
#
# A filter is all that makes one output: everything but the first axis. The norm of the direction
# is never zero, that of the weight may be, and then the filter does not move.

# %% tags=["exercise"]
def normalise(direction, weight):
    axes = (1, 2, 3)
    return direction * weight.norm(dim=axes, keepdim=True) / direction.norm(dim=axes, keepdim=True)

# %% tags=["nbval-check-output"]
check_normalised(normalise)

# %% [markdown]
# **3.** Write the barrier.
#
# The chord joins the two ends; the barrier is the largest height above it. At the ends that height is
# zero, so a way that runs through a valley has no barrier, and not a negative one.

# %% tags=["exercise"]
def barrier(t, loss):
    chord = (1 - t) * loss[0] + t * loss[-1]
    return (loss - chord).max()

# %% tags=["nbval-check-output"]
check_barrier(barrier)
