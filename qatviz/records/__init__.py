"""What analyses return and plots draw: frozen records of NumPy arrays, without torch."""

from qatviz.records.gradients import Descent, GradientAgreement, OneWeight, StaircaseLoss
from qatviz.records.grids import BitsCurve, ChannelSQNR, Histogram, RangeSweep, TransferCurve
from qatviz.records.steps import StepErrors, StepGradient, StepRatios, StepTrace
from qatviz.records.training import History
from qatviz.records.zoo import LearnedGrid, Released, ZooCurve, ZooErrors

__all__ = [
    "BitsCurve",
    "ChannelSQNR",
    "Descent",
    "GradientAgreement",
    "Histogram",
    "History",
    "LearnedGrid",
    "OneWeight",
    "RangeSweep",
    "Released",
    "StaircaseLoss",
    "StepErrors",
    "StepGradient",
    "StepRatios",
    "StepTrace",
    "TransferCurve",
    "ZooCurve",
    "ZooErrors",
]
