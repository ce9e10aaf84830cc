"""What analyses return and plots draw: frozen records of NumPy arrays, without torch."""

from qatviz.records.averaging import AveragingToy
from qatviz.records.confidence import Reliability, Temperature
from qatviz.records.curvature import Eigenvalues, Setting, SpectralDensity, Trace
from qatviz.records.dense import DensePictures, DenseRun, DenseScores
from qatviz.records.entropy import CodeEntropy, GaussianCodes
from qatviz.records.gradients import Descent, GradientAgreement, OneWeight, StaircaseLoss
from qatviz.records.grids import BitsCurve, ChannelSQNR, Histogram, RangeSweep, TransferCurve
from qatviz.records.input_changes import InputChange
from qatviz.records.landscape import Conditions, LossLine, LossPath, LossSurface
from qatviz.records.oscillation import BinDistances, Oscillation, Trajectories
from qatviz.records.oscillation_effects import BatchNormDrift, OscillationLottery, OscillationToy
from qatviz.records.perturbation import (
    AccuracyBySamples,
    AccuracyDifference,
    CorruptionAccuracy,
    InputNoise,
    ViewConsistency,
    WeightNoise,
)
from qatviz.records.propositions import (
    ConvolutionMismatch,
    DivergenceAsSharpness,
    ErrorPropagation,
    PACBayesBound,
    ToleratedNoise,
    WeightChange,
)
from qatviz.records.sensitivity import BitSensitivity, LayerEffects, LayerSQNR, RankAgreement
from qatviz.records.sharpness import Sharpness
from qatviz.records.similarity import Similarity
from qatviz.records.steps import StepErrors, StepGradient, StepRatios, StepTrace
from qatviz.records.training import History
from qatviz.records.zoo import LearnedGrid, Released, ZooCurve, ZooErrors

__all__ = [
    "AccuracyBySamples",
    "AccuracyDifference",
    "AveragingToy",
    "BatchNormDrift",
    "BinDistances",
    "BitSensitivity",
    "BitsCurve",
    "ChannelSQNR",
    "CodeEntropy",
    "Conditions",
    "ConvolutionMismatch",
    "CorruptionAccuracy",
    "DensePictures",
    "DenseRun",
    "DenseScores",
    "Descent",
    "DivergenceAsSharpness",
    "Eigenvalues",
    "ErrorPropagation",
    "GaussianCodes",
    "GradientAgreement",
    "Histogram",
    "History",
    "InputChange",
    "InputNoise",
    "LayerEffects",
    "LayerSQNR",
    "LearnedGrid",
    "LossLine",
    "LossPath",
    "LossSurface",
    "OneWeight",
    "Oscillation",
    "OscillationLottery",
    "OscillationToy",
    "PACBayesBound",
    "RangeSweep",
    "RankAgreement",
    "Released",
    "Reliability",
    "Setting",
    "Sharpness",
    "Similarity",
    "SpectralDensity",
    "StaircaseLoss",
    "StepErrors",
    "StepGradient",
    "StepRatios",
    "StepTrace",
    "Temperature",
    "ToleratedNoise",
    "Trace",
    "Trajectories",
    "TransferCurve",
    "ViewConsistency",
    "WeightChange",
    "WeightNoise",
    "ZooCurve",
    "ZooErrors",
]
