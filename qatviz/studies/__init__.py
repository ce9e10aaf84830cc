"""Grids of experiments: cached by content, resumable, on this machine or a cluster.

::

    base = Experiment(start="float_small_resnet", schedule=Schedule(epochs=4))
    result = study(grid(base, bits=[2, 4], seed=range(5)), processes(4))
    result.table, result.summary(), result.paired("W2A2"), result.best()

A cell is one experiment. Its folder, ``data/cache/studies/<hash>``, is named by a hash of all that
decides its numbers, so calling ``study`` again runs only what is missing: what was interrupted
goes on from its last epoch, what failed is tried again. Everything an experiment names must stand
in a module. The same from a shell: ``python -m qatviz study FILE.toml --jobs 4`` (``files`` says
what the file holds), and ``python -m qatviz runs`` to list, show, compare, delete and promote.

**Where cells run** is the second argument, anything with ``submit()``:

* nothing: in this process, one after the other;
* ``processes(4)``: four processes of this machine. A ``ProcessPoolExecutor`` or
  ``loky.get_reusable_executor(4)`` does too. A script must be guarded by
  ``if __name__ == "__main__"``;
* Dask (``pip install "qatviz[dask]"``)::

      client = Client("tcp://scheduler:8786")
      study(cells, client.get_executor())        # or: study FILE.toml --dask tcp://scheduler:8786

* Slurm, PBS, LSF and others through dask-jobqueue, here ten jobs of one worker each::

      cluster = SLURMCluster(cores=2, processes=1, memory="8GB", walltime="04:00:00", queue="gpu")
      cluster.scale(jobs=10)
      study(cells, Client(cluster).get_executor(), threads=2)

* Slurm through submitit, one job a cell::

      executor = submitit.AutoExecutor(folder="logs/%j")
      executor.update_parameters(timeout_min=240, cpus_per_task=2, slurm_partition="gpu")
      study(cells, executor, threads=2)

  (submitit was tried with its local executor, dask-jobqueue not at all.)

A job that reaches its time limit is a lost worker: call ``study`` again and its cell goes on. One
process trains one cell at a time, so give a Dask worker one thread; further ones only wait.

**Disks.** Best, all workers see the cache under the same path. Its locks are those of the operating
system, and are released when a process dies; the file system must share them between machines
(NFS from version 4, Lustre mounted with ``flock``). Two studies may write to one cache: a cell that
both want is run once. Where a worker does not see the client's cache it works in a folder of the
same name on its own disk, trains an experiment's start itself if it is not there, and sends the
finished cell to the client; progress is then seen only cell by cell. Workers need the same
qatviz, your own modules (found under the client's path too), and the files of weights and data
that experiments name.

**Threads.** The number of threads changes sums in their last bits, so each cell gets ``threads``
(default 1), and the table says it. The same holds for the machine and the versions, which each run
records.

**Staleness.** Each cell records a hash of the code that made it. A cell that other code made is
used and flagged, as is one ("missing") whose modules are not found from here;
``python -m qatviz runs delete --stale`` deletes the first of these, to make room for new ones.
``python -m qatviz runs promote FILE.toml`` copies finished cells to ``data/runs/studies``, where
they can be committed and are found by everyone; with ``--weights``, ``student(experiment)`` gives
the trained network back. ``study(..., anew=True)`` runs them again, here.
"""

from qatviz.studies.cells import Cell, run_cell
from qatviz.studies.executors import processes
from qatviz.studies.experiment import Experiment, grid
from qatviz.studies.files import read_study
from qatviz.studies.running import dry_run, finished, study
from qatviz.studies.students import student
from qatviz.studies.tables import Study

__all__ = [
    "Cell",
    "Experiment",
    "Study",
    "dry_run",
    "finished",
    "grid",
    "processes",
    "read_study",
    "run_cell",
    "student",
    "study",
]
