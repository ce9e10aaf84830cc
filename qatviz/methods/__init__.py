"""How to train: one file per paper, all under the same four verbs."""

from qatviz.methods.averaging import AveragedWeights
from qatviz.methods.base import CrossEntropy, Method, Wrapper
from qatviz.methods.consistency import ConsistencyRegularization
from qatviz.methods.dampening import Dampening
from qatviz.methods.ewgs import HessianScaling, match_outputs
from qatviz.methods.features import FeatureConsistency
from qatviz.methods.freezing import IterativeFreezing
from qatviz.methods.kd import HintonKD
from qatviz.methods.mixing import MixedCrossEntropy
from qatviz.methods.sparing import RememberingConsistency, SparingConsistency
from qatviz.methods.switching import Switching
from qatviz.methods.two_teachers import TwoTeachers
from qatviz.methods.views import TwoViews

__all__ = [
    "AveragedWeights",
    "ConsistencyRegularization",
    "CrossEntropy",
    "Dampening",
    "FeatureConsistency",
    "HessianScaling",
    "HintonKD",
    "IterativeFreezing",
    "Method",
    "MixedCrossEntropy",
    "RememberingConsistency",
    "SparingConsistency",
    "Switching",
    "TwoTeachers",
    "TwoViews",
    "Wrapper",
    "match_outputs",
]
