"""How alike two networks are inside: linear CKA of their layers, cosines and distances."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import Tensor, nn
from tqdm.auto import tqdm

from qatviz.analysis.subject import Data, subject, undisturbed
from qatviz.calibration import as_taken
from qatviz.quantize import quantizable_layers
from qatviz.records import Similarity

FEWEST = 4  # images of which HSIC has an unbiased estimate


@undisturbed()
@torch.no_grad()
def linear_cka(
    a: nn.Module,
    b: nn.Module,
    data: Data,
    *,
    layers: Iterable[str] | None = None,
    batch: int = 256,
    pool: bool = False,
    samples: int | None = None,
    labels: tuple[str, str] = ("first", "second"),
    progress: bool = True,
) -> Similarity:
    """Compare what the layers of two networks make of the same images.

    With K the Gram matrix of a layer's outputs in a batch of n images, its diagonal set to zero,
    and L that of another layer::

        HSIC(K, L) = (tr KL + 1ᵀK1·1ᵀL1/((n−1)(n−2)) − 2·1ᵀKL1/(n−2)) / (n(n−3))
        CKA(K, L) = ⟨HSIC(K, L)⟩ / √(⟨HSIC(K, K)⟩·⟨HSIC(L, L)⟩)

    where ⟨·⟩ is the mean over batches: unbiased, it is taken before the ratio. HSIC(K, K) is never
    negative; where it is zero, the outputs are constant and CKA counts as 0. CKA does not see
    rotation or scale, and the largest principal components decide it: so beside it stand the
    cosine and the relative distance of layers that match. Compare with two float networks of
    different seeds before calling a number high or low.

    Both networks see each batch, one after the other. In memory are the chosen outputs of the
    first network for one batch, and one Gram matrix per layer.

    Args:
        a: In evaluation mode, calibrated. It does not change.
        b: The same; another network, or the same one.
        data: A ``Split``, ``(images, labels)``, images as the model takes them, or a loader of
            these. Images that fill no batch are left out.
        layers: Patterns of names of modules in either network, such as ``("relu*", "layer?.0")``.
            Where one runs more than once, its last output counts. Default: None: all
            convolutions and linear layers.
        batch: Images at once, at least 4. Default: 256 (ours: 256 to 512 are usual).
        pool: True: features are averages over pixels (all axes after the second). Default:
            False: each pixel of each channel is a feature (ours).
        samples: How many images, the first. Default: None: all.
        labels: Names of the networks. Default: "first" and "second".
        progress: Whether to show a bar. Default: True.

    Returns:
        CKA of every pair of layers, with standard errors by the jackknife over batches; cosines and
        distances of those that match, with standard errors over images. ``records.Similarity``.
        Draw with ``plots.similarity_map`` or ``plots.similarity_lines``.

    Raises:
        ValueError: As ``subject``, for either network; or if there are fewer than 4 images or
            images in a batch, a pattern matches no module, no layer was reached, or an output
            is not finite or no tensor with a row per image.

    Source: Kornblith et al. 2019, arXiv 1905.00414; the estimate from batches: Nguyen et al. 2020,
    arXiv 2010.15327, section 3.
    """
    split = subject(b, subject(a, data, samples))
    size = min(batch, len(split))
    if size < FEWEST:
        raise ValueError(f"batch is {batch}, images are {len(split)}; allowed: 4 or more of both")
    patterns = _patterns(layers)
    chosen = [_chosen(model, patterns) for model in (a, b)]
    _check_patterns(patterns, a, b)
    used = len(split) // size * size
    seen = _Seen(pool)
    try:
        batches = split.batches(size, limit=used)
        for images, _ in tqdm(batches, "CKA", used // size, disable=not progress, leave=False):
            seen.add(_Pair(a, b, *chosen, images, pool))
    except KeyboardInterrupt:
        if not seen.count:
            raise
        warnings.warn(
            f"CKA: interrupted after {seen.count} of {used // size} batches", stacklevel=4
        )
    return seen.record(labels, size, complete=seen.count * size == used)


@contextmanager
def watching(
    modules: Mapping[str, nn.Module], see: Callable[[str, Any, Any], None]
) -> Iterator[None]:
    """Show what goes into some modules and what comes out, until the end of the context.

    Args:
        modules: By name.
        see: Called with name, first input (None if it has a name) and output, each time one runs.

    Yields:
        Nothing.
    """

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: see(name, *(inputs[:1] or (None,)), output)

    handles = []
    try:
        handles += [module.register_forward_hook(hook(name)) for name, module in modules.items()]
        yield
    finally:
        for handle in handles:
            handle.remove()


def jackknife(
    function: Callable[..., Array], *parts: Float[Array, "draws ..."]
) -> tuple[Array, Array]:
    """A function of means, and its standard error: how it changes without each draw in turn.

    Args:
        function: Of as many means as there are parts; also of means with an axis in front.
        parts: Values by draw, draws along the first axis.

    Returns:
        The value and √((m−1)/m·∑(θ₋ᵢ − θ̄)²), NaN where there is a single draw or the value is
        infinite.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 11.2.
    """
    count = len(parts[0])
    value = function(*(part.mean(0) for part in parts))
    if count < 2:
        return value, np.full(np.shape(value), np.nan)
    without = function(*((part.sum(0) - part) / (count - 1) for part in parts))
    with np.errstate(invalid="ignore"):
        spread = ((without - without.mean(0)) ** 2).sum(0)
    return value, np.sqrt((count - 1) / count * spread)


class _Pair:
    """One batch: the centred Gram matrices of both networks, and sums of layers that match."""

    def __init__(
        self,
        a: nn.Module,
        b: nn.Module,
        of_a: Mapping[str, nn.Module],
        of_b: Mapping[str, nn.Module],
        images: Tensor,
        pool: bool,
    ) -> None:
        self.count = len(images)
        self.rows: dict[str, Tensor] = {}
        self.columns: dict[str, Tensor] = {}
        self.matched: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}

        def see_a(name: str, _: Any, output: Any) -> None:
            features = _features(name, output, self.count, pool)
            self.rows[name] = centred_gram(features)
            if name in of_b:  # a copy: what comes next may work in place
                kept[name] = features.clone()

        def see_b(name: str, _: Any, output: Any) -> None:
            features = _features(name, output, self.count, pool)
            self.columns[name] = centred_gram(features)
            if name in kept and kept[name].shape == features.shape:
                self.matched[name] = _sums(kept[name], features)

        with watching(of_a, see_a):
            a(as_taken(a, images))
        with watching(of_b, see_b):
            b(as_taken(b, images))
        if not self.rows or not self.columns:
            raise ValueError("linear_cka: none of the layers was reached by the forward pass")


class _Seen:
    """What was found so far, batch by batch."""

    def __init__(self, pool: bool) -> None:
        self.pool = pool
        self.names: tuple[tuple[str, ...], ...] = ()
        self.parts: list[tuple[Array, ...]] = []

    def add(self, pair: _Pair) -> None:
        self.names = (tuple(pair.rows), tuple(pair.columns), tuple(pair.matched))
        rows, columns = (
            torch.stack(list(grams.values())).flatten(1) for grams in (pair.rows, pair.columns)
        )
        scale = 1 / (pair.count * (pair.count - 3))
        hsic = (rows @ columns.T, rows.square().sum(1), columns.square().sum(1))
        matched = np.zeros((len(pair.matched), 4, pair.count))
        for place, sums in enumerate(pair.matched.values()):
            matched[place] = sums.numpy()
        self.parts.append((*(scale * part.numpy() for part in hsic), matched))

    @property
    def count(self) -> int:
        return len(self.parts)

    def record(self, labels: tuple[str, str], batch: int, *, complete: bool) -> Similarity:
        *hsic, sums = zip(*self.parts, strict=True)
        cka, cka_error = jackknife(_ratio, *(np.stack(part) for part in hsic))
        dots, of_a, of_b, apart = np.concatenate(sums, axis=-1).transpose(1, 2, 0)
        lengths = np.sqrt(of_a * of_b)
        cosine, cosine_error = jackknife(
            np.asarray, np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)
        )
        distance, distance_error = jackknife(_distance, apart, of_a)
        rows, columns, matched = self.names
        return Similarity(
            labels=labels,
            samples=self.count * batch,
            batch=batch,
            pooled=self.pool,
            rows=rows,
            columns=columns,
            cka=cka,
            cka_error=cka_error,
            matched=matched,
            cosine=cosine,
            cosine_error=cosine_error,
            distance=distance,
            distance_error=distance_error,
            complete=complete,
        )


def centred_gram(features: Float[Tensor, "images features"]) -> Float[Tensor, "images images"]:
    """K̃ with ∑ᵢⱼ K̃ᵢⱼL̃ᵢⱼ = n(n−3)·HSIC(K, L): the Gram matrix, unbiasedly centred.

    Args:
        features: A row for each of four or more images.

    Returns:
        On the CPU in float64, the diagonal zero; all zero if the features are the same for every
        image, up to rounding.

    Source: Székely & Rizzo 2014, arXiv 1310.2926, section 2 (U-centring).
    """
    # The centre does not matter to the result; without it, less is cancelled.
    count, rounding = len(features), 16 * torch.finfo(features.dtype).eps
    centred = features - features.mean(0)
    if centred.norm() <= rounding * features.norm():
        return torch.zeros(count, count, dtype=torch.float64)
    gram = (centred @ centred.T).double().cpu().fill_diagonal_(0)
    rows = gram.sum(1) / (count - 2)
    gram = gram - rows - rows[:, None] + rows.sum() / (count - 1)
    return gram.fill_diagonal_(0)


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """By image: a·b, ‖a‖², ‖b‖², ‖b − a‖²."""
    b = b.to(a)
    sums = [(a * b).sum(1), a.square().sum(1), b.square().sum(1), (b - a).square().sum(1)]
    return torch.stack(sums).double().cpu()


def _ratio(cross: Array, of_a: Array, of_b: Array) -> Array:
    scale = np.sqrt(np.maximum(of_a[..., :, None] * of_b[..., None, :], 0))
    ratio = np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)
    return np.clip(ratio, -1, 1)  # rounding only: Cauchy and Schwarz hold for the means


def _distance(apart: Array, of_a: Array) -> Array:
    apart, of_a = np.maximum(apart, 0), np.maximum(of_a, 0)
    nothing = np.where(apart > 0, np.inf, 0.0)
    return np.sqrt(np.divide(apart, of_a, out=nothing, where=of_a > 0))


def _features(name: str, output: Any, images: int, pool: bool) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != images:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"linear_cka: {name!r} returns {shape}; allowed: a tensor with a row for each of "
            f"{images} images"
        )
    if not output.isfinite().all():
        raise ValueError(f"linear_cka: {name!r} returns numbers that are not finite")
    if pool and output.ndim > 2:
        output = output.flatten(2).mean(2)
    wide = torch.promote_types(output.dtype, torch.float32)
    return output.flatten(1).to(wide)


def _patterns(layers: Iterable[str] | None) -> tuple[str, ...] | None:
    if isinstance(layers, str):
        raise ValueError(f"layers must be a sequence of patterns, got the string {layers!r}")
    return None if layers is None else tuple(layers)


def _chosen(model: nn.Module, patterns: tuple[str, ...] | None) -> dict[str, nn.Module]:
    if patterns is None:
        return quantizable_layers(model)
    return {
        name: module
        for name, module in model.named_modules()
        if name and any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _check_patterns(patterns: tuple[str, ...] | None, *models: nn.Module) -> None:
    names = [name for model in models for name, _ in model.named_modules() if name]
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"layers: {pattern!r} matches no module; there are: "
                f"{', '.join(dict.fromkeys(names)) or 'none'}"
            )
