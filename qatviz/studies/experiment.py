"""One cell of a grid: everything that decides the numbers of a run."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from inspect import BoundArguments, Parameter, signature
from pathlib import Path
from typing import Any

from qatviz.augment import flip
from qatviz.datasets import DATA
from qatviz.methods import CrossEntropy
from qatviz.models import small_resnet
from qatviz.quantizers import LSQ, Quantizer
from qatviz.schedule import Schedule
from qatviz.studies.parts import (
    Part,
    describe,
    is_part,
    make,
    methods_within,
    open_arguments,
    short,
    target_of,
)

RUNS = DATA / "runs"
DIGITS = 16  # of a hash
PLAIN = partial(CrossEntropy, view=flip)  # ours: the notebooks' training


@dataclass(frozen=True, eq=False, kw_only=True)
class Experiment:
    """Everything that decides the numbers of a run, under a hash of its content.

    Parts are classes, functions, or ``partial`` of them that stand in a module: what a notebook
    defines cannot be found by another process, and is refused.

    ``seed`` decides the initial weights, the order of the batches and the views. Two experiments
    with equal content have the same ``hash``; ``label`` does not count, nor where the files
    of a data set lie (an image folder's root does count: it is all that names the data).

    Args:
        data: Name of the data set, as ``datasets.load`` knows it. Default: "fashion-mini".
        root: Where its files are. Default: None, as ``datasets.load``.
        images: Train on the first so many images (splits are stratified). Default: None: all.
        repeat: How often an epoch passes over them, so that few images can be trained on for as
            many steps and with as few validations as many. Default: 1.
        unlabelled: So many images of the training set follow each image of a batch, their labels
            hidden; with ``images`` a small number of labels and all images. Default: 0.
        model: Makes the float network; ``classes`` and ``in_channels`` are filled in from the
            data where it takes them. Default: ``small_resnet``.
        start: The weights to begin from: the name of a checkpoint in ``data/runs`` such as
            "float_small_resnet", a safetensors file, or another experiment, which is then run
            first. Quantizers' entries are left out: grids are always chosen anew.
            Default: None, random weights.
        bits: Bits of weights and inputs: a number, or one for each, None meaning float.
            Default: None, a float network.
        weights: Makes a weight quantizer from its bits. Default: ``LSQ``.
        inputs: Makes an input quantizer from its bits. Default: ``LSQ``.
        ends: Bits of the first and last layer, by the same quantizers; "float": they stay float;
            None: as the other layers. Default: 8 (ours).
        method: Makes the training method. A wrapped method is given as a part too and made
            first: ``partial(Outer, partial(CrossEntropy, view=flip))``. A method that takes
            ``teacher`` and has none gets the float network that was quantized.
            Default: ``partial(CrossEntropy, view=flip)`` (ours: the
            notebooks' training).
        schedule: How long and how fast; its own seed stays 0. Default: ``Schedule()``.
        seed: Initial weights, order, views. Default: 0.
        observers: Made anew for each run (``student`` filled in where they take it) and called
            after each step; at the end their ``record()``, ``result`` or ``state_dict()`` is kept.
            Default: none.
        analyses: Called with the trained student and the data set (or the student alone, if
            they take one argument) at the end; arguments ``images``, ``labels`` and ``batches``
            are the first 64 training images. The record from ``qatviz.records``, mapping or
            number that they return is kept. Default: none.
        label: Name of the arm, for tables. Default: "": made of the parts.

    Raises:
        ValueError: If anything of this is impossible; lists all that is.
    """

    # A file may hold anything, so __post_init__ checks these: Any where it does.
    data: Any = "fashion-mini"
    root: Any = None  # str | None
    images: Any = None  # int | None
    repeat: Any = 1  # int
    unlabelled: Any = 0  # int
    model: Any = small_resnet  # Part
    start: Any = None  # str | Experiment | None
    bits: Any = None  # int | tuple[int | None, int | None] | None
    weights: Any = LSQ  # Part
    inputs: Any = LSQ  # Part
    ends: Any = 8  # int | "float" | None
    method: Any = PLAIN  # Part
    schedule: Any = field(default_factory=Schedule)
    seed: Any = 0  # int
    observers: Any = field(default_factory=dict)  # Mapping[str, Part]
    analyses: Any = field(default_factory=dict)  # Mapping[str, Part]
    label: Any = ""  # str

    def __post_init__(self) -> None:
        for name, kind, plain in _PLAINER:
            if isinstance(value := getattr(self, name), kind):
                object.__setattr__(self, name, plain(value))
        if problems := list(dict.fromkeys(_problems(self))):
            raise ValueError("impossible experiment: " + "; ".join(problems))
        # Now, so that the hash is of the file of weights as it is now.
        _ = self.hash

    @property
    def pair(self) -> tuple[int | None, int | None]:
        """Bits of weights and of inputs; None: float."""
        return self.bits if isinstance(self.bits, tuple) else (self.bits, self.bits)

    @property
    def quantized(self) -> bool:
        """Whether anything is quantized."""
        return self.pair != (None, None)

    @cached_property
    def start_file(self) -> Path | None:
        """The file of weights that ``start`` names, if it names one."""
        if not isinstance(self.start, str):
            return None
        named = self.start.endswith(".safetensors")
        # Absolute: a worker may stand in another folder.
        return (
            Path(self.start).expanduser().absolute()
            if named
            else RUNS / f"{self.start}.safetensors"
        )

    @cached_property
    def content(self) -> str:
        """The description as canonical JSON: what ``hash`` is taken of."""
        return json.dumps(_description(self), sort_keys=True, separators=(",", ":"))

    @cached_property
    def hash(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of ``content``."""
        return hashlib.sha256(self.content.encode()).hexdigest()[:DIGITS]

    def describe(self) -> dict[str, Any]:
        """Everything that decides the numbers, as plain values.

        Returns:
            A new dictionary.
        """
        return json.loads(self.content)

    @cached_property
    def arm(self) -> str:
        """A hash of everything but the seed: what experiments over seeds have in common.

        A start that has the experiment's own seed varies with it.
        """
        content = _without_seed(self.describe(), self.seed)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGITS]

    @property
    def name(self) -> str:
        """The label, or one made of the parts."""
        if self.label:
            return self.label
        w, a = self.pair
        kinds = [short(part) for part, b in ((self.weights, w), (self.inputs, a)) if b is not None]
        which = " + ".join(dict.fromkeys(kinds))
        what = which if self.quantized else short(self.model)
        words = (what, bits_in_words(w, a)) if self.quantized else ("float", what)
        return f"{' '.join(words)}, {getattr(target_of(self.method), '__name__', 'method')}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Experiment):
            return NotImplemented
        return (self.content, self.label) == (other.content, other.label)

    def __hash__(self) -> int:
        return hash((self.content, self.label))

    def __repr__(self) -> str:
        return f"Experiment({self.name!r}, {self.data}, seed {self.seed}, {self.hash})"


def grid(base: Experiment, **choices: Any) -> list[Experiment]:
    """All combinations of some choices.

    ``grid(base, bits=[2, 4], seed=range(3))`` are six experiments. A choice is a list, or a
    dictionary whose keys name the arms. Fields of the schedule are reached by
    ``**{"schedule.rate": [0.1, 0.01]}``. ``arms={"a": {"weights": DoReFa, "inputs": PACT}}``
    sets several fields together. Labels are made of what varies, apart from the seed. For a
    start of its own for each seed::

        [replace(e, start=replace(float_net, seed=e.seed)) for e in grid(base, seed=range(3))]

    Args:
        base: What they have in common.
        choices: Values by field; the last varies fastest.

    Returns:
        The experiments.

    Raises:
        ValueError: If a field does not exist or combinations are impossible; lists all.
    """
    made, problems = combine(base, choices)
    if problems:
        raise ValueError("impossible experiments:\n- " + "\n- ".join(problems))
    return made


def combine(base: Experiment, choices: Mapping[str, Any]) -> tuple[list[Experiment], list[str]]:
    """What ``grid`` returns, and what it refuses.

    Args:
        base: What they have in common.
        choices: Values by field.

    Returns:
        The possible experiments, and the problems of the others.
    """
    wrong = {key: list(_choice_problems(key, choice)) for key, choice in choices.items()}
    problems = [problem for found in wrong.values() for problem in found]
    axes = [list(_axis(key, choice)) for key, choice in choices.items() if not wrong[key]]
    made: list[Experiment] = []
    refused: dict[str, list[str]] = {}
    for cell in itertools.product(*axes):
        label = " ".join(filter(None, [base.label, *(word for word, _ in cell)]))
        changes = {k: v for _, values in cell for k, v in values.items()}
        try:
            made.append(_changed(base, label, changes))
        except ValueError as error:
            refused.setdefault(str(error), []).append(label or base.name)
    for error, labels in refused.items():
        more = len(dict.fromkeys(labels)) - 1
        problems.append(f"{labels[0]}{f' and {more} more' if more else ''}: {error}")
    return made, list(dict.fromkeys(problems))


def _axis(key: str, choice: Iterable[Any] | Mapping[str, Any]) -> Iterable[tuple[str, dict]]:
    """Pairs of a word for the label and the fields to change."""
    if isinstance(choice, Mapping):
        for word, value in choice.items():
            yield word, value if key == "arms" else {key: value}
        return
    for value in choice:
        yield _word(key, value), {key: value}


def _word(key: str, value: Any) -> str:
    if key == "seed":
        return ""
    if key == "bits":
        pair = value if isinstance(value, tuple | list) else (value, value)
        return bits_in_words(*pair) if len(pair) == 2 else f"bits {value}"
    if is_part(value):
        return short(value)
    return f"{key.rpartition('.')[2]} {value.hash if isinstance(value, Experiment) else value}"


def _choice_problems(key: str, choice: Any) -> Iterable[str]:
    own, of_schedule = ([f.name for f in fields(kind)] for kind in (Experiment, Schedule))
    known = ["arms", *own, *(f"schedule.{name}" for name in of_schedule)]
    if key not in known:
        yield unknown(f"a grid's choice {key!r}", key, known)
    elif key == "arms":
        yield from _arms_problems(choice, known[1:])
    elif isinstance(choice, str) or not isinstance(choice, Iterable):
        yield f"{key}: a choice is a list or a dictionary, got {choice!r}"
    elif hasattr(choice, "__len__") and not len(choice):
        yield f"{key}: a choice of nothing"


def _arms_problems(arms: Any, known: list[str]) -> Iterable[str]:
    tables = arms.values() if isinstance(arms, Mapping) else [None]
    if not all(isinstance(values, Mapping) for values in tables):
        yield f"arms must be a dictionary of dictionaries of fields, got {arms!r}"
        return
    for word, values in arms.items():
        for name in values:
            if name not in known:
                yield unknown(f"arm {word!r}: field {name!r}", name, known)


def _changed(base: Experiment, label: str, changes: Mapping[str, Any]) -> Experiment:
    direct = {key: value for key, value in changes.items() if "." not in key}
    inner = {key.partition(".")[2]: value for key, value in changes.items() if "." in key}
    if inner:
        try:
            direct["schedule"] = replace(direct.get("schedule", base.schedule), **inner)
        except TypeError as error:
            raise ValueError(f"schedule: {error}") from error
    return replace(base, label=label, **direct)


def bits_in_words(weights: int | None, inputs: int | None) -> str:
    """A pair of bit-widths as papers write it.

    Args:
        weights: Bits of the weights; None: float.
        inputs: Bits of the inputs; None: float.

    Returns:
        "W2A4"; "W2A32" where the inputs are float; "float" where both are.
    """
    pair = [32 if bits is None else bits for bits in (weights, inputs)]
    return "float" if weights is inputs is None else "W{}A{}".format(*pair)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that does not exist.

    Args:
        what: What it was meant to be, with the name.
        name: The name.
        known: The names that exist.

    Returns:
        One sentence, with the nearest names, or all.
    """
    from difflib import get_close_matches

    known = sorted(known)
    near = get_close_matches(name, known, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
    return f"{what} is unknown; {hint}"


def _description(e: Experiment) -> dict[str, Any]:
    schedule = e.schedule.as_dict()
    schedule.pop("seed")
    if isinstance(e.start, Experiment):
        start = e.start.describe()
    else:
        start = None if e.start_file is None else {"sha256": file_digest(e.start_file)}
    w, a = e.pair
    return {
        "data": {"name": e.data, "images": e.images}
        | ({"root": e.root} if e.data == "imagefolder" else {})
        | ({"repeat": e.repeat} if e.repeat != 1 else {})
        | ({"unlabelled": e.unlabelled} if e.unlabelled else {}),
        "model": describe(e.model),
        "start": start,
        "bits": [w, a],
        # What is not used does not count.
        "weights": None if w is None else describe(e.weights),
        "inputs": None if a is None else describe(e.inputs),
        "ends": e.ends if e.quantized else None,
        "method": describe(e.method),
        "schedule": describe(schedule),
        "seed": e.seed,
        "observers": describe(e.observers),
        "analyses": describe(e.analyses),
    }


def file_digest(path: Path) -> str:
    """A hash of a file's bytes.

    Args:
        path: The file.

    Returns:
        16 hexadecimal digits of its SHA-256.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]


def _without_seed(content: dict[str, Any], seed: int) -> dict[str, Any]:
    start = content["start"]
    if start and "seed" in start:
        start = _without_seed(start, seed)
    return content | {"start": start, "seed": None if content["seed"] == seed else content["seed"]}


_PLAINER = (
    ("root", Path, str),
    ("start", Path, str),
    ("bits", list, tuple),
    ("observers", Mapping, dict),
    ("analyses", Mapping, dict),
)


def _problems(e: Experiment) -> Iterable[str]:
    yield from _plain_problems(e)
    yield from _start_problems(e)
    mappings = [name for name in ("observers", "analyses") if type(getattr(e, name)) is not dict]
    if mappings:
        yield f"{' and '.join(mappings)} must be dictionaries of parts by name"
        return
    unnamed = list(_unnamed(e))
    yield from unnamed
    if not unnamed:
        yield from _bits_problems(e)
        yield from _method_problems(e)
        yield from _keeping_problems(e)


def _plain_problems(e: Experiment) -> Iterable[str]:
    if not isinstance(e.data, str):
        yield f"data must be a name, got {e.data!r}"
    if not (e.root is None or isinstance(e.root, str)):
        yield f"root must be None or a folder, got {e.root!r}"
    if not isinstance(e.label, str):
        yield f"label must be text, got {e.label!r}"
    yield from _number_problems(e)
    if not isinstance(e.schedule, Schedule):
        yield f"schedule must be a Schedule, got {e.schedule!r}"
    elif e.schedule.seed != 0:
        yield f"the seed of the schedule must stay 0 (seed= is used), got {e.schedule.seed}"


def _number_problems(e: Experiment) -> Iterable[str]:
    if not (e.images is None or (_whole(e.images) and e.images >= 1)):
        yield f"images must be None or a whole number from 1, got {e.images!r}"
    if not (_whole(e.repeat) and e.repeat >= 1):
        yield f"repeat must be a whole number from 1, got {e.repeat!r}"
    if not (_whole(e.unlabelled) and e.unlabelled >= 0):
        yield f"unlabelled must be a whole number from 0, got {e.unlabelled!r}"
    if not (_whole(e.seed) and 0 <= e.seed < 2**63):
        yield f"seed must be a whole number from 0 to 2^63 - 1, got {e.seed!r}"


def _unnamed(e: Experiment) -> Iterable[str]:
    parts = {name: getattr(e, name) for name in ("model", "weights", "inputs", "method")}
    parts |= {f"observer {name!r}": part for name, part in e.observers.items()}
    parts |= {f"analysis {name!r}": part for name, part in e.analyses.items()}
    for name, part in parts.items():
        if not is_part(part):
            yield f"{name} must be a class, a function or a partial of one, got {part!r}"
            continue
        try:
            describe(part)
        except ValueError as error:
            yield f"{name}: {error}"


def _bits_problems(e: Experiment) -> Iterable[str]:
    bits = e.bits if isinstance(e.bits, tuple) else (e.bits,)
    if len(bits) not in (1, 2) or not all(b is None or _whole(b) for b in bits):
        yield f"bits must be None, a whole number, or a pair of these, got {e.bits!r}"
        return
    if not (e.ends is None or e.ends == "float" or _whole(e.ends)):
        yield f'ends must be None, "float" or a whole number, got {e.ends!r}'
        return
    for name, part, b in (("weights", e.weights, e.pair[0]), ("inputs", e.inputs, e.pair[1])):
        ends = [e.ends] if _whole(e.ends) else []
        for tried in dict.fromkeys([b, *ends] if b is not None else []):
            yield from _refused(name, part, tried)


def _refused(name: str, part: Part, bits: int) -> Iterable[str]:
    """What a quantizer says of its bits; weights are signed, whatever else is still open."""
    try:
        quantizer = make(part, bits)
    except (TypeError, ValueError) as error:
        yield f"{name} at {bits} bits: {error}"
        return
    if not isinstance(quantizer, Quantizer):
        yield f"{name} must make a quantizer, {short(part)} makes a {type(quantizer).__name__}"
    elif name == "weights" and quantizer.signed is None:
        allowed = quantizer.bits_allowed(True)
        if not allowed:
            yield f"weights: {type(quantizer).__name__} has no signed grid"
        elif bits not in allowed:
            yield (
                f"weights at {bits} bits: {type(quantizer).__name__} on signed numbers allows "
                f"{allowed.start} to {allowed.stop - 1}"
            )


def _method_problems(e: Experiment) -> Iterable[str]:
    for part in methods_within(e.method):
        takes = open_arguments(part)
        if e.start is None and takes.get("teacher", _OPTIONAL).default is Parameter.empty:
            yield f"{short(part)} needs a teacher: name trained weights as start"
        kinds = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        lacking = [
            name
            for name, p in takes.items()
            if p.default is Parameter.empty and name != "teacher" and p.kind not in kinds
        ]
        if lacking:
            yield f"method {short(part)} lacks the argument {', '.join(lacking)}"


_OPTIONAL = Parameter("teacher", Parameter.KEYWORD_ONLY, default=None)


def _keeping_problems(e: Experiment) -> Iterable[str]:
    for name, part in e.observers.items():
        kind = target_of(part)
        verbs = ("record", "result", "state_dict")
        if isinstance(kind, type) and not any(hasattr(kind, verb) for verb in verbs):
            yield f"observer {name!r}: {short(part)} has none of {', '.join(verbs)} to keep"
    for name, part in e.analyses.items():
        try:
            analysis_arguments(part)
        except ValueError as error:
            yield f"analysis {name!r}: {error}"


def analysis_arguments(analysis: Part, student: Any = None, data: Any = None) -> BoundArguments:
    """What an analysis is called with.

    Args:
        analysis: Takes the student and the data set, or the student alone; further arguments
            ``images``, ``labels`` and ``batches`` are the first 64 training images, normalised.
        student: Trained. Default: None: only looked whether the analysis can be called.
        data: The data set. Default: None, as ``student``.

    Returns:
        The arguments.

    Raises:
        ValueError: If it takes no student, or needs something else.
    """
    takes = {n for n, p in open_arguments(analysis).items() if p.default is Parameter.empty}
    images, labels = (None, None) if data is None else next(data.train.batches(64, limit=64))
    offered = {"images": images, "labels": labels, "batches": [(images, labels)]}
    offered = {name: value for name, value in offered.items() if name in takes}
    for given in ((student, data), (student,)):
        try:
            return signature(analysis).bind(*given, **offered)
        except TypeError as error:
            refused = error
    raise ValueError(f"{short(analysis)} cannot be called with a student: {refused}")


def _start_problems(e: Experiment) -> Iterable[str]:
    if not (e.start is None or isinstance(e.start, str | Experiment)):
        yield f"start must be None, a name, a file or an Experiment, got {e.start!r}"
    elif e.start_file is not None and not e.start_file.is_file():
        known = [path.stem for path in RUNS.glob("*.safetensors")]
        if e.start.endswith(".safetensors"):
            yield f"start: {e.start_file} does not exist"
        else:
            yield unknown(f"start {e.start!r}", e.start, known)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
