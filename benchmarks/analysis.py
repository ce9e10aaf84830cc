"""How fast curvature, landscapes and tracking are, beside the packages that people use for them.

Run by ``make bench``, alone on the machine. Every peer is given the same network in evaluation
mode, the same images and the same weights to differentiate by (convolutions and linear layers),
and is used as its own documentation says. All take turns in one process; the residuals of all
eigenpairs are measured with one and the same product, PyTorch's own.
"""

import argparse
import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from house import RUNS, THREADS, PeakMemory, Row, compare, in_a_process, interleaved, table, write
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from qatviz import analysis
from qatviz.calibration import calibrate
from qatviz.datasets import Split, load
from qatviz.methods import CrossEntropy
from qatviz.models import resnet20, small_resnet
from qatviz.quantize import quantize
from qatviz.quantizers import LSQ
from qatviz.records import Eigenvalues
from qatviz.runs import load_weights
from qatviz.studies import read_study, student
from qatviz.tracking import OscillationTracker

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import curvlinops
    import hessian_eigenthings
    import loss_landscapes
    from loss_landscapes.metrics import Metric
    from pyhessian import hessian as PyHessian
    from scipy.sparse.linalg import eigsh

STUDIES = RUNS.parents[1] / "studies"
TOP = 50
TOLERANCE = 1e-4  # of the residuals, relative to the largest eigenvalue
SAMPLES = 64  # as many as PyHessian takes minutes for
FEW = 16  # to see what grows
ROUNDS = 3
PACKAGES = (
    *("torch", "scipy", "pyhessian", "hessian-eigenthings"),
    *("curvlinops-for-pytorch", "loss-landscapes"),
)


@dataclass(frozen=True)
class Pairs:
    """What a method found."""

    values: np.ndarray
    vectors: Tensor  # one per row


@dataclass(frozen=True)
class Task:
    """Find the top k eigenpairs of a network on some images."""

    width: int = 16
    samples: int = FEW
    k: int = TOP
    quantized: bool = False

    @property
    def split(self) -> Split:
        return load("fashion-mini").train.subset(self.samples)

    @property
    def surface(self) -> analysis.Surface:
        """A new one each time; peers get its private copy, in which our weights alone move."""
        torch.manual_seed(0)
        model = small_resnet(self.width)
        if self.quantized:
            # Trained: before, whole channels lie exactly on the kink of a ReLU.
            model = student(read_study(STUDIES / "seeing_laptop.toml")[0])
        elif self.width == 16:
            model.load_state_dict(load_weights(RUNS / "float_small_resnet.safetensors"))
        return analysis.Surface(model.eval())


@dataclass(frozen=True)
class Finders:
    """Every way to find the pairs of a task, as calls without arguments, equally prepared."""

    task: Task

    def __post_init__(self) -> None:
        found = self.ours()
        # A peer's user would have to find these two by trying; they are not timed.
        object.__setattr__(self, "steps", found.products - 1)
        own = TOLERANCE * abs(found.values[0] / found.values[-1])
        object.__setattr__(self, "relative_to_each", own)

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return next(self.task.split.batches(self.task.samples))

    def ours(self) -> Eigenvalues:
        found = analysis.eigenvalues(
            *(self.task.surface, self.task.split, self.task.k), tolerance=TOLERANCE, progress=False
        )
        if not found.complete:
            raise RuntimeError(f"not all within tolerance: {found}")
        return found

    def pyhessian(self) -> Pairs:
        """Power iteration with deflation on one batch, at its own defaults."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about create_graph
            peer = PyHessian(
                self.task.surface.model, nn.CrossEntropyLoss(), data=self.batch, cuda=False
            )
            values, vectors = peer.eigenvalues(maxIter=100, tol=1e-3, top_n=self.task.k)
        rows = [torch.cat([part.detach().reshape(-1) for part in v]) for v in vectors]
        return Pairs(np.array(values), torch.stack(rows))

    def curvlinops(self) -> Pairs:
        """SciPy's restarted Lanczos on its operator, to residuals as small as ours."""
        surface = self.task.surface
        operator = curvlinops.HessianLinearOperator(
            *(surface.model, nn.CrossEntropyLoss(), list(surface.parameters), [self.batch]),
            check_deterministic=False,
        )
        values, vectors = eigsh(operator.to_scipy(), self.task.k, tol=self.relative_to_each)
        order = np.argsort(-np.abs(values))
        return Pairs(values[order], torch.from_numpy(np.ascontiguousarray(vectors.T[order])))

    def eigenthings(self) -> Pairs:
        """Its Lanczos, reorthogonalised, in as many steps as ours needs for the tolerance."""
        operator = hessian_eigenthings.HessianOperator(
            self.task.surface.model,
            [self.batch],
            hessian_eigenthings.supervised_loss(cross_entropy),
        )
        found = hessian_eigenthings.lanczos(
            operator, k=self.task.k, max_iter=self.steps, reorthogonalize=True, seed=0
        )
        return Pairs(found.eigenvalues.numpy(), found.eigenvectors)


PEERS = {
    "pyhessian": "pyhessian",
    "hessian-eigenthings": "eigenthings",
    "curvlinops": "curvlinops",
}


def eigenvalue_rows(
    what: str, task: Task, rounds: int, peers: tuple[str, ...], *, checked: bool = True
) -> list[Row]:
    """Seconds, and if they are to be checked the residuals, of ours and of each peer."""
    finders = Finders(task)
    found: dict[str, Pairs] = {}

    def run(name: str) -> None:
        found[name] = getattr(finders, PEERS.get(name, "ours"))()

    seconds = interleaved(
        {name: partial(run, name) for name in ("ours", *peers)}, rounds, warm_up=0
    )
    rows = [compare(what, seconds["ours"], peer, seconds[peer]) for peer in peers]
    if checked:
        ours = residuals(task, found["ours"])
        for peer in peers:
            rows += residual_rows(what, ours, peer, residuals(task, found[peer]))
    return rows


def residuals(task: Task, pairs: Pairs) -> np.ndarray:
    """‖Hv − λv‖/|λ₁| of each pair, by PyTorch's own second derivatives in float64."""
    surface, (images, labels) = task.surface, next(task.split.batches(task.samples))
    model = surface.model.double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = cross_entropy(model(images.double()), labels)
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    found = []
    for value, vector in zip(pairs.values, torch.as_tensor(pairs.vectors), strict=True):
        vector = vector.double() / vector.double().norm()
        along = list(surface.split(vector).values())
        product = torch.autograd.grad(gradient, parameters, along, retain_graph=True)
        found.append((surface.flatten(product) - float(value) * vector).norm().item())
    return np.array(found) / np.abs(pairs.values).max()


def residual_rows(what: str, ours: np.ndarray, peer: str, theirs: np.ndarray) -> list[Row]:
    """The largest residual of all pairs, and the pair at which ours fares worst."""
    worst = int((ours / theirs).argmax())
    return [
        Row(
            what=f"{what}, {which} residual",
            peer=peer,
            ours=float(f"{1e6 * a:.3g}"),
            theirs=float(f"{1e6 * b:.3g}"),
            ratio=float(f"{a / b:.3g}"),
            spread=0.0,
            n=len(ours),
            unit="millionths of the largest eigenvalue",
        )
        for which, a, b in (
            ("largest", ours.max(), theirs.max()),
            ("worst pair's", ours[worst], theirs[worst]),
        )
    ]


def top() -> list[Row]:
    """The top fifty of a float network, and the top ten of a quantized one, beside all."""
    what, quick = f"top-{TOP} eigenvalues", tuple(PEERS)[1:]
    quantized = Task(samples=SAMPLES, k=10, quantized=True)
    return [
        *eigenvalue_rows(what, Task(samples=SAMPLES), ROUNDS, quick),
        *eigenvalue_rows(what, Task(samples=SAMPLES), 1, ("pyhessian",)),
        *eigenvalue_rows("top-10 eigenvalues, W2A2", quantized, ROUNDS, tuple(PEERS)),
    ]


def scaling() -> list[Row]:
    """How the seconds grow with parameters, images and k: one round each."""
    tasks = {
        "8 channels": Task(width=8, k=5),
        "16 channels": Task(width=16, k=5),
        "32 channels": Task(width=32, k=5),
        "64 images": Task(width=8, k=5, samples=64),
        "256 images": Task(width=8, k=5, samples=256),
        "k = 1": Task(width=8, k=1),
        "k = 20": Task(width=8, k=20),
    }
    return [
        row
        for what, task in tqdm(tasks.items(), desc="scaling")
        for row in eigenvalue_rows(f"scaling, {what}", task, 1, tuple(PEERS), checked=False)
    ]


def landscape() -> list[Row]:
    """A plane of 51 by 51 points, beside its forward passes, and beside loss-landscapes."""
    task, points = Task(samples=SAMPLES), 51
    images, labels = next(task.split.batches(task.samples))
    model = task.surface.model
    laid = images.contiguous(memory_format=torch.channels_last)
    still = copy.deepcopy(model).to(memory_format=torch.channels_last)
    metric = _Loss(images, labels)

    def ours() -> None:
        analysis.plane(task.surface, (images, labels), points=points, progress=False)

    def forward() -> None:
        with torch.no_grad():
            for _ in range(points**2):
                still(laid)

    def peer() -> None:
        with torch.no_grad():
            loss_landscapes.random_plane(
                model, metric, steps=points, normalization="filter", deepcopy_model=True
            )

    seconds = interleaved({"ours": ours, "forward": forward, "loss-landscapes": peer}, 5, warm_up=0)
    return [
        compare("landscape", seconds["ours"], name, seconds[name], unit="ms per 2,601 points")
        for name in ("forward", "loss-landscapes")
    ]


class _Loss(Metric):
    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__()
        self.images, self.labels = images, labels

    def __call__(self, wrapper: Callable[[Tensor], Tensor]) -> float:
        return cross_entropy(wrapper.forward(self.images), self.labels).item()


def tracking() -> list[Row]:
    """What watching every weight adds to a step of ResNet-20 (W2A2 LSQ, 128 images of 32×32)."""
    torch.manual_seed(0)
    images, labels = torch.randn(128, 3, 32, 32), torch.arange(128) % 10
    images = images.contiguous(memory_format=torch.channels_last)
    student = quantize(resnet20(), partial(LSQ, 2), partial(LSQ, 2), keep=("conv1", "fc"))
    calibrate(student, [images])
    student = student.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    method, tracker = CrossEntropy(), OscillationTracker(student)

    def step() -> None:
        optimizer.zero_grad()
        sum(method.loss(student, images, labels).values()).backward()
        optimizer.step()

    seconds = interleaved({"step": step, "ours": partial(tracker, 0, student)}, 20)
    return [compare("oscillation tracking", seconds["ours"], "step", seconds["step"])]


def memory() -> list[Row]:
    """The largest sum of living tensors, beside that for an eighth of the images."""

    def peak(samples: int) -> float:
        task = Task(width=8, samples=samples)
        with PeakMemory() as counted:
            analysis.trace(
                *(task.surface, task.split), products=2, batch=64, memory=0, progress=False
            )
        # The images themselves lie in memory, as bytes, before anything begins.
        return counted.peak / 1e6

    few, many = peak(256), peak(2048)
    row = Row(
        what="memory, 2,048 images",
        peer="256 images",
        ours=round(many, 2),
        theirs=round(few, 2),
        ratio=round(many / few, 4),
        spread=0.0,
        n=1,
        unit="MB",
    )
    return [row]


def measured(part: Callable[[], list[Row]]) -> list[Row]:
    """The rows of one part, in a process of its own."""
    torch.set_num_threads(THREADS)
    return part()


PARTS = {
    "top": top,
    "scaling": scaling,
    "memory": memory,
    "tracking": tracking,
    "landscape": landscape,
}


def main() -> None:
    """Measure all parts, or those named, and write ``data/runs/bench_analysis.json``.

    The rows of other parts stay as they are. Each part runs in a process of its own.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    chosen, path = parser.parse_args().parts or list(PARTS), RUNS / "bench_analysis.json"
    old = json.loads(path.read_text())["rows"] if len(chosen) < len(PARTS) else []
    rows = {(row["what"], row["peer"]): Row(**row) for row in old}
    for name in tqdm(chosen, desc="parts"):
        new = in_a_process(measured, PARTS[name])
        rows |= {(row.what, row.peer): row for row in new}
        print(table(new), flush=True)
    print(write("analysis", list(rows.values()), PACKAGES, data="fashion-mini"))


if __name__ == "__main__":
    main()
