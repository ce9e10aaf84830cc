"""What a study returns: its runs as tidy tables."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qatviz.runs import Run
from qatviz.studies.cells import Cell
from qatviz.studies.experiment import Experiment
from qatviz.studies.parts import short
from qatviz.studies.statistics import Estimate, estimate

SCORES = ("validation", "test")


@dataclass(frozen=True, eq=False)
class Study:
    """The results of a study.

    Args:
        experiments: What was asked for.
        cells: The finished cells, by hash.
        errors: The last line of what went wrong, by hash.
    """

    experiments: Sequence[Experiment]
    cells: Mapping[str, Cell]
    errors: Mapping[str, str]

    @property
    def runs(self) -> dict[str, Run]:
        """The finished runs, by hash."""
        return {e.hash: self.cells[e.hash].run for e in self.experiments if e.hash in self.cells}

    @property
    def table(self) -> pd.DataFrame:
        """One row for each experiment; accuracies 0 to 1, missing where a cell failed."""
        return pd.DataFrame([self._row(e) for e in self.experiments], columns=COLUMNS)

    def summary(self) -> pd.DataFrame:
        """Each arm over its seeds: n, mean, standard deviation, 95 % t-interval.

        Returns:
            A table by label; with one seed there is no deviation and no interval (NaN).
        """
        rows = {}
        for label, table in self.table.groupby("label", sort=False):
            scores = {score: estimate(table[score]) for score in SCORES}
            rows[label] = {"n": scores["test"].n} | _spread(scores)
        return _by_label(rows)

    def differences(self, baseline: str | Mapping[str, str]) -> pd.DataFrame:
        """Each run minus the baseline's run of the same seed.

        Args:
            baseline: Label of the arm to compare all others with; or of each arm that is asked
                for, the label of its own: ``{"CR, 500 labels": "LSQ, 500 labels"}``.

        Returns:
            A table with label, seed, validation, test: a row for each seed that both have.

        Raises:
            ValueError: If there is no such arm.
        """
        arms = {
            label: rows.set_index("seed")[list(SCORES)]
            for label, rows in self.table.groupby("label", sort=False)
        }
        if isinstance(baseline, Mapping):
            pairs = dict(baseline)
        else:
            pairs = {label: baseline for label in arms if label != baseline} or {baseline: baseline}
        for name in [*pairs.values(), *pairs]:
            if name not in arms:
                raise ValueError(f"baseline is {name!r}; allowed: {', '.join(arms)}")
        parts = []
        for label, other in pairs.items():
            both = [seed for seed in arms[label].index if seed in arms[other].index]
            apart = arms[label].loc[both] - arms[other].loc[both]
            parts.append(apart.reset_index().assign(label=label))
        return pd.concat(parts, ignore_index=True)[["label", "seed", *SCORES]]

    def paired(self, baseline: str | Mapping[str, str]) -> pd.DataFrame:
        """Each arm minus the baseline, seed by seed: mean and 95 % t-interval.

        Args:
            baseline: As ``differences``.

        Returns:
            A table by label; n counts the seeds that both have. With one there is no interval.

        Raises:
            ValueError: If there is no such arm.
        """
        rows = {}
        for label, table in self.differences(baseline).groupby("label", sort=False):
            scores = {score: estimate(table[score]) for score in SCORES}
            rows[label] = {"n": scores["test"].n} | _spread(scores)
        return _by_label(rows)

    def best(self) -> str:
        """The arm with the highest mean validation accuracy; test accuracies are not looked at.

        Returns:
            Its label, the first of equals.

        Raises:
            ValueError: If no cell is finished.
        """
        means = self.table.groupby("label", sort=False)["validation"].mean()
        if means.isna().all():
            raise ValueError("no cell is finished, so none is the best")
        return str(means.idxmax())

    def cell(self, experiment: Experiment) -> Cell:
        """The folder of an experiment: its run, weights and results.

        Args:
            experiment: One of the study's.

        Returns:
            The finished cell.

        Raises:
            ValueError: If it is not finished.
        """
        if experiment.hash not in self.cells:
            raise ValueError(f"{experiment!r} is not finished: {self.errors.get(experiment.hash)}")
        return self.cells[experiment.hash]

    def __repr__(self) -> str:
        lines = [f"Study({self._counts()})"]
        if self.experiments:
            lines.append(_shown(self.summary()).to_string())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = _shown(self.summary()).to_html() if self.experiments else ""
        failed = "".join(
            f"<li>{html.escape(row.label)}, seed {row.seed}: {html.escape(row.error)}</li>"
            for row in self.table.itertuples()
            if row.error
        )
        return f"<strong>Study: {self._counts()}</strong>{table}" + f"<ul>{failed}</ul>" * bool(
            failed
        )

    def _counts(self) -> str:
        table = self.table
        failed, stale = int((table.error != "").sum()), int(table.stale.sum())
        words = [f"{len(table)} runs", f"{table.label.nunique()} arms"]
        words += [f"{failed} failed"] * bool(failed) + [f"{stale} stale"] * bool(stale)
        return ", ".join(words) + "; accuracies in %, 95 % t-intervals over seeds"

    def _labels(self) -> dict[str, str]:
        """Names of the arms, told apart where they would be the same."""
        names = {e.arm: e.name for e in self.experiments}
        values = list(names.values())
        return {a: n if values.count(n) == 1 else f"{n} #{a[:4]}" for a, n in names.items()}

    def _row(self, e: Experiment) -> dict[str, Any]:
        cell, (w, a) = self.cells.get(e.hash), e.pair
        row = {
            "label": self._labels()[e.arm],
            "data": e.data,
            "model": short(e.model),
            "weight_bits": 32 if w is None else w,
            "input_bits": 32 if a is None else a,
            "method": short(e.method),
            "seed": e.seed,
            "stale": False,
            "error": self.errors.get(e.hash, ""),
            "hash": e.hash,
        }
        return row | ({} if cell is None else _measured(cell))


COLUMNS = [
    *("label", "data", "model", "weight_bits", "input_bits", "method", "seed"),
    *("validation", "test", "seconds", "threads", "stale", "error", "hash"),
]


def _measured(cell: Cell) -> dict[str, Any]:
    run = cell.run
    validation = run.history.validation
    return {
        # What a choice was made by: the kept epoch's, counted from 1; 0: the last.
        "validation": float(validation[run.kept_epoch - 1]) if len(validation) else float("nan"),
        "test": run.test,
        "seconds": run.seconds,
        "threads": run.machine["threads"],
        "stale": cell.stale,
    }


def _spread(scores: Mapping[str, Estimate]) -> dict[str, float]:
    return {
        f"{score} {name}": value
        for score, e in scores.items()
        for name, value in (("mean", e.mean), ("sd", e.deviation), ("low", e.low), ("high", e.high))
    }


def _by_label(rows: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    names = [f"{score} {name}" for score in SCORES for name in ("mean", "sd", "low", "high")]
    index = pd.Index(list(rows), name="label", dtype=object)
    return pd.DataFrame(list(rows.values()), index=index, columns=["n", *names])


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracies in percent, a count as it is."""
    return table.apply(
        lambda column: column.map(str if column.name == "n" else lambda v: f"{100 * v:.1f}")
    )
