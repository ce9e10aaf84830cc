"""Consistency regularization: predict of one view what an average of yourself says of another."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from qatviz.augment import Images, Mix
from qatviz.losses import distillation
from qatviz.methods.base import Method, Wrapper, check_between
from qatviz.methods.mixing import MixedCrossEntropy
from qatviz.methods.ramps import sigmoid_up
from qatviz.quantize import quantizers
from qatviz.teachers import ema_update, frozen_copy, warmed_up

View = Callable[[Images], Images]
Divergence = Callable[[Tensor, Tensor], Tensor]
FORWARD = partial(distillation, temperature=1.0)  # KL(p_T ‖ p_S)
TARGETS = ("quantized", "float")
BATCHNORMS = ("batch", "copied", "averaged")
STEPS = ("averaged", "copied")
ANSWERS = ("student", "teacher")
_NAME = "ConsistencyRegularization"


class ConsistencyRegularization(Wrapper):
    """Labels as usual, and agreement with a moving average of the student on another view.

    With f_S the student, f_T the teacher, A and A″ two draws of the views and R a divergence::

        L = L_labels(f_S(A(x)), y) + λ(t)·(1/n) ∑ R(f_T(A″(x)), f_S(A(x)))

    over all images x of the batch, labelled or not. The teacher learns nothing by gradients;
    after every step w_T ← α·w_T + (1 − α)·w_S, in latent weights. It begins as a copy of the
    student. The student alone is what one deploys.

    The labels' loss is another method's; its logits are those that the divergence is taken
    of, so the student runs once: 4 units of work where plain training takes 3 (a forward pass is
    1, a backward 2). With a ``student_view`` or a ``mix`` it runs a second time: 7 units.

    On labelled images with R = KL the gradient to the logits is (1 + λ)·p_S − y − λ·p_T: that of
    training on (y + λ·p_T)/(1 + λ) at 1 + λ times the rate. A fair control trains without
    consistency at that rate.

    Views of the teacher (and the second ones of the student) are drawn from a generator of the
    method's own: with λ = 0 the student's training is that of the inner method, to the bit.

    What the papers' text says of these choices could not be obtained; D1 to D9 are the decisions
    that had to be taken, and every default marked so is ours.

    Args:
        method: How the labels are learned, such as ``CrossEntropy(view=crop_flip)``.
        divergence: R(student's logits, teacher's logits). Default: ``distillation`` at
            temperature 1, KL(p_T ‖ p_S) (D1; the second version's propositions use KL).
        strength: λ at its largest, 0 or more. Default: 1 (D2).
        ramp: λ(t)/λ for the progress t. Default: ``sigmoid_up`` over 5 % of training (D2).
        decay: α, 0 to 1. 1/(1 − α) is about how many steps the average covers: 0.999 is five
            epochs of 50,000 images in batches of 256. For shorter runs take about two epochs,
            1 − 1/(2·steps per epoch). Default: 0.999 (D3; Mean Teacher's released code).
        warm_up: Whether the average begins with a window as short as the run, as in
            ``AveragedWeights``: where the student is poor at first, as right after it was
            quantized, a long window keeps a poor teacher. Default: False (D3; the papers' teacher
            begins with a trained student).
        targets: Whose predictions: "quantized": the teacher is quantized as the student is;
            "float": the same averaged weights, no quantizer used. Default: "quantized" (D4).
        batchnorm: How the teacher's BatchNorm normalises: "batch": by its own batches, collecting
            its own statistics (Mean Teacher); "copied": by the student's running statistics as
            they are (FixMatch); "averaged": by their moving average. Default: "batch" (D5).
        teacher_view: A″. Default: None: the inner method's ``view``, drawn anew (D6).
        student_view: A view for the divergence alone, in a second run of the student. Default:
            None: the inner method's logits (D6).
        mix: Mixes pairs of images for a second run of the student, the teacher's predictions of
            the pairs being mixed alike. Default: None.
        steps: Whether parameters of quantizers are "averaged" as weights are, or "copied".
            Default: "averaged" (D8).
        answers: Who is evaluated, "student" or "teacher". Default: "student" (D9).
        seed: Of the views that are the method's own. Default: 0 (ours).

    Raises:
        ValueError: If a number is outside its range or a word unknown; there is no view for the
            teacher; a float teacher is to answer for a student with quantizers; or the inner
            method's logits are of mixtures and the divergence has no view of its own.

    Source: Pang et al. 2024, arXiv 2402.13497, version 1, equation 6, and version 2; EMA teacher
    and ramp: Tarvainen & Valpola 2017 (Mean Teacher), arXiv 1703.01780.
    """

    def __init__(
        self,
        method: Method,
        divergence: Divergence = FORWARD,
        strength: float = 1.0,
        ramp: Callable[[float], float] = sigmoid_up,
        decay: float = 0.999,
        warm_up: bool = False,
        targets: str = "quantized",
        batchnorm: str = "batch",
        teacher_view: View | None = None,
        student_view: View | None = None,
        mix: Mix | None = None,
        steps: str = "averaged",
        answers: str = "student",
        seed: int = 0,
    ) -> None:
        super().__init__(method)
        check_between(_NAME, "strength", strength, 0, float("inf"), open_above=True)
        check_between(_NAME, "decay", decay, 0, 1)
        for name, value, allowed in (
            ("targets", targets, TARGETS),
            ("batchnorm", batchnorm, BATCHNORMS),
            ("steps", steps, STEPS),
            ("answers", answers, ANSWERS),
        ):
            if value not in allowed:
                words = ", ".join(allowed)
                raise ValueError(f"{_NAME}: {name} is {value!r}; allowed: {words}")
        if targets == "float" and answers == "teacher":
            raise ValueError(f"{_NAME}: a float teacher cannot answer for a quantized student")
        self.divergence, self.strength, self.ramp = divergence, strength, ramp
        self.decay, self.warm_up = decay, warm_up
        self.targets, self.batchnorm, self.steps, self.answers = targets, batchnorm, steps, answers
        if isinstance(_innermost(method), MixedCrossEntropy) and not (student_view or mix):
            raise ValueError(
                f"{_NAME}: MixedCrossEntropy's logits are of mixtures, the teacher's are not; "
                f"ConsistencyRegularization takes student_view= or mix="
            )
        self.teacher_view = teacher_view or _view_of(method)
        self.student_view, self.mix = student_view, mix
        self._progress, self._steps, self._prepared, self._seed = 0.0, 0, (), seed
        # Of the method's own generator; a buffer, so that it is saved.
        self.register_buffer("generator", torch.Generator().manual_seed(seed).get_state())

    @override
    def prepare(self, student: nn.Module, data: Any) -> None:
        """Make the teacher, a copy of the student.

        Args:
            student: The module that will be trained.
            data: The training ``Split``.
        """
        self.method.prepare(student, data)
        self._normalise = data.subset(1).normalise
        self.teacher = frozen_copy(student)
        norms = {n: m for n, m in self.teacher.named_modules() if isinstance(m, _BatchNorm)}
        if self.batchnorm == "batch":
            for norm in norms.values():
                norm.train()
        statistics = {f"{n}.{b}" for n, m in norms.items() for b, _ in m.named_buffers()}
        grids = {
            f"{n}.{t}"
            for n, q in quantizers(self.teacher).items()
            for t in dict([*q.named_parameters(), *q.named_buffers()])
        }
        if self.targets == "float":
            for quantizer in quantizers(self.teacher).values():
                quantizer.forward = _as_it_is
        self._copied = (grids if self.steps == "copied" else set()) | (
            statistics if self.batchnorm == "copied" else set()
        )
        everything = dict([*student.named_parameters(), *student.named_buffers()]).keys()
        own = statistics if self.batchnorm == "batch" else set()
        self._averaged = everything - self._copied - own
        self._progress, self._steps, self._prepared = 0.0, 0, (student,)
        self.generator.copy_(torch.Generator().manual_seed(self._seed).get_state())

    @override
    def loss(self, forward, images, labels) -> dict[str, Float[Tensor, ""]]:
        said = []

        def watched(view: Images, *args: Any, **more: Any) -> Any:
            said.append(forward(view, *args, **more))
            return said[-1]

        terms = self.method.loss(watched, images, labels)
        strength = self.strength * self.ramp(self._progress)
        disagreement = self.disagreement(forward, images, said[0])
        return terms | {"consistency": strength * disagreement}

    def disagreement(
        self, forward: Callable[..., Any], images: Images, logits: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """R between student and teacher on the images of a batch: what a variant changes.

        Args:
            forward: As in ``loss``.
            images: The raw images.
            logits: The student's of them, on the view of the inner method.

        Returns:
            A scalar, not yet times λ.
        """
        with self._own_generator(images.device):
            targets = self.targets_of(images)
            if self.student_view or self.mix:
                view = (self.student_view or self.teacher_view)(images)
                if self.mix:
                    view, partner, share = self.mix(view)
                    targets = mixed_predictions(targets, partner, share)
                logits = forward(view)
        return self.divergence(logits.float(), targets)

    @torch.no_grad()
    def targets_of(self, images: Images) -> Float[Tensor, "batch classes"]:
        """The teacher's logits of a view of its own: what a variant changes.

        Args:
            images: The raw images.

        Returns:
            One row per image, without gradient.
        """
        return self.teacher(self._normalise(self.teacher_view(images))).float()

    @override
    def after_step(self, batch: tuple[Tensor, Tensor], progress: float) -> None:
        self.method.after_step(batch, progress)
        (student,) = self._prepared
        self._steps += 1
        decay = warmed_up(self.decay, self._steps) if self.warm_up else self.decay
        ema_update(self.teacher, student, decay, self._averaged)
        ema_update(self.teacher, student, 0.0, self._copied)
        self._progress = progress
        if progress >= 1:
            self._prepared = ()

    @override
    def evaluated(self, student: nn.Module) -> nn.Module:
        """Who is evaluated.

        Args:
            student: The module that is trained.

        Returns:
            What the inner method says, or the teacher.
        """
        return self.teacher if self.answers == "teacher" else self.method.evaluated(student)

    def get_extra_state(self) -> dict[str, float]:
        """The progress and the steps taken, for ``state_dict``.

        Returns:
            Numbers by name.
        """
        return {"progress": self._progress, "steps": self._steps}

    def set_extra_state(self, state: dict[str, float]) -> None:
        """Go on from a ``state_dict``.

        Args:
            state: What ``get_extra_state`` returned.
        """
        self._progress, self._steps = float(state["progress"]), int(state["steps"])

    @contextmanager
    def _own_generator(self, device: torch.device) -> Iterator[None]:
        """Draw from the method's generator; the global one goes on as if nothing had been."""
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.set_rng_state(self.generator.cpu())
            if device.type == "cuda":  # views of images on a GPU are drawn there
                torch.cuda.manual_seed(int(torch.randint(2**62, ())))
            yield
            self.generator.copy_(torch.get_rng_state())


def mixed_predictions(
    logits: Float[Tensor, "batch classes"], partner: Tensor, share: Tensor
) -> Float[Tensor, "batch classes"]:
    """The logits of the mixture of two predictions: s·softmax(z) + (1 − s)·softmax(z[partner]).

    Args:
        logits: Of the images that were mixed.
        partner: Each one's partner, ``[batch]``.
        share: s, the share of the first in each mixture, ``[batch]``.

    Returns:
        Log-probabilities: logits whose softmax is the mixture.
    """
    predictions = logits.softmax(1)
    share = share[:, None]
    mixture = share * predictions + (1 - share) * predictions[partner]
    return mixture.clamp_min(torch.finfo(mixture.dtype).tiny).log()


def _view_of(method: Method) -> View:
    """The view of the innermost method."""
    inner = _innermost(method)
    if not hasattr(inner, "view"):
        raise ValueError(f"{_NAME}: {type(inner).__name__} has no view; pass teacher_view=")
    return inner.view


def _innermost(method: Method) -> Method:
    """The method that no wrapper stands in."""
    while isinstance(method, Wrapper):
        method = method.method
    return method


def _as_it_is(x: Tensor) -> Tensor:
    return x
